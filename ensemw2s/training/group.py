"""Several processes that train one member together: each reads its share of every batch, and the gradients are summed."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ensemw2s.config import TrainingConfig
from ensemw2s.training.backends import TorchBackend
from ensemw2s.training.collectives import all_rows, sum_gradients, sum_of
from ensemw2s.training.share import GroupLost, Share

WAIT_SECONDS = 600.0
"""how long a process waits for the others, to come or to answer: models may load for minutes, and not as fast everywhere"""


class GroupBackend(TorchBackend):
    """A rank of a group that is there (:func:`meet`); every rank has made the same model."""

    def __init__(self, model: torch.nn.Module, config: TrainingConfig, share: Share) -> None:
        super().__init__(model, config)
        self.rank, self.world_size = share.rank, share.size
        self._trained = [p for p in model.parameters() if p.requires_grad]

    def step(self, learning_rate: float) -> None:
        sum_gradients(self._trained)
        super().step(learning_rate)

    def sum_over_workers(self, value: float) -> float:
        return sum_of(value, self.device)

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return all_rows(rows)


@contextmanager
def meet(share: Share, device: str) -> Iterator[None]:
    """Meet the others, and part from them.

    Raises:
        GroupLost: one of them did not come, or went.
    """
    import torch.distributed as dist

    try:
        dist.init_process_group(
            "nccl" if device.startswith("cuda") else "gloo",
            init_method=share.meeting,
            rank=share.rank,
            world_size=share.size,
            timeout=datetime.timedelta(seconds=WAIT_SECONDS),
        )
        yield
    except RuntimeError as error:
        # What gloo says of a connection that broke is a plain RuntimeError.
        words = ("Connection", "gloo", "Socket", "Timed out", "reset by peer")
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in words):
            raise
        raise GroupLost(f"a process of the group is gone: {str(error).strip().splitlines()[0]}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
