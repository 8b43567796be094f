"""Label models that pool the members' probabilities, by given weights or by weights fitted to easy_val's truth.

Linear and logarithmic opinion pools: Genest and Zidek, "Combining probability distributions: a critique and an
annotated bibliography", Statistical Science 1(1), 1986.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from ensemw2s.core._checks import FloatArray, as_weights
from ensemw2s.core.label_models.votes import ChoiceVotes, Labels, Validation


def weighted(votes: ChoiceVotes) -> Labels:
    """The vote of the members by their boosting weights (EnsemW2S, arXiv 2410.04571).

    Where `votes.tokens` is known the members' distributions are mixed token by token and the choices scored under
    the mixture, which is the pipeline's own vote; else p(c) = sum_t alpha_t p_t(c) / sum_t alpha_t over choices.
    `Labels.level` says which.
    """
    return _linear(votes, votes.alphas)


def uniform(votes: ChoiceVotes) -> Labels:
    """The same vote with equal weights: differs from `weighted` in the weights alone."""
    return _linear(votes, np.ones(votes.n_members))


def geometric(votes: ChoiceVotes) -> Labels:
    """Logarithmic pool: p(c) proportional to prod_t p_t(c)^(alpha_t / sum alpha).

    A member that gives a choice the probability 0 vetoes it; where all choices are vetoed they tie. For choices
    scored by the sum of their tokens' log-probabilities it is the geometric mixture of the token probabilities too,
    without renormalization over the vocabulary, because a member's normalizer is the same for all choices.
    """
    weights = votes.alphas / votes.alphas.sum()
    with_say = weights > 0.0
    return Labels.from_scores(
        weights[with_say] @ votes.logprobs[with_say], votes.offsets, weights=votes.alphas.copy()
    )


def plurality(votes: ChoiceVotes) -> Labels:
    """One vote a member for its own choice; confidence and soft label are shares of the votes.

    Ties go to the tied choice with the larger mean probability, then to the lowest index.
    """
    ballots = _ballots(votes)
    shares = ballots.mean(axis=0)
    mean = np.exp(votes.logprobs).mean(axis=0)
    # Shares are multiples of 1/T, so a mean probability scaled below 1/T orders ties and nothing else.
    ranked = shares + mean / (2.0 * votes.n_members)
    choice = Labels.from_scores(ranked, votes.offsets).choice
    confidence = shares[votes.offsets[:-1] + choice]
    return Labels(choice, confidence, shares, weights=np.ones(votes.n_members))


def best_single(votes: ChoiceVotes, validation: Validation) -> Labels:
    """The answers of the member that is right most often on easy_val, ties to the earlier member."""
    right = (validation.votes.answers == validation.truth).mean(axis=1)
    best = int(np.argmax(right))
    return Labels.from_scores(
        votes.logprobs[best],
        votes.offsets,
        weights=np.eye(votes.n_members)[best],
        details={"member": best, "validation_accuracy": [float(a) for a in right]},
    )


def em_weights(
    votes: ChoiceVotes, validation: Validation, *, pseudo_answers: float = 0.0, tolerance: float = 1e-6
) -> Labels:
    """Linear pool over choices whose weights maximize the likelihood of easy_val's truth (`fit_mixture_weights`)."""
    fit = fit_mixture_weights(validation.true_logprobs, pseudo_answers=pseudo_answers, tolerance=tolerance)
    with np.errstate(divide="ignore"):
        pooled = np.log(fit.weights @ np.exp(votes.logprobs))
    details = {"log_likelihood": fit.log_likelihoods[-1], "iterations": fit.iterations, "gap": fit.gap}
    return Labels.from_scores(pooled, votes.offsets, weights=fit.weights, details=details)


@dataclass(frozen=True, eq=False)
class MixtureFit:
    """Fitted mixture weights.

    Attributes:
        weights: (T,) float64, sum to 1.
        log_likelihoods: mean log-likelihood of a question (nats, prior included), one per iteration; never falls.
        gap: the last one is at most this far below the maximum.
    """

    weights: FloatArray
    log_likelihoods: tuple[float, ...]
    gap: float

    @property
    def iterations(self) -> int:
        return len(self.log_likelihoods) - 1


def fit_mixture_weights(
    true_logprobs: ArrayLike,
    *,
    pseudo_answers: float = 0.0,
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
) -> MixtureFit:
    """Weights w that maximize f(w) = mean_i log sum_t w_t p_t(truth_i) over the simplex, by EM.

    The problem is concave in w, and EM (Dempster, Laird and Rubin, 1977; w_t <- the mean responsibility of t) never
    lowers f. By concavity f(best) - f(w) <= max_t g_t - 1, where g is the gradient of f: the iteration stops when this
    bound falls below the tolerance, so that the result is known to be within it.

    Args:
        true_logprobs: (T, n) log-probability that each member gives to the truth; at most 0, -inf allowed unless all
            members have it.
        pseudo_answers: strength of a symmetric Dirichlet prior, in answers divided evenly among the members: 0 is the
            maximum likelihood, more pulls the weights together.
        tolerance: nats a question.
        max_iterations: bound on the iterations.

    Raises:
        ValueError: bad shapes, NaN, a question that no member gives any probability, negative pseudo_answers.
    """
    values = np.asarray(true_logprobs, dtype=np.float64)
    if values.ndim != 2 or values.size == 0 or not values.max() < np.inf:
        raise ValueError(
            f"true_logprobs must be a non-empty array (members, questions) without NaN, got shape {values.shape}"
        )
    if not 0.0 <= pseudo_answers < np.inf:
        raise ValueError(f"pseudo_answers must be finite and not negative, got {pseudo_answers}")
    best = values.max(axis=0)
    if not np.isfinite(best).all():
        raise ValueError(
            f"every question needs a member that gives its truth some probability, question {int(np.argmin(best))} has none"
        )
    # Per question only ratios matter; scaled by the best member they cannot underflow all at once.
    likelihood = np.exp(values - best)
    n_members, n = likelihood.shape
    total, each = n + pseudo_answers, pseudo_answers / n_members
    weights = np.full(n_members, 1.0 / n_members)
    path = []
    for _ in range(max_iterations + 1):
        mixed = weights @ likelihood
        prior = each * float(np.log(weights).sum()) if each else 0.0
        path.append((float((np.log(mixed) + best).sum()) + prior) / total)
        gradient = likelihood @ (1.0 / mixed) / total
        if each:
            gradient += each / weights / total
        gap = float(gradient.max()) - 1.0
        if gap <= tolerance or len(path) > max_iterations:
            break
        # The mean responsibility of t (with its pseudo-answers) is its weight times its gradient.
        weights = weights * gradient
        weights /= weights.sum()
    return MixtureFit(weights, tuple(path), max(gap, 0.0))


def _linear(votes: ChoiceVotes, alphas: FloatArray) -> Labels:
    weights = as_weights(alphas, "alphas")
    if votes.tokens is not None:
        return Labels.from_scores(
            votes.tokens.scores(weights), votes.offsets, weights=weights.copy(), level="tokens"
        )
    with np.errstate(divide="ignore"):
        pooled = np.log(weights / weights.sum() @ np.exp(votes.logprobs))
    return Labels.from_scores(pooled, votes.offsets, weights=weights.copy())


def _ballots(votes: ChoiceVotes) -> FloatArray:
    """(T, N) 1 at each member's own choice of each question, else 0."""
    ballots = np.zeros(votes.logprobs.shape)
    np.put_along_axis(ballots, votes.offsets[:-1] + votes.answers, 1.0, axis=1)
    return ballots
