"""Which run directories a configuration may continue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.estimate import estimate
from ensemw2s.engine.prepare import check_directory, prepare
from ensemw2s.errors import RunDirectoryError
from ensemw2s.runs.store import RunStore

MakeConfig = Callable[..., dict[str, Any]]


def begun(make_tiny: MakeConfig, folder: Path) -> tuple[ExperimentConfig, Path]:
    config = api.as_config(ExperimentConfig.model_validate(make_tiny(folder)))
    store = RunStore(folder / "runs" / "tiny")
    store.create(config.identity(), config.identity_hash())
    return config, store.folder / "manifest.json"


def change_identity(manifest: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(manifest.read_text())
    change(content["identity"])
    manifest.write_text(json.dumps(content))


def test_a_field_that_came_later_has_its_default(make_tiny: MakeConfig, tmp_path: Path) -> None:
    config, manifest = begun(make_tiny, tmp_path)
    change_identity(manifest, lambda identity: identity["boosting"].pop("method"))
    assert check_directory(config).exists
    other = config.model_copy(update={"boosting": config.boosting.model_copy(update={"method": "bagging"})})
    with pytest.raises(RunDirectoryError, match=r"boosting\.method: 'adaboost' -> 'bagging'"):
        check_directory(other)


def test_a_field_that_is_gone_is_named(make_tiny: MakeConfig, tmp_path: Path) -> None:
    config, manifest = begun(make_tiny, tmp_path)
    change_identity(manifest, lambda identity: identity["boosting"].update(gone=3))
    with pytest.raises(RunDirectoryError, match=r"boosting\.gone: 3 -> None"):
        check_directory(config)


def test_the_estimate_counts_what_is_trained(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """float32 weights of all; gradients, two moments and DeepSpeed's copy of one of three layers."""
    plain = make_tiny(tmp_path)
    plain["strong"]["model"]["trainable"] = 1
    prepared = prepare(api.as_config(ExperimentConfig.model_validate(plain)))
    lines = {line.stage: line for line in estimate(prepared, 1e12)}
    n = prepared.facts["tiny-strong"].n_parameters
    assert lines["student ceiling"].memory == round(n * (4 + 16 / 3))
    assert lines["student ceiling"].disk == 4 * n
    assert lines["member 1"].memory == 16 * prepared.facts["tiny-weak"].n_parameters
