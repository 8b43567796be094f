"""Difficulty by item response theory, over the right and wrong answers of a pool of models.

Rasch, "Probabilistic models for some intelligence and attainment tests", 1960; Birnbaum in Lord and Novick, 1968 (two
parameters); over language models for example Lalor, Wu and Yu, 2019, and py-irt. Point estimates are posterior modes
(MAP; Mislevy, "Bayes modal estimation in item response models", Psychometrika 51, 1986): with few models the priors
keep every difficulty finite, also that of a question which all models got right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._ascent import climb
from ensemw2s.core._checks import FloatArray, check_choice

#: Below this many models a slope for every question is mostly its prior; a rule of thumb, not from the literature.
MIN_MODELS_2PL = 30

_MAX_ITERATIONS = 2000


@dataclass(frozen=True)
class IrtPriors:
    """Normal priors: ability ~ N(0, ability_sd^2), difficulty ~ N(0, difficulty_sd^2), log slope ~ N(0, log_slope_sd^2)."""

    ability_sd: float = 1.0
    difficulty_sd: float = 2.0
    log_slope_sd: float = 0.5

    def __post_init__(self) -> None:
        for name in ("ability_sd", "difficulty_sd", "log_slope_sd"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number greater than 0, got {getattr(self, name)}")


@dataclass(frozen=True, eq=False)
class IrtFit:
    """A fitted item response model.

    Attributes:
        model: "rasch" or "2pl".
        ability: (M,) of the models.
        difficulty: (n,) of the questions, on the scale of the abilities; larger is harder.
        slope: (n,) discrimination of the questions; all 1 for rasch.
        log_posteriors: one per iteration, never falls.
        converged: the last iteration rose by less than the tolerance.
    """

    model: str
    ability: FloatArray
    difficulty: FloatArray
    slope: FloatArray
    log_posteriors: tuple[float, ...]
    converged: bool


def fit_irt(
    responses: ArrayLike,
    model: Literal["rasch", "2pl", "auto"] = "rasch",
    *,
    priors: IrtPriors | None = None,
    min_models: int = MIN_MODELS_2PL,
    tolerance: float = 1e-6,
) -> IrtFit:
    """Fit P(model m answers question i right) = sigmoid(slope_i (ability_m - difficulty_i)), slope 1 for rasch.

    Rasch: the log-posterior is strictly concave, and damped Newton steps on all parameters together (the Hessian is
    diagonal in the questions, so a step costs a system of M unknowns) find its only maximum. 2pl: not concave; scoring
    steps on the abilities and on each question's (log slope, difficulty) in turn, each halved until the log-posterior
    does not fall, starting from the rasch fit.

    Args:
        responses: (M, n) 1 right, 0 wrong, NaN not asked.
        model: "auto" takes 2pl where there are at least min_models models.
        priors: default `IrtPriors()`.
        min_models: fewest models for 2pl.
        tolerance: nats; the fit stops when the log-posterior rises by less.

    Raises:
        ValueError: other values or another shape, a model or question without any answer, 2pl with fewer models.
    """
    right, asked = _as_responses(responses)
    check_choice(model, ("rasch", "2pl", "auto"), "model")
    enough = right.shape[0] >= min_models
    if model == "2pl" and not enough:
        raise ValueError(
            f"2pl needs at least min_models={min_models} models, got {right.shape[0]}: use rasch, or lower min_models"
        )
    problem = IrtProblem(right, asked, priors if priors is not None else IrtPriors())
    rasch = _fit_rasch(problem, tolerance)
    return _fit_2pl(problem, tolerance, rasch) if model == "2pl" or (model == "auto" and enough) else rasch


@dataclass(frozen=True, eq=False)
class IrtParameters:
    """ability (M,), difficulty (n,) and log_slope (n,)."""

    ability: FloatArray
    difficulty: FloatArray
    log_slope: FloatArray

    def logits(self) -> FloatArray:
        """(M, n) slope_i (ability_m - difficulty_i)."""
        values: FloatArray = np.exp(self.log_slope) * (self.ability[:, None] - self.difficulty)
        return values


@dataclass(frozen=True, eq=False)
class IrtProblem:
    """Responses and priors, and what follows from them.

    Attributes:
        right: (M, n) 1 where the model was asked and is right, else 0.
        asked: (M, n) 1 where it was asked, else 0.
    """

    right: FloatArray
    asked: FloatArray
    priors: IrtPriors

    def log_posterior(self, at: IrtParameters) -> float:
        """Log-likelihood plus log-priors, constants left out."""
        return float(
            self._log_likelihoods(at).sum()
            - 0.5 * np.square(at.ability / self.priors.ability_sd).sum()
            + self._question_priors(at).sum()
        )

    def by_model(self, at: IrtParameters) -> FloatArray:
        """(M,) parts of the log-posterior that hold one ability each."""
        parts: FloatArray = self._log_likelihoods(at).sum(axis=1)
        return parts - 0.5 * np.square(at.ability / self.priors.ability_sd)

    def by_question(self, at: IrtParameters) -> FloatArray:
        """(n,) parts of the log-posterior that hold one question's parameters each."""
        parts: FloatArray = self._log_likelihoods(at).sum(axis=0)
        return parts + self._question_priors(at)

    def gradient(self, at: IrtParameters) -> IrtParameters:
        """Gradient of the log-posterior."""
        slope, logit = np.exp(at.log_slope), at.logits()
        residual = self.right - self.asked * _sigmoid(logit)
        return IrtParameters(
            residual @ slope - at.ability / self.priors.ability_sd**2,
            -slope * residual.sum(axis=0) - at.difficulty / self.priors.difficulty_sd**2,
            (residual * logit).sum(axis=0) - at.log_slope / self.priors.log_slope_sd**2,
        )

    def information(self, at: IrtParameters) -> FloatArray:
        """(M, n) asked * p (1 - p), the curvature of each answer's log-likelihood in its logit."""
        p = _sigmoid(at.logits())
        return self.asked * p * (1.0 - p)

    def _log_likelihoods(self, at: IrtParameters) -> FloatArray:
        logit = at.logits()
        values: FloatArray = self.right * logit - self.asked * np.logaddexp(0.0, logit)
        return values

    def _question_priors(self, at: IrtParameters) -> FloatArray:
        of_difficulty = np.square(at.difficulty / self.priors.difficulty_sd)
        values: FloatArray = -0.5 * (of_difficulty + np.square(at.log_slope / self.priors.log_slope_sd))
        return values


def _fit_rasch(problem: IrtProblem, tolerance: float) -> IrtFit:
    n_models, n = problem.right.shape
    at = IrtParameters(np.zeros(n_models), np.zeros(n), np.zeros(n))
    path = [problem.log_posterior(at)]
    converged = False
    while not converged and len(path) <= _MAX_ITERATIONS:
        weight, slope = problem.information(at), problem.gradient(at)
        # The negative Hessian is [[A, -weight], [-weight', D]] with diagonal A and D; eliminate the questions.
        of_models = weight.sum(axis=1) + problem.priors.ability_sd**-2
        of_questions = weight.sum(axis=0) + problem.priors.difficulty_sd**-2
        scaled = weight / of_questions
        step_ability = np.linalg.solve(
            np.diag(of_models) - scaled @ weight.T, slope.ability + scaled @ slope.difficulty
        )
        step_difficulty = (slope.difficulty + step_ability @ weight) / of_questions
        step = np.concatenate([step_ability, step_difficulty])[:, None]
        start = np.concatenate([at.ability, at.difficulty])[:, None]

        def whole(values: FloatArray) -> FloatArray:
            moved = IrtParameters(values[:n_models, 0], values[n_models:, 0], np.zeros(n))
            return np.array([problem.log_posterior(moved)])

        moved = climb(whole, start, step)[:, 0]
        at = IrtParameters(moved[:n_models], moved[n_models:], at.log_slope)
        path.append(problem.log_posterior(at))
        converged = path[-1] - path[-2] <= tolerance
    return IrtFit("rasch", at.ability, at.difficulty, np.ones(n), tuple(path), converged)


def _fit_2pl(problem: IrtProblem, tolerance: float, start: IrtFit) -> IrtFit:
    at = IrtParameters(start.ability, start.difficulty, np.zeros(start.difficulty.size))
    path = [problem.log_posterior(at)]
    converged = False
    while not converged and len(path) <= _MAX_ITERATIONS:
        at = _step_questions(problem, _step_ability(problem, at))
        path.append(problem.log_posterior(at))
        converged = path[-1] - path[-2] <= tolerance
    return IrtFit("2pl", at.ability, at.difficulty, np.exp(at.log_slope), tuple(path), converged)


def _step_ability(problem: IrtProblem, at: IrtParameters) -> IrtParameters:
    curvature = problem.information(at) @ np.exp(2.0 * at.log_slope) + problem.priors.ability_sd**-2
    step = problem.gradient(at).ability / curvature
    return replace(at, ability=climb(lambda a: problem.by_model(replace(at, ability=a)), at.ability, step))


def _step_questions(problem: IrtProblem, at: IrtParameters) -> IrtParameters:
    slope, logit, weight = np.exp(at.log_slope), at.logits(), problem.information(at)
    uphill = problem.gradient(at)
    # Fisher information of (difficulty, log slope), with the priors': positive definite, so the step ascends.
    dd = slope**2 * weight.sum(axis=0) + problem.priors.difficulty_sd**-2
    ss = (weight * logit**2).sum(axis=0) + problem.priors.log_slope_sd**-2
    ds = -slope * (weight * logit).sum(axis=0)
    determinant = dd * ss - ds**2
    step = np.stack(
        [
            (ss * uphill.difficulty - ds * uphill.log_slope) / determinant,
            (dd * uphill.log_slope - ds * uphill.difficulty) / determinant,
        ]
    )

    def parts(values: FloatArray) -> FloatArray:
        return problem.by_question(replace(at, difficulty=values[0], log_slope=values[1]))

    difficulty, log_slope = climb(parts, np.stack([at.difficulty, at.log_slope]), step)
    return replace(at, difficulty=difficulty, log_slope=log_slope)


def _as_responses(responses: ArrayLike) -> tuple[FloatArray, FloatArray]:
    values = np.asarray(responses, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"responses must be a non-empty array (models, questions), got shape {values.shape}")
    asked = ~np.isnan(values)
    if not np.isin(values[asked], (0.0, 1.0)).all():
        raise ValueError("responses must be 1 (right), 0 (wrong) or NaN (not asked), got other values")
    for axis, name in ((1, "model"), (0, "question")):
        empty = ~asked.any(axis=axis)
        if empty.any():
            raise ValueError(f"every {name} needs an answer, {name} {int(np.argmax(empty))} has none")
    return np.where(asked, values, 0.0), asked.astype(np.float64)


def _sigmoid(x: FloatArray) -> FloatArray:
    value: FloatArray = np.exp(-np.logaddexp(0.0, -x))
    return value
