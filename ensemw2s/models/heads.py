"""The output head on the positions that are scored and no others, where a model lets itself be divided."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ensemw2s.models.rows import Batch

#: Positions whose logits are turned into scores at a time: a few megabytes, which stay in the processor's cache.
POSITIONS_AT_A_TIME = 32
_DIVISIBLE: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Places:
    """Where a batch is scored: U different positions, each of which may predict several targets.

    Attributes:
        row, column: (U,) int64, in the batch's rows and the last columns of it.
        place: (m,) int64, the position that predicts each target.
        targets: (m,) int64 token ids.
        output: (m,) int64, numpy: where a target's score belongs in a flat result.
    """

    row: torch.Tensor
    column: torch.Tensor
    place: torch.Tensor
    targets: torch.Tensor
    output: np.ndarray

    @classmethod
    def of(cls, batch: Batch) -> Places:
        """The choices of a question all begin behind the same token, which is read once and needs the head once."""
        flat, place = torch.unique(batch.row * batch.n_tail + batch.column, return_inverse=True)
        # Targets in the order of their positions, so that a part of the positions has a run of targets.
        order = torch.argsort(place, stable=True)
        return cls(
            flat // batch.n_tail,
            flat % batch.n_tail,
            place[order],
            batch.targets[order],
            batch.output[order.cpu().numpy()],
        )

    def parts(self, most: int) -> Iterator[Places]:
        """The same, at most `most` positions at a time."""
        if len(self.row) <= most:
            yield self
            return
        for begin in range(0, len(self.row), most):
            # Targets stand in the order of their positions.
            first, last = (int(torch.searchsorted(self.place, n)) for n in (begin, begin + most))
            yield Places(
                self.row[begin : begin + most],
                self.column[begin : begin + most],
                self.place[first:last] - begin,
                self.targets[first:last],
                self.output[first:last],
            )


@dataclass(frozen=True)
class Tail:
    """What a model says at some positions.

    Attributes:
        logits: (U, V) in the model's own number format.
        place: (m,) int64, the row of the logits that predicts each target.
        targets: (m,) int64 token ids.
        output: (m,) int64, numpy: where a target's score belongs in a flat result.
        copy: whose they are, of the members that read a batch together.
    """

    logits: torch.Tensor
    place: torch.Tensor
    targets: torch.Tensor
    output: np.ndarray
    copy: int = 0

    def at_targets(self) -> torch.Tensor:
        """(m, V) float32."""
        return self.logits[self.place].float()

    def scores(self) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities (m,) float32 and hits (m,) bool of the targets (ties go to the lowest id)."""
        device = self.logits.device
        chosen = torch.empty(len(self.targets), dtype=torch.float32, device=device)
        first = torch.empty(len(self.logits), dtype=torch.int64, device=device)
        total = torch.empty(len(self.logits), dtype=torch.float32, device=device)
        # One part where memory is not cached line by line.
        step = POSITIONS_AT_A_TIME if device.type == "cpu" else max(1, len(self.logits))
        begins = torch.arange(0, len(self.logits) + step, step, device=device)
        bounds = torch.searchsorted(self.place.contiguous(), begins).tolist()
        for i, begin in enumerate(range(0, len(self.logits), step)):
            part, own = slice(begin, begin + step), slice(bounds[i], bounds[i + 1])
            values = self.logits[part].to(torch.float32, copy=True)
            top, first_of_part = values.max(dim=-1, keepdim=True)
            values -= top
            chosen[own] = values[self.place[own] - begin, self.targets[own]]
            first[part], total[part] = first_of_part[:, 0], values.exp_().sum(dim=-1).log()
        logprobs = chosen - total[self.place]
        hits = first[self.place] == self.targets
        return logprobs.cpu().numpy(), hits.cpu().numpy()


def divided(model: Any) -> tuple[Any, nn.Linear] | None:
    """The body and the output head of a model, where head(body(x)) is all that the model computes; else None.

    Some architectures scale or cap their logits behind the head (Gemma 2, Cohere, Granite): two tokens are tried once.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    # Neither members that share a base nor an engine that wraps a model may be passed by.
    if not isinstance(model, nn.Module) or not isinstance(base, PreTrainedModel):
        return None
    head, body = base.get_output_embeddings(), getattr(base, getattr(base, "base_model_prefix", ""), None)
    # An adapter on the head has its own way to be called.
    if type(head) is not nn.Linear or body is None or body is base:
        return None
    if base not in _DIVISIBLE:
        _DIVISIBLE[base] = _tried(model, body, head)
    return (body, head) if _DIVISIBLE[base] else None


def takes_positions(body: Any) -> bool:
    """Whether positions can be given to a model or its body."""
    return "position_ids" in inspect.signature(body.forward).parameters


def _tried(model: Any, body: Any, head: nn.Linear) -> bool:
    # Weights that DeepSpeed holds in parts are empty here, and there where they are used.
    if head.weight.numel() == 0 or head.weight.any():
        return _says_the_same(model, body, head)
    # A new classification head gives zeros, scaled or not.
    own = torch.Generator().manual_seed(0)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=own))
        try:
            return _says_the_same(model, body, head)
        finally:
            head.weight.zero_()


def _says_the_same(model: Any, body: Any, head: nn.Linear) -> bool:
    ids = torch.tensor([[0, 1]], device=head.weight.device)
    # Dropout would make a difference.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits
            hidden = getattr(body(input_ids=ids, use_cache=False), "last_hidden_state", None)
            return hidden is not None and torch.equal(head(hidden), whole)
    finally:
        for module, training in modes.items():
            module.training = training
