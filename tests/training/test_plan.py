"""Batches: every row once an epoch, whatever the division."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.config import TrainingConfig
from ensemw2s.training.plan import BatchPlan, TrainingSet, learning_rate_at


def make_set(n: int) -> TrainingSet:
    rng = np.random.default_rng(n)
    lengths = rng.integers(1, 6, size=n)
    prompts = [np.arange(m, dtype=np.int32) for m in rng.integers(1, 9, size=n)]
    return TrainingSet(
        prompts, [np.ones(m, dtype=np.int32) for m in lengths], [np.ones(m) for m in lengths], lengths * 1.0
    )


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 40),
    batch=st.integers(1, 16),
    micro=st.integers(1, 8),
    world=st.integers(1, 4),
    epochs=st.integers(1, 3),
)
def test_every_row_once_an_epoch_over_all_ranks(
    n: int, batch: int, micro: int, world: int, epochs: int
) -> None:
    data = make_set(n)
    config = TrainingConfig(epochs=epochs, batch_size=batch, micro_batch_size=micro)
    plan = BatchPlan(data, config, seed=5, world_size=world)
    by_rank = [list(plan.steps(rank)) for rank in range(world)]
    assert all(len(steps) == plan.n_steps == epochs * math.ceil(n / batch) for steps in by_rank)
    for epoch in range(epochs):
        rows = [
            r for steps in by_rank for s in steps if s.epoch == epoch for m in s.micro_batches for r in m.rows
        ]
        assert sorted(rows) == list(range(n))
    for step in zip(*by_rank, strict=True):
        assert all(len(s.micro_batches) == plan.accumulation for s in step)
        assert all(len(m.rows) <= micro for s in step for m in s.micro_batches)
        rows = [r for s in step for m in s.micro_batches for r in m.rows]
        assert step[0].denominator == pytest.approx(data.denominators[rows].sum())


def test_starting_late_gives_the_same_steps() -> None:
    plan = BatchPlan(make_set(17), TrainingConfig(epochs=3, batch_size=4, micro_batch_size=2), seed=1)
    whole = list(plan.steps())
    assert list(plan.steps(start=7)) == whole[7:]


def test_epochs_and_seeds_have_their_own_order() -> None:
    config = TrainingConfig(epochs=2, batch_size=1, micro_batch_size=1)

    def rows(seed: int) -> list[int]:
        return [s.micro_batches[0].rows[0] for s in BatchPlan(make_set(30), config, seed).steps()]

    assert rows(1)[:30] != rows(1)[30:]
    assert rows(1) != rows(2)
    assert rows(1) == rows(1)


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [
        ("linear", 0, 0.5),  # warm-up of 2 of 10 steps: half, then the whole peak
        ("linear", 1, 1.0),
        ("linear", 2, 1.0),
        ("linear", 6, 0.5),
        ("constant", 9, 1.0),
        ("cosine", 6, 0.5),
    ],
)
def test_learning_rate(schedule: str, step: int, expected: float) -> None:
    config = TrainingConfig(learning_rate=1.0, schedule=schedule, warmup_ratio=0.2)  # type: ignore[arg-type]
    assert learning_rate_at(step, 10, config) == pytest.approx(expected)


def test_an_empty_training_set_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        TrainingSet([], [], [], np.empty(0))


def test_rows_of_a_sample_share_their_batch() -> None:
    """Five samples of 1 to 3 rows, batches of two samples: each row once an epoch, none away from its sample."""
    sizes = [3, 1, 2, 1, 3]
    groups = np.repeat(np.arange(5), sizes)
    whole = make_set(int(sum(sizes)))
    data = TrainingSet(whole.prompts, whole.targets, whole.weights, whole.denominators, groups=groups)
    config = TrainingConfig(epochs=1, batch_size=2, micro_batch_size=2)
    plan = BatchPlan(data, config, 0)
    assert plan.n_steps == 3
    # The two largest samples may meet: six rows, three micro-batches of two.
    assert plan.accumulation == 3
    batches = [[i for micro in step.micro_batches for i in micro.rows] for step in plan.steps()]
    assert sorted(i for batch in batches for i in batch) == list(range(len(data)))
    for batch in batches:
        for group in {int(groups[i]) for i in batch}:
            assert {i for i in batch if groups[i] == group} == set(np.flatnonzero(groups == group))
    for step, batch in zip(plan.steps(), batches, strict=True):
        assert step.denominator == pytest.approx(data.denominators[batch].sum())
        assert len(step.micro_batches) == 3


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("groups", np.array([1, 0]), "must not descend"),
        ("uncertainty", np.zeros(3), "one entry a row"),
        ("soft", [(np.zeros((9, 1)), np.zeros((9, 1)))] * 2, "two \\(m, k\\) arrays"),
    ],
)
def test_parts_that_do_not_fit_are_refused(part: str, value: Any, message: str) -> None:
    whole = make_set(2)
    with pytest.raises(ValueError, match=message):
        TrainingSet(whole.prompts, whole.targets, whole.weights, whole.denominators, **{part: value})
