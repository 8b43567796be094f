"""What processes that train one model together tell each other, through torch.distributed; every rank calls each of these."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist


def sum_of(value: float, device: torch.device) -> float:
    """The sum of each rank's number, in float64."""
    total = torch.tensor([value], dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def all_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows (m_r, s) of all ranks, of any number each, together and in the same order."""
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], dtype=torch.int64, device=rows.device))
    # Collectives take equal shapes: padded to the longest, cut again.
    sizes = [int(n) for n in counts]
    padded = rows.new_zeros((max(sizes), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[:n] for part, n in zip(parts, sizes, strict=True)])


def sum_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace each gradient by the sum over the ranks; one message, in the parameters' order."""
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    together = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(together)
    for parameter, part in zip(parameters, together.split([g.numel() for g in gradients]), strict=True):
        parameter.grad = part.view_as(parameter).clone()
