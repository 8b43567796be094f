"""One model of several: the weighted average of their weights, or their adapters merged by PEFT."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.storage import load_peft, load_saved


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


def merged_model(
    folders: Sequence[Path],
    shares: Sequence[float],
    how: str,
    *,
    base: ModelConfig,
    density: float,
    device: str,
    dtype: torch.dtype,
    seed: int,
) -> Any:
    """Saved members of one base as one model, each as heavy as its share.

    Args:
        folders: of the members.
        shares: of each, summing to 1.
        how: weights: their average. ties, dare_ties: adapters of one rank, merged by PEFT's ``add_weighted_adapter``. ties: small
            entries are dropped, then those that disagree with the sign of the majority, and the others averaged (Yadav et al.
            2023, arXiv 2306.01708); dare_ties: dropped at random, the others scaled up, before the signs are compared (Yu et al.
            2023, arXiv 2311.03099). Both treat the matrices A and B of an adapter each for itself.
        base: what they were trained from.
        density: share of an adapter's entries that is kept.
        device: where to compute.
        dtype: of the weights.
        seed: decides what is dropped at random.

    Raises:
        ArtifactError: a member is damaged, or does not fit the base.
        ModelError: the base cannot be loaded, or members differ in their parameters.
    """
    if how == "weights":
        load = partial(load_saved, device=device, dtype=dtype, base=base)
        return average_weights([partial(load, folder) for folder in folders], shares)
    names = [f"member-{t}" for t in range(len(folders))]
    model = load_peft(dict(zip(names, folders, strict=True)), base, device, dtype)
    torch.manual_seed(seed)
    # PEFT averages those of a sign, each times its weight, without dividing by the weights: they must average to 1.
    weights = [share * len(shares) for share in shares]
    model.add_weighted_adapter(names, weights, "merged", combination_type=how, density=density)
    model.set_adapter("merged")
    return model.merge_and_unload().eval()
