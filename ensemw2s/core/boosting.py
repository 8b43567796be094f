"""Multi-class AdaBoost whose uninformed learner is the pretrained model, on any unit of text.

The error, the member weight and the reweighting are those of SAMME (Zhu, Zou, Rosset, Hastie, "Multi-class
AdaBoost", 2009, algorithm 2) with the error of random guessing, 1 - 1/K, replaced by a measured prior error,
as in EnsemW2S (arXiv 2410.04571). The units, the draws of a round and the prior errors live in `units`,
`draws` and `priors`; their names are importable from here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemw2s.core._checks import (
    FloatArray,
    as_flags,
    as_vector,
    as_weights,
    check_choice,
    check_unit_interval,
    check_weights,
)
from ensemw2s.core._parts import cap, check_step, parts, scale_split, shares_after, split_mass
from ensemw2s.core.draws import (
    REWEIGHT_METHODS,
    ReweightMethod,
    RoundDraw,
    draw_round,
    draw_sample_bootstrap,
    draw_token_bootstrap,
)
from ensemw2s.core.levels import LevelWeights
from ensemw2s.core.priors import check_classes, choice_prior_error, uniform_prior_error, unigram_prior_error
from ensemw2s.core.units import UNIT_KINDS, UnitKind, Units, sample_distribution

__all__ = [
    "REWEIGHT_METHODS",
    "UNIT_KINDS",
    "BoostingState",
    "LevelWeights",
    "ReweightMethod",
    "RoundDraw",
    "UnitKind",
    "Units",
    "choice_prior_error",
    "draw_round",
    "draw_sample_bootstrap",
    "draw_token_bootstrap",
    "effective_sample_size",
    "member_decision",
    "member_weight",
    "reweight",
    "sample_distribution",
    "uniform_prior_error",
    "unigram_prior_error",
    "weighted_error",
]


def weighted_error(wrong: ArrayLike, weights: ArrayLike) -> float:
    """Share of the weight that lies on wrong units, in [0, 1].

    Args:
        wrong: (n,) booleans, or 0 and 1.
        weights: (n,) not negative; need not sum to 1.

    Raises:
        ValueError: shapes differ, or weights are negative, non-finite or all 0.
    """
    values = as_vector(weights, "weights")
    wrong_mass, right_mass = split_mass(values, as_flags(wrong, values.size))
    return wrong_mass / (wrong_mass + right_mass)


def member_weight(
    error: float,
    *,
    prior_error: float | None = None,
    n_classes: int | None = None,
    learning_rate: float = 1.0,
    eps: float = 1e-6,
) -> float:
    """Voting weight alpha = learning_rate * (log((1 - e) / e) + log(e0 / (1 - e0))).

    Positive exactly when the member errs less than the prior (before clipping).

    Args:
        error: the member's weighted error e.
        prior_error: e0, the error of the model before fine-tuning in the same unit. Give this or `n_classes`.
        n_classes: K of SAMME, at least 2; the same as prior_error = 1 - 1/K.
        learning_rate: shrinkage, greater than 0.
        eps: both errors are clipped to [eps, 1 - eps]; in (0, 0.5).

    Raises:
        ValueError: both or none of prior_error and n_classes, or a value outside its range (NaN included).
    """
    if (prior_error is None) == (n_classes is None):
        raise ValueError(
            "give exactly one of prior_error and n_classes, "
            f"got prior_error={prior_error}, n_classes={n_classes}"
        )
    if not 0.0 < eps < 0.5:
        raise ValueError(f"eps must lie in (0, 0.5), got {eps}")
    if not (learning_rate > 0.0 and math.isfinite(learning_rate)):
        raise ValueError(f"learning_rate must be a finite number greater than 0, got {learning_rate}")
    e = min(max(check_unit_interval(error, "error"), eps), 1.0 - eps)
    if n_classes is not None:
        prior_odds = min(check_classes(n_classes) - 1.0, (1.0 - eps) / eps)
    elif prior_error is not None:
        e0 = min(max(check_unit_interval(prior_error, "prior_error"), eps), 1.0 - eps)
        prior_odds = e0 / (1.0 - e0)
    return learning_rate * (math.log((1.0 - e) / e) + math.log(prior_odds))


def reweight(
    weights: ArrayLike, wrong: ArrayLike, alpha: float, *, max_weight: float | None = None
) -> FloatArray:
    """New weights proportional to weights * exp(alpha * wrong), (n,) float64 that sum to 1.

    Args:
        weights: (n,) not negative.
        wrong: (n,) booleans, or 0 and 1.
        alpha: the member weight; any finite number, however large.
        max_weight: largest weight of one unit, as a multiple of the uniform weight 1/n; at least 1. What is
            cut off goes to the other units in proportion to their weights, until none exceeds the limit.

    Raises:
        ValueError: shapes differ, bad weights, non-finite alpha, or max_weight below 1.
    """
    values = as_vector(weights, "weights")
    flags = as_flags(wrong, values.size)
    check_step(alpha, max_weight)
    wrong_mass, right_mass = split_mass(values, flags)
    if wrong_mass == 0.0 or right_mass == 0.0:
        updated: FloatArray = values / values.sum()
    else:
        wrong_share, right_share = shares_after(wrong_mass, right_mass, alpha)
        updated = scale_split(values, flags, (wrong_mass, wrong_share), (right_mass, right_share))
    return updated if max_weight is None else cap(updated, max_weight / updated.size)


def effective_sample_size(weights: ArrayLike) -> float:
    """1 / sum(w^2) of the normalized weights: n for uniform weights, 1 when one unit has them all."""
    values = as_weights(weights)
    total = float(values.sum())
    return 1.0 / math.fsum(float(np.square(values[part] / total).sum()) for part in parts(values.size))


def member_decision(
    alpha: float, drops_so_far: int, max_drops: int, on_useless: Literal["drop", "stop"] = "drop"
) -> Literal["keep", "drop", "stop"]:
    """What to do with a trained member: keep it if alpha > 0, else drop it and go on, or stop the run.

    Args:
        alpha: the member's weight.
        drops_so_far: members dropped before this one.
        max_drops: how many may be dropped; one more stops the run.
        on_useless: "stop" stops at the first member with alpha <= 0.

    Raises:
        ValueError: NaN alpha, negative counts, unknown policy.
    """
    check_choice(on_useless, ("drop", "stop"), "on_useless")
    if math.isnan(alpha):
        raise ValueError("alpha must be a number, got nan")
    if drops_so_far < 0 or max_drops < 0:
        raise ValueError(f"drops_so_far and max_drops must be at least 0, got {drops_so_far} and {max_drops}")
    if alpha > 0.0:
        return "keep"
    return "drop" if on_useless == "drop" and drops_so_far < max_drops else "stop"


@dataclass(frozen=True, eq=False)
class BoostingState:
    """All that the next round needs to know of the rounds before.

    Attributes:
        unit_weights: of n_units units, sum to 1: weights for the next round.
        alphas: (T,) float64 member weights of the kept members.
        errors: (T,) float64 errors that these alphas were made of.
        drops: members dropped so far.
    """

    unit_weights: LevelWeights
    alphas: FloatArray
    errors: FloatArray
    drops: int = 0

    @classmethod
    def start(cls, units: Units) -> BoostingState:
        """Uniform weights, no member."""
        return cls(LevelWeights.uniform(units.n_units), np.empty(0), np.empty(0))

    @property
    def weights(self) -> FloatArray:
        """(n_units,) float64 weights for the next round, made when asked for."""
        return self.unit_weights.dense()

    def update(
        self, wrong: ArrayLike, alpha: float, max_weight: float | None = None, *, error: float | None = None
    ) -> BoostingState:
        """The state after keeping a member.

        Args:
            wrong: (n_units,) the units that it got wrong.
            alpha: its weight, greater than 0 (a member at or below 0 is dropped: `drop`).
            max_weight: as in `reweight`.
            error: the error that alpha was made of; None: the weighted error of `wrong`.

        Raises:
            ValueError: alpha is not positive, error outside [0, 1], or arrays that do not fit.
        """
        if not alpha > 0.0:
            raise ValueError(f"alpha of a kept member must be greater than 0, got {alpha}")
        e = self.unit_weights.error(wrong) if error is None else check_unit_interval(error, "error")
        return replace(
            self,
            unit_weights=self.unit_weights.reweighted(wrong, alpha, max_weight=max_weight),
            alphas=np.append(self.alphas, alpha),
            errors=np.append(self.errors, e),
        )

    def add(self, alpha: float, error: float) -> BoostingState:
        """The state after keeping a member of an ensemble that is not boosted: the weights stay as they are.

        Raises:
            ValueError: alpha is not positive, or error outside [0, 1].
        """
        if not alpha > 0.0:
            raise ValueError(f"alpha of a kept member must be greater than 0, got {alpha}")
        e = check_unit_interval(error, "error")
        return replace(self, alphas=np.append(self.alphas, alpha), errors=np.append(self.errors, e))

    def drop(self) -> BoostingState:
        """The state after dropping a member: the same weights, one more drop."""
        return replace(self, drops=self.drops + 1)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Arrays for `numpy.savez`; `from_arrays` restores the state bit by bit."""
        return {
            "level": self.unit_weights.level,
            "values": self.unit_weights.values,
            "alphas": self.alphas,
            "errors": self.errors,
            "drops": np.asarray(self.drops, dtype=np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> BoostingState:
        """The state that `to_arrays` wrote.

        Raises:
            ValueError: an array is missing, alphas and errors differ in length, or the weights can be none.
        """
        missing = [name for name in ("level", "values", "alphas", "errors", "drops") if name not in arrays]
        if missing:
            raise ValueError(f"a boosting state lacks {', '.join(missing)}; it has {', '.join(arrays)}")
        alphas = np.array(arrays["alphas"], dtype=np.float64)
        errors = np.array(arrays["errors"], dtype=np.float64)
        if alphas.ndim != 1 or alphas.shape != errors.shape:
            raise ValueError(f"alphas and errors must have one length, got {alphas.shape} and {errors.shape}")
        weights = LevelWeights(np.array(arrays["level"]), np.array(arrays["values"], dtype=np.float64))
        check_weights(weights.sum(), float(weights.values.min()))
        return cls(weights, alphas, errors, int(arrays["drops"]))
