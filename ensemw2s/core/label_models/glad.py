"""GLAD: members of different ability, questions of different difficulty, learned without truth.

Whitehill, Ruvolo, Wu, Bergsma and Movellan, "Whose vote should count more: optimal integration of labels from labelers
of unknown expertise", NeurIPS 2009.
"""

from __future__ import annotations

import numpy as np

from ensemw2s.core._ascent import climb
from ensemw2s.core._checks import FloatArray
from ensemw2s.core._ragged import row_log_softmax, row_logsumexp
from ensemw2s.core.label_models.votes import ChoiceVotes, Labels

_NEWTON_STEPS = 4


def glad(
    votes: ChoiceVotes,
    *,
    ability_mean: float = 1.0,
    ability_sd: float = 1.0,
    log_easiness_mean: float = 1.0,
    log_easiness_sd: float = 1.0,
    tolerance: float = 1e-8,
    max_iterations: int = 2000,
) -> Labels:
    """Posterior of each question's truth given the members' own choices, by EM.

    Model (section 2): member t answers question i right with probability sigmoid(ability_t * easiness_i), easiness
    = exp(b_i) > 0, and else with one of its other K_i - 1 choices, all alike; the truth is uniform over the choices.
    Priors (section 3): ability ~ N(1, 1), b ~ N(1, 1); they are what keeps both finite, and with few members they
    decide much. The paper maximizes by conjugate gradients; here the M-step is a few damped Newton steps on the
    abilities, then on each b_i, none of which is taken unless the expected log-posterior rises: a generalized EM
    (Dempster, Laird and Rubin, 1977), whose log-posterior never falls. It starts from the mean of the members'
    probabilities: from equal abilities, members whose choices are symmetric would stay equal until rounding decides.

    Args:
        votes: the members' own choices are modelled; their probabilities make the start, alphas are not used.
        ability_mean, ability_sd, log_easiness_mean, log_easiness_sd: the priors.
        tolerance: EM stops when the log-posterior of a question rises by less (nats).
        max_iterations: bound on the iterations.

    Returns:
        Labels; `details` holds abilities (T,), log_easiness (n,) and the path of the log-posterior. `weights` is None:
        what a member counts depends on the question.

    Raises:
        ValueError: a standard deviation that is not positive, or no question with 2 choices.
    """
    if not (ability_sd > 0.0 and log_easiness_sd > 0.0):
        raise ValueError(
            f"ability_sd and log_easiness_sd must be greater than 0, got {ability_sd} and {log_easiness_sd}"
        )
    counts, offsets = votes.n_choices, votes.offsets
    informative = counts > 1
    if not informative.any():
        raise ValueError("glad needs questions with at least 2 choices, got none")
    log_others = np.log(np.maximum(counts - 1, 1))
    chosen = offsets[:-1] + votes.answers
    log_prior = np.repeat(-np.log(counts), counts)
    ability = np.full(votes.n_members, float(ability_mean))
    b = np.full(counts.size, float(log_easiness_mean))

    def prior() -> float:
        of_ability = np.square((ability - ability_mean) / ability_sd).sum()
        return -0.5 * float(
            of_ability + np.square((b - log_easiness_mean) / log_easiness_sd)[informative].sum()
        )

    path: list[float] = []
    hit = np.exp(votes.logprobs).mean(axis=0)[chosen]
    while True:
        # A question with one choice is answered right by everybody, which must not pass for ability.
        ability = _abilities(ability, b[informative], hit[:, informative], ability_mean, ability_sd)
        b = np.where(informative, _easiness(ability, b, hit, log_easiness_mean, log_easiness_sd), b)
        right, wrong = _log_sigmoids(ability[:, None] * np.exp(b))
        wrong = wrong - log_others
        joint = log_prior + np.repeat(wrong.sum(axis=0), counts)
        np.add.at(joint, chosen.ravel(), (right - wrong).ravel())
        path.append(float(row_logsumexp(joint, offsets)[informative].sum()) + prior())
        if len(path) > max_iterations or (len(path) > 1 and path[-1] - path[-2] <= tolerance * counts.size):
            break
        hit = np.exp(row_log_softmax(joint, offsets))[chosen]
    details = {
        "abilities": [float(a) for a in ability],
        "log_easiness": [float(x) for x in b],
        "log_posteriors": path,
    }
    return Labels.from_scores(joint, offsets, details=details)


def _log_sigmoids(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """log sigmoid(x) and log sigmoid(-x)."""
    return -np.logaddexp(0.0, -x), -np.logaddexp(0.0, x)


def _expected(x: FloatArray, hit: FloatArray) -> FloatArray:
    right, wrong = _log_sigmoids(x)
    return hit * right + (1.0 - hit) * wrong


def _abilities(ability: FloatArray, b: FloatArray, hit: FloatArray, mean: float, sd: float) -> FloatArray:
    """Newton ascent; given the rest the objective is strictly concave in each ability, apart from the others."""
    easiness = np.exp(b)

    def objective(a: FloatArray) -> FloatArray:
        value: FloatArray = _expected(a[:, None] * easiness, hit).sum(axis=1)
        return value - 0.5 * np.square((a - mean) / sd)

    for _ in range(_NEWTON_STEPS):
        p = np.exp(_log_sigmoids(ability[:, None] * easiness)[0])
        slope = ((hit - p) * easiness).sum(axis=1) - (ability - mean) / sd**2
        curvature = (p * (1.0 - p) * easiness**2).sum(axis=1) + 1.0 / sd**2
        ability = climb(objective, ability, slope / curvature)
    return ability


def _easiness(ability: FloatArray, b: FloatArray, hit: FloatArray, mean: float, sd: float) -> FloatArray:
    """Ascent with the expected curvature, which is positive where the true one need not be."""

    def objective(x: FloatArray) -> FloatArray:
        value: FloatArray = _expected(ability[:, None] * np.exp(x), hit).sum(axis=0)
        return value - 0.5 * np.square((x - mean) / sd)

    for _ in range(_NEWTON_STEPS):
        logit = ability[:, None] * np.exp(b)
        p = np.exp(_log_sigmoids(logit)[0])
        slope = ((hit - p) * logit).sum(axis=0) - (b - mean) / sd**2
        curvature = (p * (1.0 - p) * logit**2).sum(axis=0) + 1.0 / sd**2
        b = climb(objective, b, slope / curvature)
    return b
