"""Losses of members and students by name, and how a user's own loss joins them.

A loss gives one number a target position; the loop multiplies by the position's weight, sums, and divides by the
effective batch's normalizer, as it does for cross-entropy, so none depends on the division into micro-batches. A loss
that looks at the effective batch as a whole has `whole_batch` set: the loop first passes all micro-batches of all
workers through `prepare_batch`, which costs one more forward pass a step.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ensemw2s.errors import ConfigError
from ensemw2s.training.losses.base import BatchState, Targets, TokenLoss, prepare_batch
from ensemw2s.training.losses.confidence import ConfidenceAuxiliary
from ensemw2s.training.losses.formulas import SoftTargets
from ensemw2s.training.losses.standard import (
    CrossEntropy,
    ProductOfExperts,
    SoftCrossEntropy,
    UncertaintySmoothing,
)

__all__ = [
    "LOSSES",
    "BatchState",
    "CrossEntropy",
    "SoftTargets",
    "Targets",
    "TokenLoss",
    "make_loss",
    "prepare_batch",
]


@dataclass(frozen=True)
class FunctionLoss(TokenLoss):
    """A user's own `function(logits, targets, **options)` that returns one loss a target position."""

    name: str
    function: Callable[..., Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, logits: Tensor, targets: Targets, state: BatchState) -> Tensor:
        loss = self.function(logits, targets, **self.options)
        if not isinstance(loss, Tensor) or loss.shape != logits.shape[:-1]:
            came = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ConfigError(
                f"loss {self.name} must return one loss for each target position, a tensor of shape "
                f"{tuple(logits.shape[:-1])}, got {came}: do not reduce, the loop weights and sums"
            )
        return loss


LOSSES: dict[str, type[TokenLoss]] = {
    "cross_entropy": CrossEntropy,
    "soft_cross_entropy": SoftCrossEntropy,
    "uncertainty_smoothing": UncertaintySmoothing,
    "product_of_experts": ProductOfExperts,
    "confidence": ConfidenceAuxiliary,
}


def make_loss(name: str, options: Mapping[str, Any] | None = None) -> TokenLoss:
    """The loss of this name.

    Args:
        name: a key of `LOSSES`, or "package.module:function" for a user's own: a function of (logits, targets,
            **options) that returns one loss a target position, or a subclass of `TokenLoss`. The module must be
            importable where the training runs.
        options: of that loss.

    Raises:
        ConfigError: an unknown name or option, a bad value, or a user's loss that cannot be loaded.
    """
    given = dict(options or {})
    if ":" not in name:
        if name not in LOSSES:
            raise ConfigError(
                f"loss must be one of {', '.join(LOSSES)}, or package.module:function for your own, got {name!r}"
            )
        return _build(name, LOSSES[name], given)
    found = _resolve(name)
    if isinstance(found, type) and issubclass(found, TokenLoss):
        return _build(name, found, given)
    try:
        inspect.signature(found).bind(None, None, **given)
    except (TypeError, ValueError) as error:  # the second: a function of C whose parameters are not known
        raise ConfigError(
            f"loss {name} must take (logits, targets) and the options {sorted(given) or 'none'}: {error}"
        ) from error
    return FunctionLoss(name, found, given)


def loss_source(name: str) -> Path | None:
    """The file that a loss of one's own is written in; None for those of `LOSSES`, and where Python knows of no file."""
    if ":" not in name:
        return None
    try:
        found = inspect.getsourcefile(_resolve(name))
    except TypeError:
        found = None
    return None if found is None else Path(found)


def _build(name: str, kind: type[TokenLoss], options: dict[str, Any]) -> TokenLoss:
    # A class of the user's own need not be a dataclass; then it says itself what it takes.
    known = {f.name for f in fields(kind)} if is_dataclass(kind) else set(options)
    unknown = sorted(set(options) - known)
    if unknown:
        allowed = ", ".join(sorted(known)) or "none"
        raise ConfigError(f"loss {name} has no option {unknown[0]!r}; its options: {allowed}")
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"loss {name}: {error}") from error


def _resolve(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not module or not attribute.isidentifier():
        raise ConfigError(f"a loss of your own is named package.module:function, got {name!r}")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except AttributeError as error:
        raise ConfigError(f"loss {name}: the module {module} has no {attribute!r}") from error
    except Exception as error:
        raise ConfigError(
            f"loss {name}: cannot import {module} ({type(error).__name__}: {error}): is its folder in PYTHONPATH, "
            "also where the workers run?"
        ) from error
    if not callable(found):
        raise ConfigError(f"loss {name}: {attribute} is a {type(found).__name__}, not a function")
    return found
