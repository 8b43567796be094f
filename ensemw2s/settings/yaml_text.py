"""YAML as configurations need it: the scalars of YAML 1.2, no duplicate keys, and the text that was written.

PyYAML follows YAML 1.1, where ``no`` is false, ``12:30`` is 750, ``010`` is 8 and ``5e-5`` is a string. Here
scalars follow the core schema of YAML 1.2 (section 10.3.2 of its specification), and the text of every plain
scalar is kept, so that a text field can be given ``12`` or ``1e5`` without quotes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from ensemw2s.errors import ConfigError

Path = tuple[str | int, ...]

_PREFIX = "tag:yaml.org,2002:"
# Aliases can make a short file unfold into an enormous tree; no configuration comes near this.
_MAX_NODES = 100_000

# Order matters: an integer also matches the pattern of a float.
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own name)


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as something other than a string."""


for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_PREFIX + _name, re.compile(rf"^(?:{_pattern})$"), _first)


@dataclass
class Document:
    """A parsed document.

    Attributes:
        value: plain dictionaries, lists and scalars.
        raw: the text of each plain (unquoted) scalar, by its path.
        problems: one line each; ``value`` is then not to be used.
    """

    value: Any = None
    raw: dict[Path, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def parse(text: str, source: str) -> Document:
    """Parse one YAML document; ``source`` names it in problems.

    Raises:
        ConfigError: the text is not YAML.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        raise ConfigError(f"{source}: {where}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    document = Document()
    if node is not None:
        document.value = _Builder(document, source).build(node, (), ())
    return document


def dump(value: Any) -> str:
    """YAML text of plain data, keys in their order, that :func:`parse` reads back to the same data."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


class _Builder:
    """Turns PyYAML's nodes into plain data."""

    def __init__(self, document: Document, source: str) -> None:
        self._document = document
        self._source = source
        self._count = 0

    def build(self, node: yaml.Node, path: Path, above: tuple[int, ...]) -> Any:
        self._count += 1
        if self._count > _MAX_NODES:
            raise ConfigError(f"{self._source}: unfolds to more than {_MAX_NODES} values")
        if id(node) in above:
            return self._problem(node, "an alias refers to what it is a part of")
        above = (*above, id(node))
        if isinstance(node, yaml.ScalarNode):
            if node.style is None:
                self._document.raw[path] = node.value
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == _PREFIX + "seq":
            return [self.build(child, (*path, i), above) for i, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _PREFIX + "map":
            return self._mapping(node, path, above)
        return self._problem(node, f"the tag {node.tag!r} is not allowed in a configuration")

    def _mapping(self, node: yaml.MappingNode, path: Path, above: tuple[int, ...]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        first_line: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, "a key must be text, not a list or a mapping")
                continue
            # Keys are names: `on:` and `2024:` mean the text that was written.
            key = str(key_node.value)
            if key == "<<":
                self._problem(key_node, "merge keys (<<) are not part of YAML 1.2: write the keys out")
                continue
            if key in result:
                dotted = ".".join(str(part) for part in (*path, key))
                self._problem(
                    key_node, f"{dotted} is given twice (first in line {first_line[key]}): keep one"
                )
                continue
            first_line[key] = key_node.start_mark.line + 1
            result[key] = self.build(value_node, (*path, key), above)
        return result

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        text, kind = str(node.value), node.tag.removeprefix(_PREFIX)
        try:
            if kind == "str":
                return text
            if kind == "null":
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
            if kind == "float":
                return float(re.sub(r"\.(inf|nan)$", r"\1", text.lower()))
        except (ValueError, KeyError):
            return self._problem(node, f"{text!r} is not of the type {kind}")
        return self._problem(node, f"the tag {node.tag!r} is not allowed in a configuration")

    def _problem(self, node: yaml.Node, message: str) -> None:
        self._document.problems.append(f"{self._source}: line {node.start_mark.line + 1}: {message}")


def quoted(value: Any) -> str:
    """A plain value as YAML on one line, which :func:`parse` reads back as it is.

    JSON escapes characters beyond U+FFFF in two halves, which are two characters in YAML; and YAML takes some that JSON leaves as they
    are for line breaks, or for none that may be in a text.
    """
    text = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in text)
