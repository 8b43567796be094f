"""Losses that look at one position at a time: cross-entropies, label smoothing by uncertainty, product of experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ensemw2s.training.losses.base import BatchState, Targets, TokenLoss, is_number
from ensemw2s.training.losses.formulas import (
    REMAINDERS,
    Remainder,
    hard_cross_entropy,
    product_of_experts,
    smoothed_cross_entropy,
    soft_cross_entropy,
)


@dataclass(frozen=True)
class CrossEntropy(TokenLoss):
    """-log q(label)."""

    def __call__(self, logits: Tensor, targets: Targets, state: BatchState) -> Tensor:
        return hard_cross_entropy(logits, targets.labels)


@dataclass(frozen=True)
class SoftCrossEntropy(TokenLoss):
    """Cross-entropy with top-k token distributions (`formulas.soft_cross_entropy`)."""

    needs: ClassVar[frozenset[str]] = frozenset({"soft"})
    remainder: Remainder = "bucket"

    def __post_init__(self) -> None:
        if self.remainder not in REMAINDERS:
            raise ValueError(f"remainder must be one of {', '.join(REMAINDERS)}, got {self.remainder!r}")

    def __call__(self, logits: Tensor, targets: Targets, state: BatchState) -> Tensor:
        return soft_cross_entropy(logits, self.needed(targets.soft, "soft"), self.remainder)


@dataclass(frozen=True)
class UncertaintySmoothing(TokenLoss):
    """Label smoothing by the vote's uncertainty u: smoothing = low + (high - low) u.

    Wang et al., "Uncertainty aware learning for language model alignment" (UAL, arXiv 2406.04854): the smoothing of each
    sample is a linear function of its uncertainty. There the uncertainty is estimated by a larger model; here it is
    the vote's. The paper's mapping has constants of its data; here its two ends are options.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"uncertainty"})
    low: float = 0.0
    high: float = 0.2

    def __post_init__(self) -> None:
        if not (is_number(self.low) and is_number(self.high) and 0.0 <= self.low <= self.high <= 1.0):
            raise ValueError(
                f"low and high must be numbers with 0 <= low <= high <= 1, got {self.low!r} and {self.high!r}"
            )

    def __call__(self, logits: Tensor, targets: Targets, state: BatchState) -> Tensor:
        uncertainty = self.needed(targets.uncertainty, "uncertainty")
        smoothing = self.low + (self.high - self.low) * uncertainty.float()
        return smoothed_cross_entropy(logits, targets.labels, smoothing)


@dataclass(frozen=True)
class ProductOfExperts(TokenLoss):
    """The vote times the student as target (`formulas.product_of_experts`); weak and student are exponents."""

    needs: ClassVar[frozenset[str]] = frozenset({"soft"})
    weak: float = 1.0
    student: float = 1.0

    def __post_init__(self) -> None:
        for value in (self.weak, self.student):
            if not (is_number(value) and 0.0 <= value < float("inf")):
                raise ValueError(
                    f"weak and student must be numbers, finite and not negative, got {self.weak!r} and {self.student!r}"
                )

    def __call__(self, logits: Tensor, targets: Targets, state: BatchState) -> Tensor:
        return product_of_experts(logits, self.needed(targets.soft, "soft"), self.weak, self.student)
