"""What boosting reweights: tokens, windows of tokens, whole samples, or choices, over ragged token arrays.

Tokens of all samples lie one after another in flat arrays; `offsets` (n_samples + 1,) says where each sample
starts. A unit is a run of consecutive tokens of one sample, so a unit has offsets of the same form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemw2s.core._checks import (
    BoolArray,
    FloatArray,
    IntArray,
    as_flags,
    as_offsets,
    as_weights,
    check_choice,
)
from ensemw2s.core._parts import row_sums
from ensemw2s.core.levels import LevelWeights

UnitKind = Literal["token", "window", "sample", "choice"]
UNIT_KINDS: tuple[UnitKind, ...] = ("token", "window", "sample", "choice")


def sample_distribution(
    weights: ArrayLike | LevelWeights, offsets: ArrayLike, how: str = "mean"
) -> FloatArray:
    """Probability of each sample, from the weights of its tokens.

    Args:
        weights: (n_tokens,) token weights.
        offsets: (n_samples + 1,) where each sample starts.
        how: "mean" (a long sample is not drawn more often for being long) or "sum".

    Returns:
        (n_samples,) float64 that sums to 1.

    Raises:
        ValueError: empty samples, wrong lengths, negative or non-finite weights, unknown `how`.
    """
    check_choice(how, ("mean", "sum"), "how")
    values = weights if isinstance(weights, LevelWeights) else as_weights(weights)
    bounds = as_offsets(offsets, values.size)
    mass = row_sums(values, bounds)
    if how == "mean":
        mass = mass / np.diff(bounds)
    mass /= mass.sum()
    return mass


@dataclass(frozen=True, eq=False)
class Units:
    """The units of one training set. Make it with `Units.build`.

    What follows from the samples' offsets is computed when it is asked for: with a billion tokens, two arrays of one entry a
    token would hold twice the memory of the weights.

    Attributes:
        kind: "token", "window", "sample" or "choice".
        sample_offsets: (n_samples + 1,) int64, where each sample's tokens start.
        window: most tokens in a unit; 1 for "token", None where a unit is a sample.
        n_units: how many.
        wrong_share: a window or sample is wrong when at least this share of its tokens is; None: when any is.
    """

    kind: UnitKind
    sample_offsets: IntArray
    window: int | None
    n_units: int
    wrong_share: float | None = None

    @classmethod
    def build(
        cls,
        offsets: ArrayLike,
        kind: UnitKind = "token",
        *,
        window: int | None = None,
        wrong_share: float | None = None,
    ) -> Units:
        """Units of the samples at `offsets` (n_samples + 1,).

        Args:
            offsets: where each sample's tokens start; no sample may be empty.
            kind: what is reweighted. "window" cuts every sample into runs of `window` tokens (the last may be
                shorter); "choice" is one unit a sample whose error is given for the sample, not for its
                tokens.
            window: tokens in a window; needed by, and only allowed for, "window".
            wrong_share: in (0, 1]; only for "window" and "sample".

        Raises:
            ValueError: bad offsets, an unknown kind, or an option that is missing or does not fit the kind.
        """
        check_choice(kind, UNIT_KINDS, "unit")
        bounds = as_offsets(offsets)
        if (kind == "window") != (window is not None):
            raise ValueError(
                f"window is needed by unit window and allowed for no other, got {window} for unit {kind}"
            )
        if wrong_share is not None:
            if kind not in ("window", "sample"):
                raise ValueError(
                    f"wrong_share is allowed for unit window or sample, got {wrong_share} for unit {kind}"
                )
            if not 0.0 < wrong_share <= 1.0:
                raise ValueError(f"wrong_share must lie in (0, 1], got {wrong_share}")
        if kind in ("sample", "choice"):
            return cls(kind, bounds, None, bounds.size - 1, wrong_share)
        size = 1 if window is None else window
        if not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f"window must be an integer of at least 1, got {window}")
        n_units = int(bounds[-1]) if size == 1 else int((-(-np.diff(bounds) // size)).sum())
        return cls(kind, bounds, int(size), n_units, wrong_share)

    @property
    def offsets(self) -> IntArray:
        """(n_units + 1,) int64, where each unit's tokens start."""
        if self.window is None:
            return self.sample_offsets
        if self.window == 1:
            return np.arange(self.n_tokens + 1, dtype=np.int64)
        sample, first_unit = self.sample_index, np.cumsum(self._per_sample) - self._per_sample
        place = np.arange(self.n_units, dtype=np.int64) - first_unit[sample]
        return np.append(self.sample_offsets[sample] + place * self.window, self.n_tokens)

    @property
    def sample_index(self) -> IntArray:
        """(n_units,) int64, the sample that each unit belongs to."""
        samples = np.arange(self.sample_offsets.size - 1, dtype=np.int64)
        return samples if self.window is None else np.repeat(samples, self._per_sample)

    @property
    def _per_sample(self) -> IntArray:
        lengths = np.diff(self.sample_offsets)
        return -(-lengths // self.window) if self.window is not None else np.ones_like(lengths)

    @property
    def n_tokens(self) -> int:
        return int(self.sample_offsets[-1])

    def place(self, unit: int) -> tuple[int, int, int]:
        """The sample of a unit, and which of its tokens, [start, stop), the unit has.

        Raises:
            ValueError: there is no such unit.
        """
        if not 0 <= unit < self.n_units:
            raise ValueError(f"unit must lie in 0..{self.n_units - 1}, got {unit}")
        first_units = np.cumsum(self._per_sample)
        sample = int(np.searchsorted(first_units, unit, side="right"))
        length = int(self.sample_offsets[sample + 1] - self.sample_offsets[sample])
        if self.window is None:
            return sample, 0, length
        start = (unit - int(first_units[sample - 1] if sample else 0)) * self.window
        return sample, start, min(start + self.window, length)

    def wrong(self, wrong: ArrayLike) -> BoolArray:
        """Which units are wrong, (n_units,) bool.

        Args:
            wrong: (n_tokens,) wrong tokens; for unit "choice" (n_samples,) wrong answers.

        Raises:
            ValueError: wrong length, or values other than booleans, 0 and 1.
        """
        flags = as_flags(wrong, self.n_units if self.kind == "choice" else self.n_tokens)
        if self.kind in ("token", "choice"):
            return flags
        offsets = self.offsets
        counts = np.add.reduceat(flags, offsets[:-1], dtype=np.int64)
        if self.wrong_share is None:
            return counts > 0
        # 14 of 25 must meet a share of 0.56: the quotient 14 / 25 rounds to it, but 0.56 * 25 exceeds 14.
        return counts / np.diff(offsets) >= self.wrong_share

    def whole(self, flags: ArrayLike) -> BoolArray:
        """(n_units,) bool: the units all of whose tokens have the flag, (n_tokens,) bool.

        Raises:
            ValueError: wrong length, or values other than booleans, 0 and 1.
        """
        values = as_flags(flags, self.n_tokens, "flags")
        return values if self.kind == "token" else np.logical_and.reduceat(values, self.offsets[:-1])

    def whole_packed(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """`whole` of flags as `numpy.packbits` packs them, packed again; where units are tokens nothing is unpacked.

        Raises:
            ValueError: wrong length.
        """
        if packed.shape != (-(-self.n_tokens // 8),):
            raise ValueError(
                f"packed flags of {self.n_tokens} tokens take {-(-self.n_tokens // 8)} bytes, got shape {packed.shape}"
            )
        if self.kind == "token":
            return packed
        return np.packbits(self.whole(np.unpackbits(packed, count=self.n_tokens).view(np.bool_)))

    @overload
    def spread(self, unit_weights: LevelWeights) -> LevelWeights: ...

    @overload
    def spread(self, unit_weights: ArrayLike) -> FloatArray: ...

    def spread(self, unit_weights: ArrayLike | LevelWeights) -> FloatArray | LevelWeights:
        """Token weights, (n_tokens,), that sum to 1: every token has the weight of its unit.

        Uniform unit weights are uniform token weights, as in round 1, and the mean over a sample's tokens is the
        weight of the sample where samples are the units. Dividing a unit's weight among its tokens instead would
        teach long units less, whatever their weight.

        Args:
            unit_weights: (n_units,) weights of the units.

        Raises:
            ValueError: wrong length, negative or non-finite weights.
        """
        values = (
            unit_weights
            if isinstance(unit_weights, LevelWeights)
            else as_weights(unit_weights, "unit_weights")
        )
        if values.size != self.n_units:
            raise ValueError(f"unit_weights must have one entry per unit, {self.n_units}, got {values.size}")
        if isinstance(values, LevelWeights):
            each = values if self.kind == "token" else values.repeated(np.diff(self.offsets))
            return each.normalized()
        tokens = values if self.kind == "token" else np.repeat(values, np.diff(self.offsets))
        shares: FloatArray = tokens / tokens.sum()
        return shares
