"""Files that describe several runs of one experiment: sweeps and comparisons."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from ensemw2s.config import ExperimentConfig
from ensemw2s.config.uris import is_uri
from ensemw2s.errors import ConfigError
from ensemw2s.settings import fields
from ensemw2s.settings.load import STUDIES, load_config
from ensemw2s.settings.overrides import split_overrides
from ensemw2s.settings.paths import absolute_paths
from ensemw2s.settings.problems import refused
from ensemw2s.settings.yaml_text import parse, quoted

Study = TypeVar("Study", bound=BaseModel)


def split_study(
    kind: type[BaseModel], overrides: Sequence[str], refused: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Overrides of the study itself, as field -> value, and those of its experiment.

    A field that both have is the experiment's, but for the name.

    Args:
        kind: of study.
        overrides: as on the command line.
        refused: fields of the experiment that the study says in another way, and which.

    Raises:
        ConfigError: one of `refused` is given.
    """
    found, problems = split_overrides(overrides)
    if problems:
        # Whoever reads the experiment says what is wrong with them.
        return {}, list(overrides)
    own = {name for name in kind.model_fields if name == "name" or name not in ExperimentConfig.model_fields}
    wrong = [f"{o.key}: {refused[o.key]}" for o in found if refused and o.key in refused]
    if wrong:
        raise ConfigError(wrong)
    given = {o.key: parse(o.text, f"override {o.key}") for o in found if o.key in own}
    unclear = [problem for document in given.values() for problem in document.problems]
    if unclear:
        raise ConfigError(unclear)
    values = {key: document.value for key, document in given.items()}
    return values, [f"{o.key}={o.text}" for o in found if o.key not in own]


def read_study(
    path: pathlib.Path | str, kind: type[Study], what: str, changes: Mapping[str, Any] | None = None
) -> Study:
    """Read and check a study file.

    Args:
        path: a YAML file.
        kind: what it must hold.
        what: sweep or comparison, for messages.
        changes: fields that have another value than in the file.

    Raises:
        ConfigError: with one line for every problem.
    """
    path = pathlib.Path(path)
    try:
        document = parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file: give the path of a {what} file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(document.value, dict):
        needed = ", ".join(name for name, field in kind.model_fields.items() if field.is_required())
        raise ConfigError(f"{path} is no {what} file: the keys {needed} are needed")
    if document.problems:
        raise ConfigError(document.problems)
    if "base" not in document.value and "weak" in document.value:
        raise ConfigError(
            f"{path} is an experiment, not a {what}: write a {what} file that names it: base: {path.name}"
        )
    for other, (command, key) in STUDIES.items():
        if other != what and key in document.value and STUDIES[what][1] not in document.value:
            raise ConfigError(f"{path} is a {other}, not a {what}: use ensemw2s {command} {path}")
    given = {**document.value, **(changes or {})}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ConfigError(list(dict.fromkeys(_line(item, kind, given) for item in error.errors()))) from None


def read_base(
    path: pathlib.Path | str, base: str, fixed: Mapping[str, Any], overrides: Sequence[str]
) -> ExperimentConfig:
    """The experiment of a study file, with absolute paths.

    Args:
        path: the study file; `base` is relative to its folder.
        base: path of the experiment.
        fixed: dotted field -> value for all runs; overrides win.
        overrides: ``key=value`` as on the command line.

    Raises:
        ConfigError: with one line for every problem.
    """
    file = pathlib.Path(path).parent / pathlib.Path(base).expanduser()
    config = load_config(file, [*assignments(fixed), *overrides])
    if is_uri(config.runs_dir):
        raise ConfigError(
            f"runs_dir: {config.runs_dir!r} is a URI: runs of a sweep or a comparison share work in a folder; give one"
        )
    return absolute_paths(config)


def assignments(values: Mapping[str, Any]) -> list[str]:
    """Dotted fields and plain values as overrides."""
    return [f"{key}={quoted(value)}" for key, value in values.items()]


def _line(item: Any, kind: type[BaseModel], given: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"{where}: it is missing: {kind.model_fields[str(item['loc'][0])].description}"
    if item["type"] == "extra_forbidden":
        known = f": the fields are {', '.join(kind.model_fields)}" if len(item["loc"]) == 1 else ""
        return f"{where}: there is no such field{known}"
    name = str(item["loc"][0]) if item["loc"] else ""
    field = kind.model_fields.get(name)
    if field is not None and item["type"] != "value_error" and not isinstance(given[name], dict):
        # The whole field, once: pydantic has an error for each alternative of its type.
        allowed = fields.sentence(fields.kinds(field.annotation, field.metadata))
        return refused((name,), given[name], allowed)
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
