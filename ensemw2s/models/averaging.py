"""The weighted average of models of one architecture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ensemw2s.errors import ModelError


def average_weights(load: Sequence[Callable[[], Any]], shares: Sequence[float]) -> Any:
    """sum_t share_t * model_t, parameter by parameter, summed in float64; one model is held beside the sum.

    Args:
        load: gives each model when it is its turn, whole weights in one number format.
        shares: of each model, summing to 1.

    Returns:
        The last model with the averaged weights.

    Raises:
        ModelError: the models' parameters differ in name or shape.
    """
    if len(load) != len(shares) or not load:
        raise ValueError(f"{len(load)} models, {len(shares)} shares")
    total: dict[str, torch.Tensor] = {}
    model: Any = None
    for give, share in zip(load, shares, strict=True):
        model = None
        model = give()
        own = dict(model.named_parameters())
        if total and {n: p.shape for n, p in own.items()} != {n: t.shape for n, t in total.items()}:
            raise ModelError(
                "the members' weights differ in name or shape: only members of one model can be merged"
            )
        for name, parameter in own.items():
            part = share * parameter.detach().double()
            total[name] = total[name] + part if name in total else part
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(total[name])
    return model
