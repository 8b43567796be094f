"""How different the members are, and what becomes of the errors that they share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemw2s.core._checks import FloatArray


@dataclass(frozen=True, eq=False)
class PairwiseDiversity:
    """Diversity of every pair of T members, (T, T) symmetric float64 each, NaN where a measure has no value.

    With N11 questions both members have right, N00 both wrong, N10 and N01 one of them, N in all (Kuncheva and
    Whitaker, "Measures of diversity in classifier ensembles", Machine Learning 51, 2003, section 3):

    Attributes:
        disagreement: (N01 + N10) / N, one of the two is right (Skalak, 1996). Higher is more diverse.
        double_fault: N00 / N, both are wrong (Giacinto and Roli, 2001). Lower is more diverse.
        q_statistic: (N11 N00 - N01 N10) / (N11 N00 + N01 N10) (Yule, 1900), 0 for independent errors, 1 for the
            same ones; NaN where the denominator is 0.
        kappa: 2 (N11 N00 - N01 N10) / ((N11 + N10)(N10 + N00) + (N11 + N01)(N01 + N00)), Cohen's kappa of being
            right; NaN where both are right, or both wrong, on all questions.
        answers_differ: share of the questions that they answer differently, both wrong included.
    """

    disagreement: FloatArray
    double_fault: FloatArray
    q_statistic: FloatArray
    kappa: FloatArray
    answers_differ: FloatArray

    def means(self) -> dict[str, float | None]:
        """Mean of each measure over the pairs that have it; None for one member, or where no pair has it."""
        size = self.disagreement.shape[0]
        above = np.triu_indices(size, 1)
        means: dict[str, float | None] = {}
        for name in ("disagreement", "double_fault", "q_statistic", "kappa", "answers_differ"):
            values = getattr(self, name)[above]
            values = values[~np.isnan(values)]
            means[name] = float(values.mean()) if values.size else None
        return means


def pairwise_diversity(answers: ArrayLike, truth: ArrayLike) -> PairwiseDiversity:
    """Diversity of every pair of members.

    Args:
        answers: (T, n) each member's answers: indices, or texts normalized by the caller.
        truth: (n,) right answers of the same kind.

    Raises:
        ValueError: shapes that do not fit.
    """
    given, right = _as_answers(answers, truth)
    hit = (given == right).astype(np.float64)
    miss = 1.0 - hit
    n = float(given.shape[1])
    n11, n00, n10, n01 = hit @ hit.T, miss @ miss.T, hit @ miss.T, miss @ hit.T
    cross = n11 * n00 - n01 * n10
    differ = (given[:, None, :] != given[None, :, :]).mean(axis=2)
    return PairwiseDiversity(
        disagreement=(n01 + n10) / n,
        double_fault=n00 / n,
        q_statistic=_ratio(cross, n11 * n00 + n01 * n10),
        kappa=_ratio(2.0 * cross, (n11 + n10) * (n10 + n00) + (n11 + n01) * (n01 + n00)),
        answers_differ=differ,
    )


@dataclass(frozen=True)
class SharedErrors:
    """Questions on which `members` members, and no more, agree on one wrong answer.

    Attributes:
        members: size of the largest group with the same wrong answer; 0: all members are right.
        questions: how many there are.
        labelled: of these, the ensemble's label is such a wrong answer.
        learned: the student gives such a wrong answer.
        corrected: the student is right.
        other: the student is wrong in another way.
        learned_labelled: learned, where the label was that wrong answer too.
    """

    members: int
    questions: int
    labelled: int | None
    learned: int | None
    corrected: int | None
    other: int | None
    learned_labelled: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def shared_errors(
    answers: ArrayLike, truth: ArrayLike, *, label: ArrayLike | None = None, student: ArrayLike | None = None
) -> list[SharedErrors]:
    """How many members agree on a wrong answer, and whether the ensemble and the student took it over.

    Two groups of the same largest size both count as "such a wrong answer". The row of 1 member is the comparison: how
    often the student gives a wrong answer that just one member gave.

    Args:
        answers: (T, n) each member's answers: indices, or texts normalized by the caller.
        truth: (n,) right answers of the same kind.
        label: (n,) the ensemble's answers; without them `labelled` is None.
        student: (n,) the student's answers to the same questions; without them its counts are None.

    Returns:
        One row for each size from 0 to T; the questions of all rows add up to n.

    Raises:
        ValueError: shapes that do not fit.
    """
    given, right = _as_answers(answers, truth)
    wrong = given != right
    same = (given[:, None, :] == given[None, :, :]).sum(axis=1)
    group = np.where(wrong, same, 0)
    largest = group.max(axis=0)
    leading = wrong & (group == largest)

    def takes(other: ArrayLike | None, name: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
        if other is None:
            return None
        theirs = np.asarray(other)
        if theirs.shape != right.shape:
            raise ValueError(f"{name} must have one answer a question, {right.shape}, got {theirs.shape}")
        return ((theirs == given) & leading).any(axis=0), theirs == right

    labels, taught = takes(label, "label"), takes(student, "student")
    rows = []
    for size in range(given.shape[0] + 1):
        here = largest == size
        n = int(here.sum())
        labelled = None if labels is None else int((here & labels[0]).sum())
        learned = None if taught is None else int((here & taught[0]).sum())
        corrected = None if taught is None else int((here & taught[1]).sum())
        other = None if learned is None or corrected is None else n - learned - corrected
        both = None
        if labels is not None and taught is not None:
            # Of two groups of one size the student may give the other one's answer.
            both = int((here & labels[0] & taught[0] & (np.asarray(label) == np.asarray(student))).sum())
        rows.append(SharedErrors(size, n, labelled, learned, corrected, other, both))
    return rows


@dataclass(frozen=True)
class Imitation:
    """What a student makes of its teacher's answers to the same questions.

    Attributes:
        teacher_wrong: questions that the teacher gets wrong.
        repeated: of them, the student gives the same wrong answer.
        corrected: of them, the student is right.
        other: of them, the student is wrong in another way.
        teacher_right: questions that the teacher gets right.
        unlearned: of them, the student is wrong.
    """

    teacher_wrong: int
    repeated: int
    corrected: int
    other: int
    teacher_right: int
    unlearned: int

    def to_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return asdict(self)


def imitation(teacher_right: ArrayLike, student_right: ArrayLike, same: ArrayLike) -> Imitation:
    """How far a student follows its teacher, apart by whether the teacher is right (cf. the student-supervisor agreement of Burns et
    al. 2023, arXiv 2312.09390, section 5.1).

    Args:
        teacher_right, student_right: (n,) booleans.
        same: (n,) booleans, both gave the same answer.

    Raises:
        ValueError: lengths differ, or an answer that is the same is right for one of them only.
    """
    taught, learned, equal = (np.asarray(a, dtype=bool) for a in (teacher_right, student_right, same))
    if not taught.ndim == 1 or not taught.shape == learned.shape == equal.shape:
        raise ValueError(
            f"all must have one entry a question, got {taught.shape}, {learned.shape} and {equal.shape}"
        )
    if (equal & (taught != learned)).any():
        raise ValueError("the same answer cannot be right for the teacher and wrong for the student")
    wrong = ~taught
    repeated, corrected = int((wrong & equal).sum()), int((wrong & learned).sum())
    n = int(wrong.sum())
    return Imitation(
        n, repeated, corrected, n - repeated - corrected, int(taught.sum()), int((taught & ~learned).sum())
    )


def _as_answers(answers: ArrayLike, truth: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    given, right = np.asarray(answers), np.asarray(truth)
    if given.ndim != 2 or given.size == 0 or right.shape != given.shape[1:]:
        raise ValueError(
            f"answers must be (members, questions) and truth (questions,), got {given.shape} and {right.shape}"
        )
    return given, right


def _ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0.0)
