"""What each optimizer step sees: training sets, batches, and their division over workers and micro-batches.

The division never changes the objective. One effective batch B has the loss

    sum over target tokens (i, j) in B of  weight[i, j] * cross_entropy[i, j]  /  sum over i in B of denominator[i]

whatever the micro-batch size and the number of workers. Every rank knows the whole plan, so that the denominators of
the whole batch are known without communication.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ensemw2s.config import TrainingConfig


@dataclass(frozen=True)
class TrainingSet:
    """Rows to train on.

    Attributes:
        prompts: per row, int32 token ids (p_i,).
        targets: per row, int32 target token ids (m_i,), the end-of-text token included.
        weights: per row, loss weights (m_i,), float32 or float64; 0 masks a token.
        denominators: (n,) float64, what each row adds to the normalizer of its batch.
        soft: per row the distributions at its targets, token ids (m_i, k_i) int32, -1 pads, and probabilities (m_i, k_i).
        uncertainty: (n,) of each row's label, in [0, 1].
        groups: (n,) int64, not descending: rows with one number are one sample. They share their batch, and a batch's size
            counts samples. None: each row is one.
    """

    prompts: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    weights: Sequence[np.ndarray]
    denominators: np.ndarray
    soft: Sequence[tuple[np.ndarray, np.ndarray]] | None = None
    uncertainty: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.prompts)
        if not (len(self.targets) == len(self.weights) == len(self.denominators) == n):
            raise ValueError("prompts, targets, weights and denominators must have one entry a row")
        if n == 0:
            raise ValueError("a training set needs at least one row")
        for name in ("soft", "uncertainty", "groups"):
            part = getattr(self, name)
            if part is not None and len(part) != n:
                raise ValueError(f"{name} must have one entry a row: {len(part)} for {n} rows")
        if self.soft is not None:
            for i, (ids, probs) in enumerate(self.soft):
                if ids.shape != probs.shape or ids.ndim != 2 or len(ids) != len(self.targets[i]):
                    raise ValueError(
                        f"row {i}: soft must be two (m, k) arrays with m = {len(self.targets[i])} targets, "
                        f"got {ids.shape} and {probs.shape}"
                    )
        if self.groups is not None and bool((np.diff(self.groups) < 0).any()):
            raise ValueError("groups must not descend")

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def n_tokens(self) -> int:
        """Tokens forwarded in one epoch, prompts included."""
        return int(sum(len(p) + len(t) for p, t in zip(self.prompts, self.targets, strict=True)))

    @property
    def samples(self) -> list[np.ndarray]:
        """Per sample the indices of its rows, in order."""
        rows = np.arange(len(self))
        if self.groups is None:
            return list(rows[:, None])
        return np.split(rows, np.flatnonzero(np.diff(self.groups)) + 1)

    @classmethod
    def uniform(cls, prompts: Sequence[np.ndarray], targets: Sequence[np.ndarray]) -> TrainingSet:
        """Every target token counts once."""
        lengths = np.array([len(t) for t in targets], dtype=np.float64)
        return cls(prompts, targets, [np.ones(len(t)) for t in targets], lengths)

    @classmethod
    def weighted(
        cls,
        prompts: Sequence[np.ndarray],
        targets: Sequence[np.ndarray],
        weights: np.ndarray,
        denominators: np.ndarray,
    ) -> TrainingSet:
        """Target tokens that count as the flat `weights`, (sum of m_i,), say."""
        ends = np.cumsum([len(t) for t in targets])[:-1]
        return cls(prompts, targets, np.split(weights, ends), denominators)


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank: row indices (may be empty, then the rank only takes part)."""

    rows: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One optimizer step as one rank sees it: its micro-batches, and the normalizer and the tokens of the whole effective batch."""

    index: int
    epoch: int
    micro_batches: tuple[MicroBatch, ...]
    denominator: float
    tokens: int


class BatchPlan:
    """The deterministic sequence of optimizer steps.

    Args:
        data: the training set.
        config: epochs, batch_size and micro_batch_size are used.
        seed: seed of the order; epoch e is shuffled by (seed, e).
        world_size: number of data-parallel workers.
    """

    def __init__(self, data: TrainingSet, config: TrainingConfig, seed: int, world_size: int = 1) -> None:
        self.data, self.config, self.seed, self.world_size = data, config, seed, world_size
        self._samples = data.samples
        self.steps_per_epoch = math.ceil(len(self._samples) / config.batch_size)
        self.n_steps = self.steps_per_epoch * config.epochs
        largest = sorted((len(rows) for rows in self._samples), reverse=True)[: config.batch_size]
        rows_per_rank = math.ceil(sum(largest) / world_size)
        #: micro-batches per step and rank; the same for every step, as gradient accumulation needs it
        self.accumulation = math.ceil(rows_per_rank / config.micro_batch_size)
        self._lengths = np.array([len(p) + len(t) for p, t in zip(data.prompts, data.targets, strict=True)])

    def steps(self, rank: int = 0, start: int = 0) -> Iterator[Step]:
        """The steps of one rank from step `start` on."""
        size = self.config.batch_size
        for epoch in range(start // self.steps_per_epoch, self.config.epochs):
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self._samples))
            for k in range(self.steps_per_epoch):
                index = epoch * self.steps_per_epoch + k
                if index < start:
                    continue
                batch = np.concatenate([self._samples[i] for i in order[k * size : (k + 1) * size]])
                yield Step(
                    index,
                    epoch,
                    self._divide(batch, rank),
                    float(self.data.denominators[batch].sum()),
                    int(self._lengths[batch].sum()),
                )

    def _divide(self, batch: np.ndarray, rank: int) -> tuple[MicroBatch, ...]:
        # Rows of like length share a micro-batch, which saves padding; ranks take turns, which balances them.
        ordered = batch[np.argsort(self._lengths[batch], kind="stable")]
        mine = ordered[rank :: self.world_size]
        parts = np.array_split(mine, self.accumulation)
        return tuple(MicroBatch(tuple(int(i) for i in part)) for part in parts)


def learning_rate_at(step: int, n_steps: int, config: TrainingConfig) -> float:
    """Learning rate of optimizer step `step` (from 0): linear warm-up to the peak, then the configured decay to 0."""
    warmup = math.ceil(config.warmup_ratio * n_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, n_steps - warmup)
    if config.schedule == "linear":
        return config.learning_rate * (1.0 - progress)
    return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
