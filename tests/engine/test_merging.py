"""Members merged into one model: its weights, and that it speaks for them everywhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemw2s import api
from ensemw2s.config import ExperimentConfig, LoraConfig, ModelConfig
from ensemw2s.engine.answers import ensemble_answers
from ensemw2s.engine.boosting import load_records
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.labeling import selected_ensemble
from ensemw2s.engine.merging import MERGED, merged_path
from ensemw2s.errors import ConfigError, ModelError
from ensemw2s.models.averaging import average_weights
from ensemw2s.models.loading import load_model, load_tokenizer
from ensemw2s.models.storage import load_saved, save_model
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import absolute_paths

MakeConfig = Callable[..., dict[str, Any]]


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_a_run_whose_members_are_merged(make_tiny: MakeConfig, tmp_path: Path) -> None:
    settings = {
        "weak__training__epochs": 3,
        "weak__training__learning_rate": 2e-2,
        "boosting": {"rounds": 2, "method": "bagging"},
        "vote": {"rounds": "all", "combine": "weights"},
        "strong__training__epochs": 1,
    }
    config = api.as_config(ExperimentConfig.model_validate(make_tiny(tmp_path, **settings)))
    result = api.run(config)
    ctx = RunContext(absolute_paths(config), RunStore(result.run_dir), lambda event: None)
    folders = [result.run_dir / "members" / f"{r.attempt:02d}" for r in load_records(ctx)]
    first, second = (parameters(load_saved(f, device="cpu", dtype=torch.float32)) for f in folders)
    merged = parameters(load_saved(result.run_dir / merged_path(), device="cpu", dtype=torch.float32))
    for name, value in merged.items():
        torch.testing.assert_close(value, (first[name] + second[name]) / 2, rtol=0, atol=1e-7)
    speaker = selected_ensemble(ctx)
    assert speaker.systems == (MERGED,)
    truth = ctx.splits["test"].answers
    right = float((np.array(ensemble_answers(ctx, speaker, "test").values) == truth).mean())
    assert result.results["weak_ensemble"]["test"]["value"] == pytest.approx(right)
    # The single member is still the first one, and the curve of the vote is there.
    assert result.results["weak_single"]["test"]["value"] == pytest.approx(
        result.results["staged"]["test"][0]
    )
    assert api.run(config).results == result.results


def test_adapters_are_averaged_as_what_they_change(tiny_weak: Path, tmp_path: Path) -> None:
    base = ModelConfig(path=str(tiny_weak), lora=LoraConfig(rank=2))
    start = parameters(load_model(base.model_copy(update={"lora": None}), device="cpu", dtype=torch.float32))
    for i in range(2):
        model = load_model(base, device="cpu", dtype=torch.float32, for_training=True, seed=i)
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        save_model(model, load_tokenizer(base), tmp_path / str(i), base=base)

    def load(i: int) -> Any:
        return load_saved(tmp_path / str(i), device="cpu", dtype=torch.float32)

    merged = parameters(average_weights([lambda: load(0), lambda: load(1)], [0.25, 0.75]))
    moved = 0
    for name, value in merged.items():
        changes = [parameters(load(i))[name] - start[name] for i in range(2)]
        torch.testing.assert_close(
            value, start[name] + 0.25 * changes[0] + 0.75 * changes[1], atol=1e-6, rtol=0
        )
        moved += int(bool(changes[0].any()))
    assert moved > 0
    # PEFT's own merging of adapters, the exact kind of it: their matrices side by side.
    import peft

    whole = load_model(base.model_copy(update={"lora": None}), device="cpu", dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(whole, str(tmp_path / "0"), adapter_name="a")
    theirs.load_adapter(str(tmp_path / "1"), adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], [0.25, 0.75], "both", combination_type="cat")
    theirs.set_adapter("both")
    for name, value in parameters(theirs.merge_and_unload()).items():
        torch.testing.assert_close(value, merged[name], atol=1e-6, rtol=0)


def test_only_one_model_can_be_merged(
    make_tiny: MakeConfig, tiny_weak: Path, tiny_strong: Path, tmp_path: Path
) -> None:
    def load(folder: Path) -> Any:
        return load_model(ModelConfig(path=str(folder)), device="cpu", dtype=torch.float32)

    with pytest.raises(ModelError, match="only members of one model can be merged"):
        average_weights([lambda: load(tiny_weak), lambda: load(tiny_strong)], [0.5, 0.5])
    made = make_tiny(tmp_path, vote={"combine": "weights"})
    made["weak"]["models"] = [{"path": str(tiny_weak)}, {"path": str(tiny_strong)}]
    with pytest.raises(ConfigError, match=r"vote.combine weights averages members of one model"):
        api.run(ExperimentConfig.model_validate(made))
    assert not (tmp_path / "runs").exists()
