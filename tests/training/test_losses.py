"""Losses by name: options, a user's own, and independence of the micro-batches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ConfigError
from ensemw2s.models.loading import load_model
from ensemw2s.training.loop import collate
from ensemw2s.training.losses import (
    LOSSES,
    BatchState,
    SoftTargets,
    Targets,
    TokenLoss,
    make_loss,
    prepare_batch,
)
from ensemw2s.training.plan import MicroBatch, TrainingSet

V = 5


def targets_of(labels: list[int], **more: Any) -> Targets:
    return Targets(torch.tensor(labels), more.pop("weights", torch.ones(len(labels))), **more)


def own_loss(logits: torch.Tensor, targets: Targets, scale: float = 1.0) -> torch.Tensor:
    return scale * (logits.logsumexp(-1) - logits.gather(-1, targets.labels.unsqueeze(-1)).squeeze(-1))


def reduced_loss(logits: torch.Tensor, targets: Targets) -> torch.Tensor:
    return own_loss(logits, targets).mean()


class OwnClass(TokenLoss):
    def __init__(self, power: float) -> None:
        self.power = power

    def __call__(self, logits: torch.Tensor, targets: Targets, state: BatchState) -> torch.Tensor:
        return own_loss(logits, targets) ** self.power


not_a_function = 3


class TestRegistry:
    def test_names_and_what_they_need(self) -> None:
        needs = {name: (sorted(kind.needs), kind.whole_batch) for name, kind in LOSSES.items()}
        assert needs == {
            "cross_entropy": ([], False),
            "soft_cross_entropy": (["soft"], False),
            "uncertainty_smoothing": (["uncertainty"], False),
            "product_of_experts": (["soft"], False),
            "confidence": ([], True),
        }

    def test_every_loss_and_option_is_documented_with_its_default(self) -> None:
        text = (Path(__file__).parents[2] / "docs" / "concepts.md").read_text(encoding="utf-8")
        table = text.split("\n## Losses\n")[1].split("\n## ")[0]
        documented = {}
        for name, options in re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|", table, re.MULTILINE):
            documented[name] = dict(re.findall(r"`(\w+)` \(([^)]*)\)", options))
        assert documented == {n: {f.name: str(f.default) for f in fields(kind)} for n, kind in LOSSES.items()}

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("crossentropy", {}, "loss must be one of cross_entropy, .* got 'crossentropy'"),
            ("cross_entropy", {"scale": 1}, "no option 'scale'; its options: none"),
            ("confidence", {"alpha": 1}, "its options: alpha_max, classes, hardened, warmup"),
            ("confidence", {"alpha_max": 1.5}, r"alpha_max must be a number in \[0, 1\], got 1.5"),
            ("confidence", {"warmup": "x"}, r"warmup must be a number in \[0, 1\], got 'x'"),
            ("confidence", {"hardened": True}, r"hardened must be a number in \[0, 1\], got True"),
            ("confidence", {"alpha_max": float("nan")}, "alpha_max must be a number"),
            ("confidence", {"classes": (3,)}, "at least two different"),
            ("confidence", {"classes": (3, 3)}, "at least two different"),
            (
                "confidence",
                {"classes": [False, True]},
                r"whole numbers from 0, not words\), got \[False, True\]: ask",
            ),
            ("confidence", {"classes": ["no", "yes"]}, r"got \['no', 'yes'\]: ask the tokenizer"),
            ("confidence", {"classes": [1.5, 2.5]}, r"got \[1.5, 2.5\]"),
            ("confidence", {"classes": [-1, 2]}, r"got \[-1, 2\]"),
            ("confidence", {"classes": "12"}, "got '12'"),
            ("confidence", {"classes": 5}, "got 5"),
            ("confidence", {"classes": {1: 2, 3: 4}}, "at least two different"),
            ("soft_cross_entropy", {"remainder": "drop"}, "bucket, spread, renormalize"),
            (
                "soft_cross_entropy",
                {"remainder": ["bucket"]},
                r"bucket, spread, renormalize, got \['bucket'\]",
            ),
            ("uncertainty_smoothing", {"low": 0.5, "high": 0.1}, "low <= high"),
            (
                "uncertainty_smoothing",
                {"low": "x"},
                "must be numbers with 0 <= low <= high <= 1, got 'x' and 0.2",
            ),
            ("product_of_experts", {"weak": -1.0}, "not negative"),
            (
                "product_of_experts",
                {"student": True},
                "must be numbers, finite and not negative, got 1.0 and True",
            ),
            ("no_such_module:f", {}, "cannot import no_such_module .*PYTHONPATH"),
            ("ensemw2s.errors:nothing", {}, "has no 'nothing'"),
            ("ensemw2s.errors:", {}, "package.module:function"),
            (":f", {}, "package.module:function"),
            ("ensemw2s.core.boosting:UNIT_KINDS", {}, "a tuple, not a function"),
            (
                "ensemw2s.core.boosting:weighted_error",
                {"scale": 2.0},
                "must take .logits, targets. and the options",
            ),
            ("builtins:min", {}, "must take .logits, targets. and the options none: no signature"),
        ],
    )
    def test_refuses_in_one_line(self, name: str, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as error:
            make_loss(name, options)
        assert "\n" not in str(error.value)

    def test_classes_beyond_the_outputs(self) -> None:
        loss = make_loss("confidence", {"classes": [0, V, V + 3]})
        message = (
            f"classes [{V}, {V + 3}] are outside of the vocabulary of m, which has 0 to {V - 1}: give ids"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            loss.check_outputs(V, "the vocabulary of m")
        make_loss("confidence", {"classes": [0, V - 1]}).check_outputs(V, "")
        make_loss("confidence").check_outputs(1, "")

    @pytest.fixture
    def own(self, monkeypatch: pytest.MonkeyPatch) -> str:
        """The name of a module that holds the functions above."""
        import sys

        monkeypatch.setitem(sys.modules, "somebodys.losses", sys.modules[__name__])
        return "somebodys.losses"

    def test_a_users_function(self, own: str) -> None:
        logits, targets = torch.randn(3, V), targets_of([0, 1, 2])
        ours = make_loss(f"{own}:own_loss", {"scale": 2.0})(logits, targets, BatchState())
        plain = make_loss("cross_entropy")(logits, targets, BatchState())
        torch.testing.assert_close(ours, 2.0 * plain)

    def test_a_users_class(self, own: str) -> None:
        logits, targets = torch.randn(3, V), targets_of([0, 1, 2])
        ours = make_loss(f"{own}:OwnClass", {"power": 2.0})(logits, targets, BatchState())
        torch.testing.assert_close(ours, own_loss(logits, targets) ** 2)
        with pytest.raises(ConfigError, match="unexpected keyword argument 'scale'"):
            make_loss(f"{own}:OwnClass", {"scale": 2.0})

    def test_a_users_function_that_reduces(self, own: str) -> None:
        loss = make_loss(f"{own}:reduced_loss")
        with pytest.raises(ConfigError, match=r"a tensor of shape \(3,\), got \(\): do not reduce"):
            loss(torch.randn(3, V), targets_of([0, 1, 2]), BatchState())

    def test_a_module_that_breaks(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "broken_losses.py").write_text("raise RuntimeError('no')\n")
        monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(ConfigError, match=r"cannot import broken_losses \(RuntimeError: no\)"):
            make_loss("broken_losses:f")

    @pytest.mark.parametrize(
        ("name", "part"),
        [
            ("soft_cross_entropy", "soft"),
            ("product_of_experts", "soft"),
            ("uncertainty_smoothing", "uncertainty"),
        ],
    )
    def test_targets_that_lack_something(self, name: str, part: str) -> None:
        with pytest.raises(ValueError, match=f"needs targets with {part}"):
            make_loss(name)(torch.randn(1, V), targets_of([0]), BatchState())


def test_smoothing_rises_with_the_uncertainty() -> None:
    logits = torch.randn(3, V, generator=torch.Generator().manual_seed(0))
    targets = targets_of([1, 1, 4], uncertainty=torch.tensor([0.0, 0.5, 1.0]))
    ours = make_loss("uncertainty_smoothing", {"low": 0.1, "high": 0.3})(logits, targets, BatchState())
    for i, smoothing in enumerate((0.1, 0.2, 0.3)):
        expected = torch.nn.functional.cross_entropy(logits[i], targets.labels[i], label_smoothing=smoothing)
        torch.testing.assert_close(ours[i], expected)


def test_losses_without_thresholds_do_not_run_the_model_twice() -> None:
    def never() -> Iterator[tuple[torch.Tensor, Targets]]:
        raise AssertionError("the model was run")
        yield

    assert prepare_batch(make_loss("cross_entropy"), never(), 0.3) == BatchState(0.3)


def test_rows_of_all_workers_are_gathered() -> None:
    logits, targets = torch.randn(6, V), targets_of([0, 1, 0, 1, 0, 1])
    loss = make_loss("confidence", {"classes": (0, 1)})
    halves = [(logits[i::2], Targets(targets.labels[i::2], targets.weights[i::2])) for i in (0, 1)]
    rows = [loss.statistics(*half) for half in halves]
    whole = prepare_batch(loss, [(logits, targets)], 0.5)
    for rank in (0, 1):
        mine = prepare_batch(loss, [halves[rank]], 0.5, gather=lambda own: torch.cat(rows))
        torch.testing.assert_close(mine.prepared, whole.prepared)


def training_rows() -> tuple[TrainingSet, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Seven rows of different lengths, with a soft label and an uncertainty for each target position."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 300, size=int(k)).astype(np.int32) for k in rng.integers(2, 12, size=7)]
    targets = [rng.integers(1, 300, size=int(k)).astype(np.int32) for k in rng.integers(1, 5, size=7)]
    weights = [rng.integers(0, 4, size=len(t)).astype(np.float64) for t in targets]
    data = TrainingSet(prompts, targets, weights, np.array([len(t) for t in targets], dtype=np.float64))
    ids = torch.from_numpy(np.stack([rng.permutation(300)[:3] for _ in range(28)]).reshape(7, 4, 3))
    probs = torch.from_numpy(rng.dirichlet(np.ones(4), (7, 4))[..., :3]).float()
    return data, ids, probs, torch.from_numpy(rng.random((7, 4))).float()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("soft_cross_entropy", {}),
        ("product_of_experts", {}),
        ("uncertainty_smoothing", {"high": 0.5}),
        ("confidence", {"warmup": 0.0}),
        ("confidence", {"warmup": 0.0, "classes": tuple(range(1, 300))}),
    ],
)
def test_the_micro_batch_size_changes_nothing(tiny_weak: Path, name: str, options: dict[str, Any]) -> None:
    data, ids, probs, uncertainty = training_rows()
    model = load_model(ModelConfig(path=str(tiny_weak)), device="cpu", dtype=torch.float32, for_training=True)
    loss = make_loss(name, options)

    def gradient(division: list[tuple[int, ...]], forget_the_rest: bool = False) -> torch.Tensor:
        batches = [(collate(data, MicroBatch(rows), 0), list(rows)) for rows in division]

        def forward(batch: dict[str, torch.Tensor], rows: list[int]) -> tuple[torch.Tensor, Targets]:
            k = batch["labels"].shape[1]
            inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "position_ids")}
            logits = model(**inputs, use_cache=False, logits_to_keep=k + 1).logits[:, :-1].float()
            soft = SoftTargets(ids[rows][:, -k:], probs[rows][:, -k:])
            return logits, Targets(batch["labels"], batch["weights"], soft, uncertainty[rows][:, -k:])

        model.zero_grad()
        whole = prepare_batch(loss, (forward(*b) for b in batches), progress=0.5)
        for part in batches:
            state = prepare_batch(loss, [forward(*part)], progress=0.5) if forget_the_rest else whole
            logits, targets = forward(*part)
            ((loss(logits, targets, state) * targets.weights).sum() / data.denominators.sum()).backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    whole = gradient([tuple(range(7))])
    single = [(i,) for i in range(7)]
    for division in (single, [(6, 2, 0), (1, 5), (3, 4)]):
        torch.testing.assert_close(gradient(division), whole, rtol=1e-4, atol=1e-6)
    if loss.whole_batch:
        assert (gradient(single, forget_the_rest=True) - whole).abs().max() > 1e-3 * whole.abs().max()
