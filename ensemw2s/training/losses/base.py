"""What a loss is given and what it gives, and the pass over the whole effective batch that some losses need."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ensemw2s.training.losses.formulas import SoftTargets

T = TypeVar("T")


@dataclass(frozen=True)
class Targets:
    """What the target positions of a micro-batch are taught; the leading shape (...) is that of the logits.

    Attributes:
        labels: (...) int64 hard labels.
        weights: (...) float loss weights; 0 masks a position, whatever else stands there.
        soft: distributions over tokens, from a vote.
        uncertainty: (...) in [0, 1], for example 1 - the vote's confidence in the sample's label.
    """

    labels: Tensor
    weights: Tensor
    soft: SoftTargets | None = None
    uncertainty: Tensor | None = None

    def at(self, places: Tensor) -> Targets:
        """Those at m places, (m,) int64 of all in a row, as one row: (1, m)."""
        soft = self.soft
        return Targets(
            self.labels.flatten()[places][None],
            self.weights.flatten()[places][None],
            None
            if soft is None
            else SoftTargets(soft.ids.flatten(0, -2)[places][None], soft.probs.flatten(0, -2)[places][None]),
            None if self.uncertainty is None else self.uncertainty.flatten()[places][None],
        )


@dataclass(frozen=True)
class BatchState:
    """What a loss knows beside the micro-batch.

    Attributes:
        progress: share of the optimizer steps that are done, in [0, 1].
        prepared: what the loss's `prepare` made of the whole effective batch.
    """

    progress: float = 0.0
    prepared: Any = None


class TokenLoss:
    """Base of all losses; a loss is a frozen dataclass whose fields are its options.

    Attributes:
        needs: what `Targets` must bring beside labels and weights: "soft", "uncertainty".
        whole_batch: `statistics` and `prepare` are used.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    whole_batch: ClassVar[bool] = False

    def __call__(self, logits: Tensor, targets: Targets, state: BatchState) -> Tensor:
        """(..., V) float32 logits -> (...) losses, not weighted."""
        raise NotImplementedError

    def statistics(self, logits: Tensor, targets: Targets) -> Tensor:
        """(m, s) what `prepare` has to know of this micro-batch: one row a position that counts."""
        raise NotImplementedError

    def prepare(self, statistics: Tensor) -> Any:
        """From the rows of the whole effective batch, in any order, to what `BatchState.prepared` holds."""
        raise NotImplementedError

    def check_outputs(self, n_outputs: int, of: str) -> None:
        """Refuse options that name outputs which a model does not have; the options alone do not show it.

        Args:
            n_outputs: targets lie in 0..n_outputs - 1: ids of a vocabulary, or classes of a classification head.
            of: whose they are, for the message, for example "the vocabulary of gpt2".

        Raises:
            ValueError: it names others.
        """

    def needed(self, value: T | None, name: str) -> T:
        """A part of the targets that must be there.

        Raises:
            ValueError: it is None.
        """
        if value is None:
            raise ValueError(f"{type(self).__name__} needs targets with {name}, got none")
        return value


def is_number(value: Any) -> bool:
    """Whether an option is a number: YAML also gives text, and truth values, which count as 0 and 1 in Python."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def prepare_batch(
    loss: TokenLoss,
    micro_batches: Iterable[tuple[Tensor, Targets]],
    progress: float,
    gather: Callable[[Tensor], Tensor] | None = None,
) -> BatchState:
    """The state of one optimizer step, from all micro-batches of its effective batch.

    For a loss without `whole_batch` nothing is read from `micro_batches`, so a generator that runs the model costs
    nothing then. Nothing here takes part in the gradient.

    Args:
        loss: any loss.
        micro_batches: (logits, targets) of each of this worker's micro-batches.
        progress: share of the optimizer steps that are done.
        gather: from this worker's (m, s) rows to those of all workers together, the same on each; default: alone.
    """
    if not loss.whole_batch:
        return BatchState(progress)
    with torch.no_grad():
        rows = torch.cat([loss.statistics(logits, targets) for logits, targets in micro_batches])
        return BatchState(progress, loss.prepare(rows if gather is None else gather(rows)))
