"""One-coin Dawid-Skene: every member has one accuracy, learned without truth from who agrees with whom.

Dawid and Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm", Applied Statistics
28(1), 1979, with one accuracy a member instead of a confusion matrix (Zhang, Chen, Zhou and Jordan, "Spectral methods
meet EM", 2014, section 5). It assumes that members err independently given the truth; members that share a base model
do not, so its confidence is too high where they err together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np

from ensemw2s.core._checks import FloatArray, IntArray, check_choice
from ensemw2s.core._ragged import row_log_softmax, row_logsumexp
from ensemw2s.core.label_models.votes import ChoiceVotes, Labels

ClassPrior = Literal["uniform", "estimated"]


def dawid_skene(
    votes: ChoiceVotes,
    *,
    prior_right: float = 1.0,
    prior_wrong: float = 1.0,
    class_prior: ClassPrior = "uniform",
    tolerance: float = 1e-10,
    max_iterations: int = 1000,
) -> Labels:
    """Posterior of each question's truth given the members' own choices, by EM from the shares of the votes.

    Ties go to the tied choice with the larger mean probability, then to the lowest index.

    Model: P(truth c) = pi_c; a member of accuracy a answers c' = c with probability a, and each of the K - 1 others
    with (1 - a) / (K - 1), K the question's own number of choices. A member's vote then counts
    log(a (K - 1) / (1 - a)); the accuracies have Beta(1 + prior_right, 1 + prior_wrong) priors, whose mode adds
    pseudo-answers to the counts, so with both above 0 no member can get an infinite weight.

    Args:
        votes: the members' own choices are used; their probabilities decide ties alone, their alphas nothing.
        prior_right, prior_wrong: pseudo-answers that each member got right and wrong; both 0 is the plain maximum
            likelihood (accuracies are then kept 1e-10 inside (0, 1)).
        class_prior: "uniform" over the choices of a question, or "estimated" for classes that mean the same in every
            question; all questions need the same number of choices then.
        tolerance: EM stops when the log-posterior of a question rises by less (nats).
        max_iterations: bound on the iterations.

    Returns:
        Labels; `weights` is each member's log-odds weight for the mean number of choices, `details` holds the
        accuracies, the class prior and the path of the log-posterior, which never falls.

    Raises:
        ValueError: options outside their range, class_prior estimated with differing numbers of choices.
    """
    check_choice(class_prior, ("uniform", "estimated"), "class_prior")
    for name, value in (("prior_right", prior_right), ("prior_wrong", prior_wrong)):
        if not 0.0 <= value < np.inf:
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    counts = votes.n_choices
    if class_prior == "estimated" and counts.min() != counts.max():
        raise ValueError(
            f"class_prior estimated needs the same number of choices in every question, got {counts.min()} to {counts.max()}"
        )
    # A question with one choice says nothing of anybody.
    informative = counts > 1
    if not informative.any():
        raise ValueError("dawid_skene needs questions with at least 2 choices, got none")
    offsets, answers = votes.offsets, votes.answers
    log_others = np.log(np.maximum(counts - 1, 1))
    chosen = offsets[:-1] + answers
    n_classes = int(counts[0])
    log_prior = np.repeat(-np.log(counts), counts)

    soft = np.zeros(votes.logprobs.shape[1])
    np.add.at(soft, chosen.ravel(), 1.0 / votes.n_members)
    path: list[float] = []
    while True:
        hit = soft[chosen[:, informative]]
        accuracy = (hit.sum(axis=1) + prior_right) / (hit.shape[1] + prior_right + prior_wrong)
        accuracy = np.clip(accuracy, 1e-10, 1.0 - 1e-10)
        if class_prior == "estimated":
            share = soft.reshape(-1, n_classes).mean(axis=0)
            with np.errstate(divide="ignore"):
                log_prior = np.tile(np.log(share), counts.size)
        joint = _log_joint(accuracy, chosen, log_others, log_prior, counts)
        value = row_logsumexp(joint, offsets)[informative].sum()
        value += prior_right * np.log(accuracy).sum() + prior_wrong * np.log1p(-accuracy).sum()
        path.append(float(value))
        soft = np.exp(row_log_softmax(joint, offsets))
        if len(path) > max_iterations or (len(path) > 1 and path[-1] - path[-2] <= tolerance * counts.size):
            break
    weight = np.log(accuracy) - np.log1p(-accuracy) + log_others[informative].mean()
    details = {
        "accuracies": [float(a) for a in accuracy],
        "log_posteriors": path,
        "class_prior": None if class_prior == "uniform" else [float(p) for p in share],
    }
    found = Labels.from_scores(joint, offsets, weights=weight, details=details)
    # Two members always come out alike, so that each of their disagreements is a tie.
    choice = _likeliest(joint, votes)
    return replace(found, choice=choice, confidence=found.soft[offsets[:-1] + choice])


def _likeliest(joint: FloatArray, votes: ChoiceVotes) -> IntArray:
    """(n,) the best choice; ties go to the tied one with the larger mean probability, then to the lowest index."""
    best = np.maximum.reduceat(joint, votes.offsets[:-1])
    tied = joint >= np.repeat(best, votes.n_choices) - 1e-9
    mean = np.exp(votes.logprobs).mean(axis=0)
    return Labels.from_scores(np.where(tied, mean, -1.0), votes.offsets).choice


def _log_joint(
    accuracy: FloatArray,
    chosen: IntArray,
    log_others: FloatArray,
    log_prior: FloatArray,
    counts: IntArray,
) -> FloatArray:
    """(N,) log P(truth c) P(answers | c): all wrong, and the difference for those that answered c."""
    wrong = np.log1p(-accuracy)[:, None] - log_others
    joint: FloatArray = log_prior + np.repeat(wrong.sum(axis=0), counts)
    np.add.at(joint, chosen.ravel(), (np.log(accuracy)[:, None] - wrong).ravel())
    return joint
