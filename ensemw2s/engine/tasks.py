"""What travels between the coordinator and the supervisors: small, frozen, one dataclass a thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ensemw2s.engine.packing import Packed
from ensemw2s.training.share import Share

Side = Literal["weak", "strong"]
Until = Literal["labels", "results"]
"""how far a run goes: to the pseudo-labels, or to the end"""
Texts = list[tuple[np.ndarray, tuple[np.ndarray, ...]]]
"""prompts and their continuations, int32 token ids"""


@dataclass(frozen=True)
class ModelRef:
    """Which weights a supervisor is to use.

    Attributes:
        side: whose tokenizer and configuration apply.
        index: which of ``weak.models`` (0 for the strong side).
        folder: folder of fine-tuned weights; None is the pretrained model.
    """

    side: Side
    index: int = 0
    folder: Path | None = None

    @property
    def key(self) -> str:
        """Short name for logs and caches."""
        return f"{self.side}-{self.index}" if self.folder is None else str(self.folder)


@dataclass(frozen=True)
class MemberTask:
    """Fine-tune one member on a drawn training set of easy_train.

    Attributes:
        name: for progress lines.
        index: which weak model is the start.
        seed: decides data order and dropout.
        rows: (r,) int64 rows of easy_train; repeats allowed.
        weights: (sum of the rows' target tokens,) float32 loss weights.
        denominators: (r,) float64, see :mod:`ensemw2s.training.plan`.
        output: folder for the fine-tuned weights.
        scratch: folder for checkpoints.
        epochs: instead of the configured ones (the prior's warm-up takes one).
        share: the place of who trains it among several that do it together; None: alone.
    """

    name: str
    index: int
    seed: int
    rows: np.ndarray
    weights: np.ndarray
    denominators: np.ndarray
    output: Path
    scratch: Path
    epochs: int | None = None
    share: Share | None = None


@dataclass(frozen=True)
class Pair:
    """A sample's place in its split, the choice to prefer, and the other one."""

    row: int
    chosen: int
    rejected: int


@dataclass(frozen=True)
class StudentTask:
    """Fine-tune the strong model.

    Attributes:
        name: single, ensemble, ceiling, on_easy, noise or preference.
        split: the split whose questions are used.
        labels: one answer a sample: an index into the choices, a text, or None for a sample to leave out.
        seed: the same for all students, so that they differ by their labels alone.
        output: folder for the weights.
        scratch: folder for checkpoints.
        teacher: whose soft labels and confidences in the run directory go with the labels (single or ensemble);
            None: the labels are hard and certain.
        start: the student to go on from; None: the pretrained model.
        pairs: what it is to prefer then, in the place of labels.
    """

    name: str
    split: str
    labels: tuple[int | str | None, ...]
    seed: int
    output: Path
    scratch: Path
    teacher: str | None = None
    start: ModelRef | None = None
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class TrainOutcome:
    """What a training cost and did."""

    seconds: float
    tokens: int
    flops: float
    device: str
    steps: int
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class TokenScores:
    """Teacher-forced scores of given tokens, flat over samples (and choices).

    Attributes:
        logprobs: (n,) float32 log-probability of each token.
        hits: (n,) bool, the token was the model's argmax.
        cost: seconds, tokens, flops, device.
    """

    logprobs: np.ndarray
    hits: np.ndarray
    cost: dict[str, Any]


@dataclass(frozen=True)
class TokenValues:
    """Something at each of n given tokens: ids (n, k) int32 or probabilities (n, m) float32; and what it cost."""

    values: np.ndarray
    cost: dict[str, Any]


@dataclass(frozen=True)
class TopK(Packed):
    """One member's say on the next token of each row: ids (b, k) int32, probs (b, k) float32, residual (b,) float32.

    ``residual`` bounds the probability of every token that was not sent.
    """

    ids: np.ndarray
    probs: np.ndarray
    residual: np.ndarray


@dataclass(frozen=True)
class ProgressEvent:
    """One line of progress: `done` of `total` units of `task`; `detail` is free text; `metrics` has numbers by name."""

    task: str
    done: int
    total: int
    detail: str = ""
    metrics: dict[str, float] = field(default_factory=dict)


def cost(seconds: float, tokens: int, flops: float, device: str) -> dict[str, Any]:
    """The cost record of a piece of work."""
    return {"seconds": round(seconds, 3), "tokens": int(tokens), "flops": float(flops), "device": device}


def add_costs(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum of cost records; devices are joined."""
    devices = sorted({p["device"] for p in parts})
    return {
        "seconds": round(sum(p["seconds"] for p in parts), 3),
        "tokens": sum(p["tokens"] for p in parts),
        "flops": sum(p["flops"] for p in parts),
        "device": ", ".join(devices),
    }
