"""Which run directories a configuration may continue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.estimate import EFFICIENCY, estimate
from ensemw2s.engine.prepare import check_directory, prepare
from ensemw2s.errors import ModelError, RunDirectoryError
from ensemw2s.models.loading import load_model
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


def test_the_estimate_of_adapters_counts_them_and_not_their_base(
    make_tiny: MakeConfig, tmp_path: Path
) -> None:
    plain = make_tiny(tmp_path)
    plain["weak"]["models"][0]["lora"] = {"rank": 4, "target_modules": ["q_proj", "down_proj"]}
    prepared = prepare(api.as_config(ExperimentConfig.model_validate(plain)))
    lines = {line.stage: line for line in estimate(prepared, 1e12)}
    facts = prepared.facts["tiny-weak"]
    trained = load_model(prepared.absolute.weak.models[0], device="cpu", for_training=True)
    adapters = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    assert facts.n_trainable == adapters
    assert lines["member 1"].disk == 4 * adapters
    assert lines["member 1"].memory == 4 * facts.n_parameters + 12 * adapters
    # Forward 2, and back through frozen weights 2 a parameter and token, where all weights take 4.
    del plain["weak"]["models"][0]["lora"]
    whole = estimate(prepare(api.as_config(ExperimentConfig.model_validate(plain))), 1e12)
    epochs, tokens = prepared.config.weak.training.epochs, lines["prior error"].tokens
    saved = (whole[1].seconds - lines["member 1"].seconds) * 1e12 * EFFICIENCY
    assert saved == pytest.approx(2 * facts.n_parameters * epochs * tokens)


def test_modules_that_a_model_does_not_have_are_refused_before_anything_is_written(
    make_tiny: MakeConfig, tmp_path: Path
) -> None:
    plain = make_tiny(tmp_path)
    plain["strong"]["model"]["lora"] = {"target_modules": ["nope"]}
    with pytest.raises(ModelError, match=r"lora.target_modules \('nope',\) do not fit model 'tiny-strong'"):
        prepare(api.as_config(ExperimentConfig.model_validate(plain)))
    assert not (tmp_path / "runs").exists()


def test_the_estimate_counts_what_is_trained(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """float32 weights of all; gradients, two moments and DeepSpeed's copy of one of three layers."""
    plain = make_tiny(tmp_path)
    plain["strong"]["model"]["trainable"] = 1
    prepared = prepare(api.as_config(ExperimentConfig.model_validate(plain)))
    lines = {line.stage: line for line in estimate(prepared, 1e12)}
    n = prepared.facts["tiny-strong"].n_parameters
    assert lines["student ceiling"].memory == 4 * n + 16 * round(n / 3)
    assert lines["student ceiling"].disk == 4 * n
    assert lines["member 1"].memory == 16 * prepared.facts["tiny-weak"].n_parameters
