"""What each field of the configuration is: its type in plain words, and the field that a path leads to."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from ensemw2s.config import ExperimentConfig
from ensemw2s.settings.yaml_text import Path

_BOUNDS = ((Ge, "ge", ">="), (Gt, "gt", ">"), (Le, "le", "<="), (Lt, "lt", "<"))
_KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class Kind:
    """One alternative of a field's type, without Annotated wrappers."""

    type: Any
    metadata: tuple[Any, ...] = ()

    @property
    def model(self) -> type[BaseModel] | None:
        """The section class, when this is a section."""
        return self.type if isinstance(self.type, type) and issubclass(self.type, BaseModel) else None

    @property
    def name(self) -> str:
        """The type in plain words."""
        if self.type is type(None):
            return "null"
        if self.model is not None:
            return "section"
        origin = get_origin(self.type)
        if origin is Literal:
            return "text"
        if origin in (tuple, list):
            return "list"
        if origin is dict:
            return "mapping"
        return _KINDS.get(self.type, "any value")

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that may be given, where the type is a choice."""
        return tuple(str(v) for v in get_args(self.type)) if get_origin(self.type) is Literal else ()

    @property
    def tag(self) -> str | None:
        """The ``kind:`` that selects this section among others."""
        field = self.model.model_fields.get("kind") if self.model else None
        return (
            str(get_args(field.annotation)[0]) if field and get_origin(field.annotation) is Literal else None
        )

    @property
    def allowed(self) -> str:
        """What is allowed beyond the type, in plain words; empty when everything is."""
        if self.choices:
            return ", ".join(self.choices)
        arguments = get_args(self.type)
        if self.name == "list" and Ellipsis not in arguments:
            return f"exactly {len(arguments)} values, each {sentence(kinds(arguments[0]))}"
        parts = []
        for item in self.metadata:
            parts += [
                f"{sign} {getattr(item, name):g}" for kind, name, sign in _BOUNDS if isinstance(item, kind)
            ]
            if isinstance(item, MinLen) and item.min_length:
                of = "character" if self.name == "text" else "value"
                least = f"at least {item.min_length} {of}{'s' if item.min_length > 1 else ''}"
                parts.append(f"of {least}" if self.name == "text" else least)
            if pattern := getattr(item, "pattern", None):
                parts.append(f"of the form {pattern}")
        return " and ".join(parts)


def kinds(annotation: Any, metadata: Sequence[Any] = ()) -> tuple[Kind, ...]:
    """The alternatives of an annotation: unions taken apart, Annotated unwrapped."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        flat: list[Any] = []
        for item in more:
            flat += item.metadata if isinstance(item, FieldInfo) else [item]
        return kinds(inner, (*metadata, *flat))
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in get_args(annotation) for kind in kinds(part, metadata))
    return (Kind(annotation, tuple(metadata)),)


def sentence(alternatives: Sequence[Kind]) -> str:
    """What a value must be: ``a whole number >= 1, or auto``."""
    if len(tags(alternatives)) > 1:
        return f"a section with kind: {_or(tags(alternatives))}"
    parts = []
    for kind in alternatives:
        if kind.choices:
            parts.append(_or(kind.choices))
        elif kind.name == "section":
            parts.append(_section_sentence(kind))
        elif kind.name in ("null", "text", "true or false", "any value"):
            parts.append(f"{kind.name} {kind.allowed}".strip())
        elif kind.name == "list":
            parts.append(_list_sentence(kind))
        else:
            parts.append(f"a {kind.name} {kind.allowed}".strip())
    return ", or ".join(parts)


def _section_sentence(kind: Kind) -> str:
    names = list(kind.model.model_fields) if kind.model else []
    return f"a section of keys ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _list_sentence(kind: Kind) -> str:
    items = kinds(get_args(kind.type)[0])
    of = "" if "exactly" in kind.allowed else f" of {'sections' if items[0].model else sentence(items)}"
    return f"a list{of}{f' ({kind.allowed})' if kind.allowed else ''}"


def _or(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def tags(alternatives: Sequence[Kind]) -> list[str]:
    """The values of ``kind:`` among which a union of sections chooses."""
    return [kind.tag for kind in alternatives if kind.tag]


def shown(value: Any) -> str:
    """A value as it would stand in the file, shortened."""
    if isinstance(value, BaseModel | dict) and not value:
        return "{}"
    if isinstance(value, tuple):
        value = list(value)
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    text = text.replace("NaN", ".nan").replace("Infinity", ".inf") if isinstance(value, float) else text
    return text if len(text) <= 80 else text[:77] + "..."


def key_in_section(model: type[BaseModel], name: str) -> tuple[Kind, ...]:
    """The alternatives of one field."""
    field = model.model_fields[name]
    return kinds(field.annotation, field.metadata)


def step(alternatives: Sequence[Kind], part: str | int) -> tuple[Kind, ...]:
    """The alternatives below ``part``; empty when no alternative has such a part."""
    found: list[Kind] = []
    for kind in alternatives:
        if kind.model is not None:
            if part in kind.model.model_fields:
                found += key_in_section(kind.model, str(part))
        elif kind.name == "list" and isinstance(part, int):
            arguments = [a for a in get_args(kind.type) if a is not Ellipsis]
            found += kinds(arguments[min(part, len(arguments) - 1)])
        elif kind.name == "mapping" and isinstance(part, str):
            found += kinds(get_args(kind.type)[1])
        elif kind.type is Any:
            found.append(kind)
    return tuple(kind for i, kind in enumerate(found) if kind not in found[:i])


def root() -> tuple[Kind, ...]:
    """The whole configuration."""
    return (Kind(ExperimentConfig),)


def at(path: Path) -> tuple[Kind, ...]:
    """The alternatives that a dotted path of a configuration leads to; empty where it leads nowhere."""
    found = root()
    for part in path:
        found = step(found, part)
    return found


def without_tags(location: Path) -> tuple[Path, tuple[Kind, ...]]:
    """A location of a pydantic error without the names that pydantic adds at unions, and what is there.

    At a union pydantic inserts the tag or the name of the alternative, which is no part of the user's path.
    """
    found, named = root(), False
    path: list[str | int] = []
    for part in location:
        several = [kind for kind in found if kind.type is not type(None)]
        if len(several) > 1 and not named:
            found, named = tuple(kind for kind in several if kind.tag == part) or found, True
            continue
        path.append(part)
        found, named = step(found, part), False
    return tuple(path), found


def dotted(path: Path) -> str:
    """``("weak", "models", 0)`` -> ``weak.models.0``."""
    return ".".join(str(part) for part in path)


def default_text(field: FieldInfo) -> str:
    """The default as it would stand in the file; ``required`` where there is none, empty for a section."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    return shown(value)


class Place(NamedTuple):
    """A field and where it is."""

    path: tuple[str, ...]
    """``N`` stands for a position in a list, ``NAME`` for a key of a mapping."""
    field: FieldInfo
    kinds: tuple[Kind, ...]
    tag: str
    """The ``kind:`` of the nearest section around it that is one of several kinds; else empty."""


def walk(
    alternatives: Sequence[Kind] | None = None, path: tuple[str, ...] = (), tag: str = ""
) -> Iterator[Place]:
    """Every field, depth first; a union of sections gives the fields of each kind in turn."""
    for kind in root() if alternatives is None else alternatives:
        if kind.model is None:
            continue
        here = kind.tag or tag
        for name, field in kind.model.model_fields.items():
            inner = key_in_section(kind.model, name)
            yield Place((*path, name), field, inner, here)
            for below in inner:
                arguments = get_args(below.type)
                if below.model is not None:
                    yield from walk((below,), (*path, name), here)
                elif below.name == "list" and Ellipsis in arguments:
                    yield from walk(kinds(arguments[0]), (*path, name, "N"), here)
                elif below.name == "mapping":
                    yield from walk(kinds(arguments[1]), (*path, name, "NAME"), here)


def paths_ending_in(name: str) -> list[str]:
    """Dotted paths of the fields of this name."""
    return list(dict.fromkeys(dotted(place.path) for place in walk() if place.path[-1] == name))
