"""Formulas of token-level losses: plain functions of logits and targets that give one loss a target position.

Shapes: logits (..., V) float32; everything else (...), or (..., k) for the k tokens of a soft label. No reduction: the
caller weights and sums. q is the student's softmax(logits).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Remainder = Literal["bucket", "spread", "renormalize"]
REMAINDERS: tuple[Remainder, ...] = ("bucket", "spread", "renormalize")

# What rounding of stored probabilities may add to a sum of at most 1.
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class SoftTargets:
    """Top-k token distributions, as a vote leaves them.

    Attributes:
        ids: (..., k) int64 token ids, all different in a row; -1 pads a row at its end.
        probs: (..., k) float probabilities of these tokens. Their sum may be less than 1: the rest lies on tokens that
            were not sent, and each loss says what it makes of it.
    """

    ids: Tensor
    probs: Tensor

    @property
    def masked_probs(self) -> Tensor:
        """(..., k) float32, 0 where padded."""
        return torch.where(self.ids >= 0, self.probs.float(), 0.0)

    @property
    def safe_ids(self) -> Tensor:
        """(..., k) ids fit to index with: padding repeats the row's first token."""
        return torch.where(self.ids >= 0, self.ids, self.ids[..., :1].clamp(min=0))

    def rest(self, n_vocab: int) -> Tensor:
        """(...) probability of all other tokens; 0 where there are none."""
        left = (1.0 - self.masked_probs.sum(-1)).clamp(min=0.0)
        return torch.where((self.ids >= 0).sum(-1) < n_vocab, left, 0.0)

    def validate(self, n_vocab: int) -> None:
        """Check the values, once and before training, as it waits for the device.

        Raises:
            ValueError: shapes that differ, ids outside the vocabulary or twice in a row, padding before a token,
                probabilities that are negative, not finite or sum to more than 1.
        """
        if self.ids.shape != self.probs.shape or self.ids.dim() < 1 or self.ids.shape[-1] == 0:
            raise ValueError(
                f"ids and probs must both be (..., k), got {tuple(self.ids.shape)} and {tuple(self.probs.shape)}"
            )
        if int(self.ids.max()) >= n_vocab or int(self.ids.min()) < -1:
            raise ValueError(
                f"ids must lie in 0..{n_vocab - 1}, or be -1, got {int(self.ids.min())} to {int(self.ids.max())}"
            )
        real = self.ids >= 0
        if bool((real[..., 1:] & ~real[..., :-1]).any()):
            raise ValueError("padding (-1) must follow the tokens of its row, got a token after it")
        ranked = self.ids.sort(-1).values
        if bool(((ranked[..., 1:] == ranked[..., :-1]) & (ranked[..., 1:] >= 0)).any()):
            raise ValueError("ids must not hold a token twice in one row")
        probs = self.masked_probs
        total = float(probs.sum(-1).max())
        if not (
            bool(torch.isfinite(probs).all()) and float(probs.min()) >= 0.0 and total <= 1.0 + _SUM_TOLERANCE
        ):
            raise ValueError(
                f"probs must be finite, not negative and sum to at most 1, got minimum {float(probs.min())}, sum {total}"
            )


def hard_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log q(label), what torch.nn.functional.cross_entropy gives without reduction."""
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
    return loss.view(labels.shape)


def soft_cross_entropy(logits: Tensor, soft: SoftTargets, remainder: Remainder = "bucket") -> Tensor:
    """Cross-entropy -sum_v p(v) log q(v) with a top-k distribution p, r = 1 - (sum of what was sent).

    Args:
        remainder: what becomes of r.
            "bucket": the tokens not sent are one event, whose probability under q is what q leaves over:
            -sum_i p_i log q_i - r log(1 - sum_i q_i). It says nothing that was not known, its minimum is q_i = p_i, and
            its excess over that minimum is a lower bound of the full Kullback-Leibler divergence (data processing).
            "spread": r is divided evenly among the V - k other tokens, a full distribution that keeps them alive.
            "renormalize": p_i / sum p; pushes the other tokens to 0, which the vote did not say.

    With k = V and r = 0 all three are torch's cross-entropy with probabilities.
    """
    normalizer = logits.logsumexp(-1)
    ids, probs = soft.safe_ids, soft.masked_probs
    sent = logits.gather(-1, ids) - normalizer.unsqueeze(-1)
    if remainder == "renormalize":
        return -(probs * sent).sum(-1) / probs.sum(-1).clamp(min=torch.finfo(probs.dtype).tiny)
    rest = soft.rest(logits.shape[-1])
    loss = -(probs * sent).sum(-1)
    if remainder == "bucket":
        others = logits.scatter(-1, ids, -torch.inf)
        # A row without any other token has no gradient to take; its rest is 0 anyway.
        has_others = (rest > 0.0).unsqueeze(-1)
        log_others = torch.where(has_others, others, logits).logsumexp(-1) - normalizer
        return loss - rest * log_others
    n_sent = (soft.ids >= 0).sum(-1)
    n_others = (logits.shape[-1] - n_sent).clamp(min=1)
    of_sent = torch.where(soft.ids >= 0, sent, 0.0).sum(-1)
    of_others = logits.sum(-1) - logits.shape[-1] * normalizer - of_sent
    return loss - rest / n_others * of_others


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: Tensor) -> Tensor:
    """(1 - s) (-log q(label)) + s mean_v(-log q(v)), with a smoothing s in [0, 1] of its own at each position.

    For one s it is torch's cross_entropy with label_smoothing=s (Szegedy et al., 2016, section 7).
    """
    normalizer = logits.logsumexp(-1)
    of_label = normalizer - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return (1.0 - smoothing) * of_label + smoothing * (normalizer - logits.mean(-1))


def product_of_experts(logits: Tensor, soft: SoftTargets, weak: float = 1.0, student: float = 1.0) -> Tensor:
    """Cross-entropy of q with the product of the vote p and q itself: target proportional to p^weak * q^student.

    The target is a constant (no gradient runs through it), so the gradient in the logits is q - target. This is
    `product_loss_fn` of the code to Burns et al. (github.com/openai/weak-to-strong, weak_to_strong/loss.py); products of
    experts as such are Hinton, "Training products of experts by minimizing contrastive divergence", 2002. Where the
    student is sure the vote changes little, and the other way round. What p leaves over is spread evenly over the
    tokens not sent; where nothing is left over, they are vetoed.
    """
    with torch.no_grad():
        n_vocab = logits.shape[-1]
        n_others = (n_vocab - (soft.ids >= 0).sum(-1)).clamp(min=1)
        log_weak = (soft.rest(n_vocab) / n_others).log().unsqueeze(-1).expand(logits.shape).clone()
        ids = soft.safe_ids
        # Padding repeats the first token, so it must bring the first token's value.
        value = torch.where(soft.ids >= 0, soft.masked_probs, soft.masked_probs[..., :1])
        present = (soft.ids[..., :1] >= 0).expand(ids.shape)
        value = torch.where(present, value.log(), log_weak.gather(-1, ids))
        log_weak.scatter_(-1, ids, value)
        # 0^0 is 1: an expert without a say vetoes nothing.
        of_weak = weak * log_weak if weak > 0.0 else torch.zeros_like(log_weak)
        target = (of_weak + student * logits.log_softmax(-1)).softmax(-1)
    return -(target * logits.log_softmax(-1)).sum(-1)
