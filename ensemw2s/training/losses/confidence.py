"""The auxiliary confidence loss of Burns et al. 2023, whose threshold is set over the whole effective batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ensemw2s.training.losses.base import BatchState, Targets, TokenLoss, is_number
from ensemw2s.training.losses.formulas import hard_cross_entropy, soft_cross_entropy


@dataclass(frozen=True)
class ConfidenceAuxiliary(TokenLoss):
    """(1 - a) CE(q, weak label) + a CE(q, the student's own hardened prediction) (Burns et al. 2023, arXiv 2312.09390,
    section 4.3 and appendix A.4).

    a rises linearly from 0 to alpha_max over the first `warmup` of the steps; the paper has alpha_max = 0.75 for its
    largest students and 0.5 else, and a warm-up of 0.2. The weak label is soft where the targets are. The hardened
    prediction is a constant, and its threshold is set over the whole effective batch, every position with a weight
    above 0 counting once.

    The paper states it for two classes: predict 1 for the half of the batch (in general, for the weak labels' share)
    with the largest probability of 1. With `classes` that rule is used, for K label tokens as `class_thresholds` says:
    the student's probabilities are its softmax over these tokens, and positions with another label (an end-of-text
    token) keep plain cross-entropy. Without `classes` targets are free text, for which the paper has no rule; matching
    the frequencies of a whole vocabulary in one batch would do little but permute the weak labels. The reading here:
    the share `hardened` of the positions, half by default as in the paper, takes the student's likeliest token as its
    prediction, namely those where it is most probable; the other positions keep plain cross-entropy.

    Attributes:
        alpha_max: in [0, 1].
        warmup: share of the steps, in [0, 1]; 0: alpha_max from the start.
        classes: token ids of the label words, at least two, or None.
        hardened: in [0, 1]; without classes only.
    """

    whole_batch: ClassVar[bool] = True
    alpha_max: float = 0.5
    warmup: float = 0.2
    classes: tuple[int, ...] | None = None
    hardened: float = 0.5

    def __post_init__(self) -> None:
        for name in ("alpha_max", "warmup", "hardened"):
            value = getattr(self, name)
            if not (is_number(value) and 0.0 <= value <= 1.0):
                raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
        if self.classes is not None:
            object.__setattr__(self, "classes", _token_ids(self.classes))

    def check_outputs(self, n_outputs: int, of: str) -> None:
        outside = [i for i in self.classes or () if i >= n_outputs]
        if outside:
            raise ValueError(
                f"classes {outside} are outside of {of}, which has 0 to {n_outputs - 1}: give ids of the label words' tokens"
            )

    def alpha(self, progress: float) -> float:
        """Weight of the student's own prediction when this share of the steps is done."""
        return self.alpha_max if self.warmup == 0.0 else self.alpha_max * min(1.0, progress / self.warmup)

    def __call__(self, logits: Tensor, targets: Targets, state: BatchState) -> Tensor:
        if state.prepared is None:
            raise ValueError(
                "the confidence loss needs the thresholds of the whole batch: call prepare_batch first"
            )
        plain = _weak_cross_entropy(logits, targets)
        alpha = self.alpha(state.progress)
        if alpha == 0.0:
            return plain
        with torch.no_grad():
            hard, applies = self._hardened(logits, targets, state.prepared)
        mixed = (1.0 - alpha) * plain + alpha * hard_cross_entropy(logits, hard)
        return torch.where(applies, mixed, plain)

    def statistics(self, logits: Tensor, targets: Targets) -> Tensor:
        counts = targets.weights > 0.0
        if self.classes is None:
            return (logits.max(-1).values - logits.logsumexp(-1))[counts].unsqueeze(-1)
        ids = self._ids(logits)
        weak, among = self._weak(targets, ids)
        counts = counts & among
        student = _log_softmax(logits, ids)
        return torch.cat([student[counts], weak[counts].double()], -1)

    def prepare(self, statistics: Tensor) -> Any:
        if self.classes is None:
            return top_threshold(statistics[:, 0], self.hardened)
        if not len(statistics):
            return torch.full((len(self.classes),), torch.inf, dtype=torch.float64, device=statistics.device)
        student, weak = statistics.split(len(self.classes), -1)
        return class_thresholds(student, weak)

    def _hardened(self, logits: Tensor, targets: Targets, thresholds: Any) -> tuple[Tensor, Tensor]:
        """(...) the student's own labels, and where they are used."""
        if self.classes is None:
            best = logits.max(-1)
            return best.indices, (best.values - logits.logsumexp(-1)).double() > thresholds
        ids = self._ids(logits)
        return ids[(_log_softmax(logits, ids) - thresholds).argmax(-1)], self._weak(targets, ids)[1]

    def _ids(self, logits: Tensor) -> Tensor:
        return torch.tensor(self.classes, device=logits.device)

    def _weak(self, targets: Targets, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(..., K) weak label over the classes, and (...) whether the label is one of them."""
        is_class = targets.labels.unsqueeze(-1) == ids
        weak = is_class.float()
        if targets.soft is not None:
            match = targets.soft.ids.unsqueeze(-2) == ids.unsqueeze(-1)
            mass = torch.where(match, targets.soft.masked_probs.unsqueeze(-2), 0.0).sum(-1)
            total = mass.sum(-1, keepdim=True)
            weak = torch.where(total > 0.0, mass / total.clamp(min=1e-30), weak)
        return weak, is_class.any(-1)


def _token_ids(given: Any) -> tuple[int, ...]:
    """The ids of `classes`; text and truth values (YAML's no and yes) are words, not ids.

    Raises:
        ValueError: they are not at least two different ids.
    """
    ids = tuple(given) if isinstance(given, list | tuple) else ()
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids) or len(ids) < 2:
        ids = ()
    if not ids or len(set(ids)) < len(ids):
        raise ValueError(
            f"classes must be at least two different token ids (whole numbers from 0, not words), got {given!r}: ask the "
            "tokenizer for the ids of the label words, or leave classes out"
        )
    return ids


def _log_softmax(logits: Tensor, ids: Tensor) -> Tensor:
    """(..., K) float64 log-probabilities of the classes among themselves; in float32 a probability may be 0, and has no logarithm."""
    return logits.index_select(-1, ids).double().log_softmax(-1)


def class_thresholds(logprobs: Tensor, weak: Tensor) -> Tensor:
    """Log-thresholds (K,) float64 that harden a batch's predictions to the classes' frequencies among the weak labels.

    Class k gets n_k of the n rows, n_k as near as whole numbers allow to n times its mean weak probability, and its
    threshold t_k lies midway between the n_k-th largest p_k and the next: exactly n_k rows have p_k > t_k unless there
    are ties. A row's hardened class is the argmax of p_k / t_k, which for K = 2 is [p_1 > t_1], the rule of Burns et
    al. 2023, appendix A.4 (with the footnote that the share is to be computed from the weak labels where classes are
    not balanced or more than two). For K > 2 the paper gives no rule; this one reduces to theirs, and meets the
    frequencies nearly.

    Args:
        logprobs: (n, K) logarithms of the student's probabilities.
        weak: (n, K) the weak labels, hard or soft; rows sum to 1.

    Returns:
        (K,) log t_k; +inf for a class that gets no row, -inf for one that gets all.
    """
    n, n_classes = logprobs.shape
    wanted = weak.double().mean(0) * n
    counts = wanted.floor()
    missing = n - int(counts.sum())
    # Largest remainders first, ties to the lowest class: the counts add up to n.
    order = sorted(range(n_classes), key=lambda k: (-float((wanted - counts)[k].round(decimals=9)), k))
    counts[order[:missing]] += 1.0
    ranked = logprobs.double().sort(0, descending=True).values
    logs = torch.empty(n_classes, dtype=torch.float64, device=logprobs.device)
    for k, count in enumerate(int(c) for c in counts):
        if count == 0:
            logs[k] = torch.inf
        elif count == n:
            logs[k] = -torch.inf
        else:
            logs[k] = torch.logaddexp(ranked[count - 1, k], ranked[count, k]) - math.log(2.0)
    return logs


def top_threshold(confidence: Tensor, share: float) -> float:
    """A value that round(share * n) of the (n,) confidences exceed: midway between that one and the next.

    -inf where all exceed it, +inf where none does; ties at the cut do not exceed it.
    """
    n = confidence.numel()
    count = int(share * n + 0.5)
    if count <= 0 or count >= n:
        return float("inf") if count <= 0 else float("-inf")
    ranked = confidence.double().sort(descending=True).values
    return float(0.5 * (ranked[count - 1] + ranked[count]))


def _weak_cross_entropy(logits: Tensor, targets: Targets) -> Tensor:
    if targets.soft is None:
        return hard_cross_entropy(logits, targets.labels)
    return soft_cross_entropy(logits, targets.soft)
