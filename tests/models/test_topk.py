"""The most probable tokens against a stable sort of whole rows: ties, vocabularies that groups do not divide, k up to V."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.models.topk import most_probable


def sorted_rows(probs: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By probability descending, ties by id ascending; and what comes next."""
    values, ids = probs.sort(dim=-1, descending=True, stable=True)
    following = values[:, k].numpy() if k < probs.shape[1] else np.zeros(len(probs), dtype=np.float32)
    return ids[:, :k].numpy(), values[:, :k].numpy(), following


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    width=st.integers(1, 2000),
    k=st.integers(1, 40),
    levels=st.sampled_from([2, 50, 10**9]),
)
def test_as_a_sort_of_whole_rows(seed: int, width: int, k: int, levels: int) -> None:
    """Few levels: most places tie, the last place among them."""
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randint(0, levels, (3, width), generator=generator).float() / levels
    k = min(k, width)
    ids, values, following = sorted_rows(probs, k)
    found = most_probable(probs, k)
    assert np.array_equal(found.ids, ids)
    assert np.array_equal(found.probs, values)
    assert np.array_equal(found.residual, following)


@pytest.mark.parametrize("place", [0, 31, 32, 4000, 4095, 4096, 4099])
def test_a_single_probable_token_wherever_it_stands(place: int) -> None:
    probs = torch.zeros(2, 4100)
    probs[0, place], probs[1, 7] = 1.0, 0.5
    found = most_probable(probs, 1)
    assert found.ids.tolist() == [[place], [7]]
    assert found.residual.tolist() == [0.0, 0.0]


def test_k_is_at_least_one_and_cut_to_the_vocabulary() -> None:
    probs = torch.tensor([[0.25, 0.5, 0.25]])
    with pytest.raises(ValueError, match="at least 1"):
        most_probable(probs, 0)
    found = most_probable(probs, 9)
    assert found.ids.tolist() == [[1, 0, 2]]
    assert found.residual.tolist() == [0.0]
