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
from ensemw2s.models.averaging import average_weights, merged_model
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


@pytest.mark.parametrize(("rule", "equal"), [("weighted", False), ("uniform", True)])
def test_the_average_is_as_heavy_as_the_votes_or_plain(
    make_tiny: MakeConfig, tmp_path: Path, rule: str, equal: bool
) -> None:
    settings = {
        "weak__training__epochs": 3,
        "weak__training__learning_rate": 2e-2,
        "boosting": {"rounds": 2, "prior": "unigram", "max_weight": 20.0},
        "vote": {"rounds": "all", "combine": "weights", "label_model": rule},
    }
    config = api.as_config(ExperimentConfig.model_validate(make_tiny(tmp_path, **settings)))
    result = api.run(config, until="labels")
    records = load_records(RunContext(absolute_paths(config), RunStore(result.run_dir), lambda event: None))
    alphas = np.array([r.alpha for r in records if r.kept])
    assert alphas[0] != pytest.approx(alphas[1])
    shares = RunStore(result.run_dir).require("merged").info["shares"]
    np.testing.assert_allclose(shares, [0.5, 0.5] if equal else alphas / alphas.sum())


@pytest.fixture(scope="module")
def adapters(tiny_weak: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelConfig, list[Path]]:
    """Two adapters of rank 2 with random matrices."""
    base = ModelConfig(path=str(tiny_weak), lora=LoraConfig(rank=2))
    folders = [tmp_path_factory.mktemp("adapter") / "model" for _ in range(2)]
    for i, folder in enumerate(folders):
        model = load_model(base, device="cpu", dtype=torch.float32, for_training=True, seed=i)
        generator = torch.Generator().manual_seed(i)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        save_model(model, load_tokenizer(base), folder, base=base)
    return base, folders


def test_adapters_are_averaged_as_what_they_change(adapters: tuple[ModelConfig, list[Path]]) -> None:
    base, folders = adapters
    start = parameters(load_model(base.model_copy(update={"lora": None}), device="cpu", dtype=torch.float32))

    def load(i: int) -> Any:
        return load_saved(folders[i], device="cpu", dtype=torch.float32)

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
    theirs = peft.PeftModel.from_pretrained(whole, str(folders[0]), adapter_name="a")
    theirs.load_adapter(str(folders[1]), adapter_name="b")
    theirs.add_weighted_adapter(["a", "b"], [0.25, 0.75], "both", combination_type="cat")
    theirs.set_adapter("both")
    for name, value in parameters(theirs.merge_and_unload()).items():
        torch.testing.assert_close(value, merged[name], atol=1e-6, rtol=0)


def matrices(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("density", [1.0, 0.5])
def test_adapters_merged_by_ties(adapters: tuple[ModelConfig, list[Path]], density: float) -> None:
    """Trim, elect a sign by total mass, and take the mean of what agrees (Yadav et al., section 3), worked out here."""
    base, folders = adapters
    shares = [0.75, 0.25]
    merged = parameters(
        merged_model(
            folders,
            shares,
            "ties",
            base=base,
            density=density,
            device="cpu",
            dtype=torch.float32,
            seed=0,
        )
    )

    def ties(parts: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
        kept = []
        for part in parts:
            flat = part.flatten()
            places = flat.abs().topk(int(density * flat.numel())).indices
            kept.append(torch.zeros_like(flat).index_copy(0, places, flat[places]).view_as(part))
        sign = torch.stack(kept).sum(dim=0).sign()
        agree = torch.stack([k.sign() == sign for k in kept])
        total = sum(w * k * a for w, k, a in zip(weights, kept, agree, strict=True))
        return torch.as_tensor(total) / agree.sum(dim=0).clamp(min=1)

    start = parameters(load_model(base.model_copy(update={"lora": None}), device="cpu", dtype=torch.float32))
    own = [matrices(folder) for folder in folders]
    lora = base.lora
    assert lora is not None
    changed = 0
    for key in own[0]:
        if ".lora_A." not in key:
            continue
        # The weight of an adapter belongs to the product: PEFT gives each matrix its root.
        roots = [(2 * share * lora.alpha / lora.rank) ** 0.5 for share in shares]
        down, up = (ties([o[k] for o in own], roots) for k in (key, key.replace(".lora_A.", ".lora_B.")))
        name = key.removeprefix("base_model.model.").replace(".lora_A.weight", ".weight")
        torch.testing.assert_close(merged[name], start[name] + up @ down, atol=1e-5, rtol=0)
        changed += 1
    assert changed > 0


def test_adapters_merged_by_dare(adapters: tuple[ModelConfig, list[Path]]) -> None:
    """An adapter merged with itself is itself where nothing is dropped; what is dropped depends on the seed alone."""
    base, folders = adapters

    def merge(which: list[Path], density: float, seed: int) -> dict[str, torch.Tensor]:
        made = merged_model(
            which,
            [0.5, 0.5],
            "dare_ties",
            base=base,
            density=density,
            device="cpu",
            dtype=torch.float32,
            seed=seed,
        )
        return parameters(made)

    alone = parameters(load_saved(folders[0], device="cpu", dtype=torch.float32))
    for name, value in merge([folders[0]] * 2, 1.0, 0).items():
        torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=0)
    first, again, other = (merge(folders, 0.5, seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_merging_adapters_needs_adapters(make_tiny: MakeConfig, tmp_path: Path) -> None:
    made = make_tiny(tmp_path, vote={"combine": "ties"})
    with pytest.raises(ConfigError, match=r"vote.combine ties merges adapters, and weak.models has none"):
        api.run(ExperimentConfig.model_validate(made))
    assert not (tmp_path / "runs").exists()


def test_only_one_model_can_be_merged(
    make_tiny: MakeConfig, tiny_weak: Path, tiny_strong: Path, tmp_path: Path
) -> None:
    def load(folder: Path) -> Any:
        return load_model(ModelConfig(path=str(folder)), device="cpu", dtype=torch.float32)

    with pytest.raises(ModelError, match="only members of one model can be merged"):
        average_weights([lambda: load(tiny_weak), lambda: load(tiny_strong)], [0.5, 0.5])
    made = make_tiny(tmp_path, vote={"combine": "weights"})
    made["weak"]["models"] = [{"path": str(tiny_weak)}, {"path": str(tiny_strong)}]
    with pytest.raises(ConfigError, match=r"vote.combine weights makes one of members of one model"):
        api.run(ExperimentConfig.model_validate(made))
    assert not (tmp_path / "runs").exists()
