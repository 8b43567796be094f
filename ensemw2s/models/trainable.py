"""Training only a part of a model: its last layers, or its output head alone (a linear probe)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.layers import find_layers


@dataclass(frozen=True)
class FrozenPart:
    """The part of a model that is not trained.

    Attributes:
        layers: its decoder layers, from the first; they compute the same for the same text, whatever is trained.
        trained: the modules that are trained, with all that lies in them.
        mixes: whether what is trained looks at other positions (attention); a head does not.
    """

    layers: tuple[nn.Module, ...]
    trained: tuple[nn.Module, ...]
    mixes: bool

    def keep_still(self, model: nn.Module) -> None:
        """Training mode for what is trained only, so that no dropout changes what the frozen part says."""
        model.eval()
        for module in self.trained:
            module.train()


def n_frozen_layers(model: ModelConfig, n_layers: int) -> int:
    """How many of the decoder layers stay as they are.

    Raises:
        ModelError: more layers are to be trained than there are.
    """
    if model.trainable == "all":
        return 0
    if model.trainable == "head":
        return n_layers
    if model.trainable >= n_layers:
        raise ModelError(
            f"trainable {model.trainable} of {model.path!r}: it has {n_layers} layers; give fewer, head, or all"
        )
    return n_layers - model.trainable


def trained_share(model: ModelConfig, n_layers: int) -> float:
    """Share of the decoder layers that training changes: 1 for all, 0 for a head alone.

    Raises:
        ModelError: as :func:`n_frozen_layers`.
    """
    return 1.0 - n_frozen_layers(model, n_layers) / n_layers


def freeze(model: Any, config: ModelConfig) -> FrozenPart | None:
    """Let gradients flow into the configured part only; None where all of the model is trained.

    The last N layers come with all that follows them (a final norm, the output head). Embeddings stay as they are, and so
    does a head that shares their weights, because the lower layers would not say the same any more. A linear probe has a head
    of its own: where it is shared, it becomes a copy.

    Raises:
        ModelError: the layers are not found, or there are too few.
    """
    if config.trainable == "all":
        return None
    n_layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    stack = find_layers(model, n_layers)[1]
    n_frozen = n_frozen_layers(config, n_layers)
    head = model.get_output_embeddings()
    if config.trainable == "head":
        trained: tuple[nn.Module, ...] = (head,)
        _untie(model, head)
    else:
        trained = (*stack[n_frozen:], *_modules_after(model, stack[-1]))
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}
    model.requires_grad_(False)
    for module in trained:
        for parameter in module.parameters():
            parameter.requires_grad_(id(parameter) not in embeddings)
    return FrozenPart(tuple(stack[:n_frozen]), trained, config.trainable != "head")


def _untie(model: Any, head: Any) -> None:
    if head.weight is not model.get_input_embeddings().weight:
        return
    head.weight = nn.Parameter(head.weight.detach().clone())
    for config in (model.config, model.config.get_text_config(decoder=True)):
        config.tie_word_embeddings = False


def _modules_after(model: Any, last: nn.Module) -> list[nn.Module]:
    """Modules with parameters of their own that read what the last layer says, found by reading one token.

    Names and the order of registration differ between architectures.
    """
    inside = {id(m) for m in last.modules()}
    found: dict[int, nn.Module] = {}
    passed = False

    def pass_on(*_: Any) -> None:
        nonlocal passed
        passed = True

    def note(module: nn.Module, *_: Any) -> None:
        if passed:
            found[id(module)] = module

    with ExitStack() as hooks:
        hooks.callback(last.register_forward_hook(pass_on).remove)
        for module in model.modules():
            if id(module) not in inside and next(module.parameters(recurse=False), None) is not None:
                hooks.callback(module.register_forward_pre_hook(note).remove)
        one = torch.zeros((1, 1), dtype=torch.int64, device=next(model.parameters()).device)
        with torch.no_grad():
            model(input_ids=one, use_cache=False)
    return list(found.values())


class ActivationCache:
    """What the frozen layers say about each training row, kept in memory from the first time on.

    Args:
        part: the frozen part.
        keys: of each row of the training set: rows with one key hold the same tokens. Default: every row its own.
        kept: what was kept before, by key, of the same frozen weights; what is new is added.
    """

    def __init__(
        self,
        part: FrozenPart,
        keys: Sequence[int] | np.ndarray | None = None,
        kept: dict[int, torch.Tensor] | None = None,
    ) -> None:
        self._part, self._keys = part, keys
        self._kept: dict[int, torch.Tensor] = {} if kept is None else kept

    @contextmanager
    def reading(self, rows: tuple[int, ...], lengths: list[int], targets: list[int]) -> Iterator[None]:
        """A forward pass of these rows, left-padded, in this context takes what is kept, or keeps it.

        Args:
            rows: indices of the training set.
            lengths: (len(rows),) tokens of each.
            targets: (len(rows),) target tokens at its end.
        """
        # What is trained sees all positions of a row, or those alone that predict a target.
        if self._keys is not None:
            rows = tuple(int(self._keys[row]) for row in rows)
        columns = (
            lengths if self._part.mixes else [min(n, t + 1) for n, t in zip(lengths, targets, strict=True)]
        )
        if all(row in self._kept for row in rows):
            with _replaced(self._part.layers, lambda hidden: self._put_together(rows, hidden)):
                yield
            return

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor):
                raise ModelError(
                    f"the layers of this architecture ({type(module).__name__}) give more than their activations, which are not kept "
                    "then: set runtime.cache_activations=false"
                )
            hidden = output
            for r, (row, n) in enumerate(zip(rows, columns, strict=True)):
                if row not in self._kept:
                    self._kept[row] = hidden[r, hidden.shape[1] - n :].detach().clone()

        hook = self._part.layers[-1].register_forward_hook(keep)
        try:
            yield
        finally:
            hook.remove()

    def _put_together(self, rows: tuple[int, ...], hidden: torch.Tensor) -> torch.Tensor:
        """(b, s, h) with the kept columns of each row at its end; nothing looks at the others."""
        whole = torch.zeros_like(hidden, dtype=self._kept[rows[0]].dtype)
        for r, row in enumerate(rows):
            kept = self._kept[row]
            whole[r, whole.shape[1] - len(kept) :] = kept
        return whole


@contextmanager
def _replaced(layers: tuple[nn.Module, ...], last: Any) -> Iterator[None]:
    """Layers that pass on what comes in; the last one gives `last(what comes in)` instead."""

    def forward(compute: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            return compute(args[0] if args else kwargs["hidden_states"])

        return run

    for layer in layers[:-1]:
        layer.forward = forward(lambda hidden: hidden)
    layers[-1].forward = forward(last)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
