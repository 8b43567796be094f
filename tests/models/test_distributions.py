"""Distributions at given tokens are those of one plain forward pass a text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemw2s.config import ModelConfig
from ensemw2s.models.distributions import probabilities_of, top_tokens
from ensemw2s.models.loading import load_model
from ensemw2s.models.scoring import ScoreRequest


@pytest.fixture(scope="module")
def model(tiny_weak: Path) -> Any:
    return load_model(ModelConfig(path=str(tiny_weak)), device="cpu", dtype=torch.float32)


def requests() -> list[ScoreRequest]:
    rng = np.random.default_rng(3)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(1, 300, size=n).astype(np.int32)

    return [
        ScoreRequest(
            tokens(int(rng.integers(2, 9))), tuple(tokens(int(rng.integers(1, 5))) for _ in range(c))
        )
        for c in (1, 3, 1, 2)
    ]


def plain(model: Any) -> np.ndarray:
    rows = []
    for request in requests():
        for continuation in request.continuations:
            ids = torch.tensor(np.concatenate([request.prompt, continuation]), dtype=torch.long)[None]
            with torch.no_grad():
                probs = model(ids).logits[0].softmax(-1)
            begin = len(request.prompt) - 1
            rows.append(probs[begin : begin + len(continuation)])
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("batch_tokens", [16, 4096])
def test_both_are_those_of_a_plain_forward(model: Any, batch_tokens: int) -> None:
    dense = plain(model)
    ids = top_tokens(model, requests(), 5, batch_tokens=batch_tokens)
    expected = np.argsort(-dense, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(np.sort(ids), np.sort(expected))
    ids[1, 3:] = -1
    probs = probabilities_of(model, requests(), ids, batch_tokens=batch_tokens)
    wanted = np.where(ids >= 0, np.take_along_axis(dense, ids.clip(0).astype(np.int64), axis=1), 0.0)
    np.testing.assert_allclose(probs, wanted, atol=1e-6)


def test_the_models_mode_is_restored(model: Any) -> None:
    model.train()
    top_tokens(model, requests(), 2)
    assert model.training
    model.eval()
