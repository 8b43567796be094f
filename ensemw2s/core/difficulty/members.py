"""Difficulty by how much the members disagree; needs no truth."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ensemw2s.core._checks import FloatArray, IntArray, check_choice
from ensemw2s.core.label_models.votes import ChoiceVotes

Disagreement = Literal["jensen_shannon", "pairs"]


def disagreement_rating(votes: ChoiceVotes, how: Disagreement = "jensen_shannon") -> FloatArray:
    """Difficulty of each question, (n,) in [0, 1], 0 where the members agree.

    Args:
        votes: of at least 2 members; their alphas are not used.
        how: "jensen_shannon": entropy of the mean distribution less the mean entropy (Lin, "Divergence measures
            based on the Shannon entropy", 1991), over its largest value, that of T sure members spread over the K
            choices as evenly as can be; it sees members that are sure of different answers, not members that are
            all unsure. "pairs": share of the pairs of members whose own choices differ; has few distinct values, so
            quantiles meet ties.

    Raises:
        ValueError: one member only, or an unknown `how`.
    """
    check_choice(how, ("jensen_shannon", "pairs"), "how")
    n_members = votes.n_members
    if n_members < 2:
        raise ValueError("disagreement needs at least 2 members, got 1")
    if how == "pairs":
        answers = votes.answers
        agree = (answers[:, None, :] == answers[None, :, :]).sum(axis=(0, 1)) - n_members
        share: FloatArray = 1.0 - agree / (n_members * (n_members - 1))
        return share
    starts = votes.offsets[:-1]
    probs = np.exp(votes.logprobs)
    mean = probs.mean(axis=0)
    of_mean = np.add.reduceat(_surprise(mean), starts)
    mean_of = np.add.reduceat(_surprise(probs), starts, axis=1).mean(axis=0)
    largest = _largest_entropy(n_members, votes.n_choices)
    rating = np.divide(of_mean - mean_of, largest, out=np.zeros_like(of_mean), where=largest > 0.0)
    bounded: FloatArray = np.clip(rating, 0.0, 1.0)
    return bounded


def _largest_entropy(n_members: int, n_choices: IntArray) -> FloatArray:
    """(n,) entropy of the mean of sure members that are spread over the choices as evenly as whole members can be."""
    each, more = np.divmod(n_members, n_choices)
    entropy: FloatArray = more * _surprise((each + 1) / n_members) + (n_choices - more) * _surprise(
        each / n_members
    )
    return entropy


def _surprise(p: FloatArray) -> FloatArray:
    """-p log p, 0 at 0."""
    logs = np.log(p, out=np.zeros_like(p), where=p > 0.0)
    surprise: FloatArray = -p * logs
    return surprise
