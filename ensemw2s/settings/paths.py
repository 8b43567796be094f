"""Local paths of a configuration, for executing it in another working directory."""

from __future__ import annotations

import pathlib
from typing import Any

from ensemw2s.config import BuiltinSource, ExperimentConfig, FileSource, HubSource, ModelConfig, Section
from ensemw2s.config.uris import is_uri


def absolute_paths(config: ExperimentConfig) -> ExperimentConfig:
    """A copy in which every local path is absolute: data files, local data sets and models,
    ``runs_dir``, ``runtime.cache`` and ``runtime.work_dir``, unless a node has to say where that is.

    Ray Train and Ray jobs run in directories of their own. Names that are no existing file or folder (hub
    ids, ``package:NAME``) stay as they are. The copy has another identity than ``config``: execute with the
    copy, store and compare with the original.
    """
    runtime = config.runtime
    if runtime.cache is not None:
        runtime = runtime.model_copy(update={"cache": _anywhere(runtime.cache)})
    if runtime.work_dir is not None and not runtime.work_dir.startswith(("~", "$")):
        runtime = runtime.model_copy(update={"work_dir": _anywhere(runtime.work_dir)})
    runs_dir = config.runs_dir if is_uri(config.runs_dir) else _anywhere(config.runs_dir)
    placed = {"runs_dir": runs_dir, "runtime": runtime}
    return config.model_copy(
        update={name: _rebase(value) for name, value in _fields(config).items()} | placed
    )


def _anywhere(text: str) -> str:
    """Absolute, whether it exists or not."""
    return str(pathlib.Path(text).expanduser().absolute())


def _fields(section: Section) -> dict[str, Any]:
    return {name: getattr(section, name) for name in type(section).model_fields}


def _rebase(value: Any) -> Any:
    if isinstance(value, Section):
        update = {name: _rebase(inner) for name, inner in _fields(value).items()}
        if isinstance(value, FileSource | HubSource | ModelConfig | BuiltinSource) and value.path is not None:
            update["path"] = _absolute(value.path)
        return value.model_copy(update=update)
    if isinstance(value, tuple):
        return tuple(_rebase(inner) for inner in value)
    if isinstance(value, dict):
        return {name: _rebase(inner) for name, inner in value.items()}
    return value


def _absolute(text: str) -> str:
    path = pathlib.Path(text).expanduser()
    return str(path.absolute()) if path.exists() else text
