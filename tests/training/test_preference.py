"""Preference optimisation: TRL's loss is the paper's, it moves the right way, and a training that was cut goes on to the same end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemw2s.config import LoraConfig, ModelConfig, PreferenceConfig, TrainingConfig
from ensemw2s.errors import TrainingDiverged
from ensemw2s.models.loading import load_model, load_tokenizer
from ensemw2s.models.storage import load_saved, load_to_train, save_model
from ensemw2s.training.preference import PreferenceReport, PreferenceRow, prefer

BETA = 0.5


def rows_of(n: int = 12) -> list[PreferenceRow]:
    rng = np.random.default_rng(5)

    def some(low: int, high: int) -> np.ndarray:
        return rng.integers(1, 300, size=int(rng.integers(low, high))).astype(np.int32)

    return [PreferenceRow(some(3, 9), some(1, 5), some(1, 5)) for _ in range(n)]


def saved(folder: Path, base: ModelConfig) -> Path:
    """A fine-tuned student: here, a model whose adapters (or weights) were moved a little."""
    model = load_model(base, device="cpu", dtype=torch.float32, for_training=True, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)
    save_model(model, load_tokenizer(base), folder, base=base)
    return folder


def train(model: Any, base: ModelConfig, scratch: Path, **changes: Any) -> PreferenceReport:
    rule = PreferenceConfig(**{"beta": BETA, "learning_rate": 1e-3, "epochs": 2, **changes})
    training = TrainingConfig(batch_size=4, micro_batch_size=2)
    return prefer(
        model,
        load_tokenizer(base),
        rows_of(),
        rule,
        training,
        seed=11,
        scratch=scratch,
        checkpoint_steps=2,
    )


def log_probability(model: Any, prompt: np.ndarray, text: np.ndarray) -> torch.Tensor:
    ids = torch.tensor(np.concatenate([prompt, text]), dtype=torch.long)
    said = model(ids[None]).logits[0].log_softmax(-1)
    places = torch.arange(len(prompt) - 1, len(ids) - 1)
    total: torch.Tensor = said[places, ids[len(prompt) :]].sum()
    return total


def margins(model: Any) -> np.ndarray:
    """How much likelier the preferred text is than the other one, a row."""
    model.eval()
    with torch.no_grad():
        return np.array(
            [
                float(
                    log_probability(model, r.prompt, r.chosen) - log_probability(model, r.prompt, r.rejected)
                )
                for r in rows_of()
            ]
        )


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["weights", "adapters"])
def test_the_loss_is_that_of_the_paper_and_it_helps(
    tiny_strong: Path, tmp_path: Path, lora: LoraConfig | None
) -> None:
    """-log sigmoid(beta * ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected))), Rafailov et al., equation 7."""
    base = ModelConfig(path=str(tiny_strong), lora=lora)
    folder = saved(tmp_path / "student", base)
    before = margins(load_saved(folder, device="cpu", merge=False, base=base))
    model = load_to_train(folder, base, device="cpu")
    report = train(model, base, tmp_path / "scratch")
    assert report.steps == len(report.losses) == 6
    # The reference is the student itself, so the first step's pairs have a margin of 0 over it.
    assert report.losses[0] == pytest.approx(math.log(2.0), abs=1e-5)
    gained = margins(model) - before
    expected = np.log1p(np.exp(-BETA * gained)).mean()
    assert expected < min(report.losses[:3])
    assert (gained > 0).mean() > 0.9
    # What is saved is whole, and is what was trained.
    save_model(model, load_tokenizer(base), tmp_path / "after", base=base)
    again = load_saved(tmp_path / "after", device="cpu", merge=False, base=base)
    np.testing.assert_allclose(margins(again), margins(model), atol=1e-5)
    assert again.config.pad_token_id == model.config.pad_token_id is None


@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "hinge"])
def test_one_step_is_made_by_hand(tiny_weak: Path, tmp_path: Path, loss: str) -> None:
    """Two steps of all rows: the second loss is the paper's formula at the weights after AdamW's first step."""
    base = ModelConfig(path=str(tiny_weak))
    folder = saved(tmp_path / "student", base)
    training = TrainingConfig(
        batch_size=12, micro_batch_size=12, warmup_ratio=0.0, schedule="constant", max_grad_norm=1e9
    )
    rule = PreferenceConfig(loss=loss, beta=BETA, learning_rate=1e-3, epochs=2)
    model = load_to_train(folder, base, device="cpu")
    report = prefer(
        model, load_tokenizer(base), rows_of(), rule, training, seed=1, scratch=tmp_path / "scratch"
    )

    ours = load_to_train(folder, base, device="cpu")
    optimizer = torch.optim.AdamW(ours.parameters(), lr=1e-3, weight_decay=0.0)
    pairs = [(r.prompt, text) for r in rows_of() for text in (r.chosen, r.rejected)]
    with torch.no_grad():
        reference = torch.stack([log_probability(ours, *pair) for pair in pairs]).reshape(-1, 2)
    # IPO's is a mean over the tokens (Azar et al. 2023, equation 17, as TRL reads it).
    lengths = torch.tensor([[len(r.chosen), len(r.rejected)] for r in rows_of()]) if loss == "ipo" else 1
    losses = []
    for _ in range(2):
        now = torch.stack([log_probability(ours, *pair) for pair in pairs]).reshape(-1, 2)
        chosen, rejected = ((now - reference) / lengths).unbind(dim=1)
        margin = chosen - rejected
        value = {
            "sigmoid": -torch.nn.functional.logsigmoid(BETA * margin),
            "ipo": (margin - 1 / (2 * BETA)) ** 2,
            "hinge": torch.relu(1 - BETA * margin),
        }[loss].mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(value.item())
    np.testing.assert_allclose(report.losses, losses, rtol=1e-4)
    trained = dict(model.named_parameters())
    assert all(torch.allclose(p, trained[n], atol=2e-4) for n, p in ours.named_parameters())


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4)], ids=["weights", "adapters"])
def test_resumed_is_uninterrupted(tiny_strong: Path, tmp_path: Path, lora: LoraConfig | None) -> None:
    base = ModelConfig(path=str(tiny_strong), lora=lora)
    folder = saved(tmp_path / "student", base)
    whole = load_to_train(folder, base, device="cpu")
    report = train(whole, base, tmp_path / "whole")

    # As left by a training that was killed after step 2; a later checkpoint is damaged.
    scratch = tmp_path / "whole"
    assert sorted(p.name for p in scratch.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    (scratch / "checkpoint-6" / "trainer_state.json").write_text("{")
    resumed = load_to_train(folder, base, device="cpu")
    again = train(resumed, base, scratch)
    assert again.losses == report.losses
    expected = dict(whole.named_parameters())
    assert all(torch.equal(p, expected[n]) for n, p in resumed.named_parameters())


def test_a_step_has_batch_size_pairs(tiny_weak: Path, tmp_path: Path) -> None:
    """Also where micro_batch_size does not divide it: 12 pairs in batches of 6 are 2 steps."""
    base = ModelConfig(path=str(tiny_weak))
    model = load_to_train(saved(tmp_path / "student", base), base, device="cpu")
    training = TrainingConfig(batch_size=6, micro_batch_size=4)
    rule = PreferenceConfig(epochs=1)
    report = prefer(model, load_tokenizer(base), rows_of(), rule, training, seed=1, scratch=tmp_path / "s")
    assert report.steps == 2


def test_a_loss_that_is_not_finite_ends_it(tiny_weak: Path, tmp_path: Path) -> None:
    base = ModelConfig(path=str(tiny_weak))
    model = load_to_train(saved(tmp_path / "student", base), base, device="cpu")
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match=r"lower strong.preference.learning_rate, now 0.001"):
        train(model, base, tmp_path / "scratch")
