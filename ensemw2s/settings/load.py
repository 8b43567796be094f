"""Configuration files in and out: YAML plus overrides to an :class:`ExperimentConfig`, and back."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ensemw2s.config import ExperimentConfig, StrongTrainingConfig
from ensemw2s.errors import ConfigError
from ensemw2s.settings import problems, yaml_text
from ensemw2s.settings.deepspeed_file import load_deepspeed
from ensemw2s.settings.fields import shown
from ensemw2s.settings.overrides import apply_override, split_overrides
from ensemw2s.settings.yaml_text import Document

STUDIES = {"sweep": ("sweep", "parameters"), "comparison": ("compare", "variants")}
"""files that name an experiment as their base: the command of each, and the field that the other lacks"""
_DEEPSPEED_KEY = "strong.training.deepspeed"


def load_config(path: pathlib.Path | str, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """Read a configuration file.

    Args:
        path: a YAML file.
        overrides: ``key=value``, ``--key value`` or ``--key=value`` with dotted keys, in which a number is a
            position in a list (``weak.models.0.drop_layers=12-21``). Values are YAML; a text field takes the
            text as it is. Later ones win.

    Returns:
        The whole configuration, the DeepSpeed file's content in the place of its name.

    Raises:
        ConfigError: with one line for every problem there is.
    """
    path = pathlib.Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file: give the path of a YAML configuration") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: give the path of a YAML configuration") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    document = yaml_text.parse(text, str(path))
    if document.value is None:
        raise ConfigError(f"{path} is empty: name, data, weak and strong are needed")
    if not isinstance(document.value, dict):
        kind = "a list" if isinstance(document.value, list) else shown(document.value)
        raise ConfigError(
            f"{path} holds {kind}: a mapping with the keys name, data, weak, strong, ... is needed"
        )
    if "base" in document.value and not any(key in document.value for key in ("data", "weak", "strong")):
        # A comparison need not say what it compares.
        kind = "sweep" if STUDIES["sweep"][1] in document.value else "comparison"
        raise ConfigError(
            f"{path} is a {kind}, not an experiment: use ensemw2s {STUDIES[kind][0]} {path}, or give the experiment that is its base"
        )
    return _finish(document, overrides, path.parent)


def config_from_mapping(
    data: Mapping[str, Any], overrides: Sequence[str] = (), folder: pathlib.Path | None = None
) -> ExperimentConfig:
    """The same from Python data; ``folder`` is where a relative DeepSpeed file is looked for first.

    Raises:
        ConfigError: with one line for every problem there is.
    """
    return _finish(Document(copy.deepcopy(dict(data))), overrides, folder)


def dump_config(config: ExperimentConfig) -> str:
    """YAML text that :func:`load_config` reads back to an equal configuration."""
    return yaml_text.dump(config.model_dump(mode="json"))


def _finish(document: Document, overrides: Sequence[str], folder: pathlib.Path | None) -> ExperimentConfig:
    found, lines = split_overrides(overrides)
    document.problems += lines
    for override in found:
        if override.key.startswith(_DEEPSPEED_KEY + "."):
            # A part of the DeepSpeed configuration is changed: the rest is that of the file named so far.
            _insert_deepspeed(document, folder)
        apply_override(document, override)
    _insert_deepspeed(document, folder)
    try:
        config = _validate(document)
    except ValidationError as error:
        raise ConfigError([*document.problems, *problems.explain(error)]) from None
    document.problems += problems.unintended(document.value, config)
    if document.problems:
        raise ConfigError(document.problems)
    return config


def _validate(document: Document) -> ExperimentConfig:
    """Validate, giving text fields the text that was written where YAML saw a number or a truth value."""
    try:
        return ExperimentConfig.model_validate(document.value)
    except ValidationError as error:
        paths = [path for path in problems.text_wanted(error) if path in document.raw]
    for path in paths:
        target = document.value
        for part in path[:-1]:
            target = target[part]
        if target[path[-1]] is not None:
            target[path[-1]] = document.raw[path]
    return ExperimentConfig.model_validate(document.value)


def _insert_deepspeed(document: Document, folder: pathlib.Path | None) -> None:
    """Put the content of the DeepSpeed file where its name is, so that the run's identity covers it."""
    strong = document.value.get("strong")
    training = strong.setdefault("training", {}) if isinstance(strong, dict) else None
    if not isinstance(training, dict):
        return
    value = training.get("deepspeed", StrongTrainingConfig.model_fields["deepspeed"].default)
    if isinstance(value, str | dict):
        try:
            training["deepspeed"] = load_deepspeed(value, folder)
        except ConfigError as error:
            document.problems += [line for line in error.problems if line not in document.problems]
