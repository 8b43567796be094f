"""Weights of many units that take few values: for each unit which of the values it has.

All units begin with one weight, and a round multiplies the weights of those that the member got wrong by one factor. After T
rounds a unit's weight therefore depends on T bits alone, who missed it, and there are at most 2^T weights, fewer where a cap
makes some of them equal: one byte a unit tells 256 of them apart, two 65,536. What is done with weights is done with the
values and with the number of units that have each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemw2s.core._checks import BoolArray, FloatArray, IntArray, as_flags, as_weights
from ensemw2s.core._parts import PART, cap, check_step, parts, scale_split, shares_after


@dataclass(frozen=True, eq=False)
class LevelWeights:
    """n weights, finite, not negative and not all 0.

    Attributes:
        level: (n,) unsigned, the place of each unit's weight in `values`.
        values: (L,) float64, the weights that there are.
    """

    level: NDArray[np.unsignedinteger]
    values: FloatArray

    def __post_init__(self) -> None:
        if self.level.ndim != 1 or self.level.size == 0 or self.level.dtype.kind != "u":
            raise ValueError(
                f"level must be a non-empty vector of unsigned integers, got shape {self.level.shape}, dtype {self.level.dtype}"
            )
        as_weights(self.values, "values")
        if int(self.level.max()) >= self.values.size:
            raise ValueError(
                f"level must be below the number of values, {self.values.size}, got {self.level.max()}"
            )

    @classmethod
    def uniform(cls, n: int) -> LevelWeights:
        """n weights 1/n.

        Raises:
            ValueError: n is below 1.
        """
        if n < 1:
            raise ValueError(f"there must be at least one weight, got {n}")
        return cls(np.zeros(n, dtype=np.uint8), np.array([1.0 / n]))

    @classmethod
    def of(cls, weights: ArrayLike) -> LevelWeights:
        """The same as an array of weights, (n,).

        Raises:
            ValueError: weights that are negative, not finite or all 0.
        """
        values, level = np.unique(as_weights(weights), return_inverse=True)
        return cls(level.astype(np.min_scalar_type(values.size - 1)), values)

    def __len__(self) -> int:
        return self.level.size

    @property
    def size(self) -> int:
        """n."""
        return self.level.size

    def __getitem__(self, part: slice) -> FloatArray:
        weights: FloatArray = self.values[self.level[part]]
        return weights

    def dense(self) -> FloatArray:
        """(n,) float64 weights."""
        weights: FloatArray = self.values[self.level]
        return weights

    def counts(self) -> IntArray:
        """(L,) int64: how many units have each weight."""
        return self._counts(None)[:, 0]

    def sum(self) -> float:
        """Sum of the weights."""
        return math.fsum(self.values * self.counts())

    def error(self, wrong: ArrayLike) -> float:
        """Share of the weight that lies on wrong units, in [0, 1].

        Args:
            wrong: (n,) booleans, or 0 and 1.

        Raises:
            ValueError: the length differs.
        """
        wrong_mass, right_mass = self._masses(self._counts(as_flags(wrong, self.size)))
        return wrong_mass / (wrong_mass + right_mass)

    def error_among(
        self, wrong: ArrayLike, among: ArrayLike, *, least: int = 10, covered: float = 0.9
    ) -> float | None:
        """The same, estimated from some units, (n,) booleans `among`, each of which stands for those of its weight: the sum over the
        weights of the weight of all units that have it times the share of them among `among` that is wrong, divided by the sum of those
        weights of which there are any (post-stratification).

        Units that were not drawn are light ones for the most part, as (1 - w)^n of those with weight w are not: taken as they are
        they would say nothing of the heavy ones, on which the error depends.

        Args:
            wrong, among: (n,) booleans.
            least: units of a weight, of those `among`, that can stand for it; less are left out.
            covered: share of the whole weight that they have to stand for.

        Returns:
            None if they stand for less: one heavy unit that happens to be there would decide alone.
        """
        counts = self._counts(as_flags(wrong, self.size), as_flags(among, self.size, "among"))
        seen = counts.sum(axis=1)
        all_mass = self.values * self.counts()
        mass = np.where(seen >= max(least, 1), all_mass, 0.0)
        total = math.fsum(mass)
        if total <= 0.0 or total < covered * math.fsum(all_mass):
            return None
        return math.fsum(mass * counts[:, 1] / np.maximum(seen, 1)) / total

    def effective_sample_size(self) -> float:
        """1 / sum(w^2) of the normalized weights."""
        counts = self.counts()
        return 1.0 / math.fsum(np.square(self.values / math.fsum(self.values * counts)) * counts)

    def heaviest(self, n: int) -> list[int]:
        """The units of the n largest weights, or all if there are less, the largest first; of equal ones the first."""
        found: list[int] = []
        for place in np.argsort(-self.values, kind="stable"):
            for part in parts(self.size):
                if len(found) >= n:
                    return found
                here = np.flatnonzero(self.level[part] == place)[: n - len(found)]
                found += (here + part.start).tolist()
        return found

    def reweighted(self, wrong: ArrayLike, alpha: float, max_weight: float | None = None) -> LevelWeights:
        """Weights proportional to weights * exp(alpha * wrong) that sum to 1, as :func:`ensemw2s.core.boosting.reweight` has them.

        Args:
            wrong: (n,) booleans, or 0 and 1.
            alpha: any finite number.
            max_weight: largest weight, as a multiple of 1/n; at least 1.

        Raises:
            ValueError: a length that differs, alpha that is not finite, or max_weight below 1.
        """
        flags = as_flags(wrong, self.size)
        check_step(alpha, max_weight)
        counts = self._counts(flags)
        wrong_mass, right_mass = self._masses(counts)
        # Each level parts into the units that were right and those that were wrong.
        values, missed = np.repeat(self.values, 2), np.tile(np.array([False, True]), self.values.size)
        there = counts.ravel() > 0
        if wrong_mass == 0.0 or right_mass == 0.0:
            values /= wrong_mass + right_mass
        else:
            wrong_share, right_share = shares_after(wrong_mass, right_mass, alpha)
            values = scale_split(values, missed, (wrong_mass, wrong_share), (right_mass, right_share))
        if max_weight is not None:
            values[there] = cap(values[there], max_weight / self.size, counts.ravel()[there])
        kept, place = np.unique(values[there], return_inverse=True)
        narrow = np.min_scalar_type(kept.size - 1)
        moved = np.zeros(values.size, dtype=narrow)
        moved[there] = place
        level = np.empty(self.size, dtype=narrow)
        for part in parts(self.size):
            level[part] = moved[self._halves(part, flags)]
        return LevelWeights(level, kept)

    def repeated(self, times: IntArray) -> LevelWeights:
        """Each weight as often as (n,) `times` says."""
        return LevelWeights(np.repeat(self.level, times), self.values)

    def normalized(self) -> LevelWeights:
        """The same, with a sum of 1."""
        return LevelWeights(self.level, self.values / self.sum())

    def _masses(self, counts: IntArray) -> tuple[float, float]:
        """Weight of the wrong and of the right units, from (L, 2) counts of right and wrong ones."""
        return math.fsum(self.values * counts[:, 1]), math.fsum(self.values * counts[:, 0])

    def _halves(self, part: slice, flags: BoolArray | None) -> IntArray:
        halves = self.level[part].astype(np.intp)
        halves *= 2
        if flags is not None:
            halves += flags[part]
        return halves

    def _counts(self, flags: BoolArray | None, among: BoolArray | None = None) -> IntArray:
        """(L, 2) int64: how many units of each level are right and wrong."""
        counts = np.zeros(2 * self.values.size, dtype=np.int64)
        # Parts that are long beside the counts, which are added to after each.
        for part in parts(self.size, max(PART, 4 * counts.size)):
            halves = self._halves(part, flags)
            found = np.bincount(halves if among is None else halves[among[part]])
            counts[: found.size] += found
        return counts.reshape(-1, 2)
