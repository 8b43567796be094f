"""Who holds the optimizer: plain PyTorch on one device. The DeepSpeed twin is in :mod:`ensemw2s.training.deepspeed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from ensemw2s.config import TrainingConfig


class Backend(Protocol):
    """The little that the training loop needs from a parallel training library."""

    model: Any
    rank: int
    world_size: int
    device: torch.device

    def backward(self, loss: torch.Tensor) -> None:
        """Accumulate the gradient of this rank's share of the effective batch's loss."""

    def step(self, learning_rate: float) -> None:
        """Clip, update with this learning rate, and clear the gradients."""

    def sum_over_workers(self, value: float) -> float:
        """The sum of each rank's number; every rank calls it."""

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows (m_r, s) of all ranks, of any number each, together and in the same order; every rank calls it."""

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write a checkpoint from which :meth:`load` continues exactly (every rank calls it)."""

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore a checkpoint and return its state."""


def make_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; no weight decay on vectors (norms, biases)."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    # One fused kernel: on a CPU five times faster than the loop over tensors, which small batches would wait for.
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, betas=config.adam_betas, fused=True
    )


class TorchBackend:
    """One process, one device; float32 master weights are the model's own, autocast is the loop's business."""

    def __init__(self, model: torch.nn.Module, config: TrainingConfig) -> None:
        self.rank, self.world_size = 0, 1
        self.model = model
        self.device = next(model.parameters()).device
        self._max_norm = config.max_grad_norm
        self.optimizer = make_optimizer(model, config)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, self._max_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def sum_over_workers(self, value: float) -> float:
        return value

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        trainable = {n: p.detach().cpu() for n, p in self.model.named_parameters() if p.requires_grad}
        torch.save(
            {"model": trainable, "optimizer": self.optimizer.state_dict(), "state": state},
            folder / "training.pt",
        )

    def load(self, folder: Path) -> dict[str, Any]:
        # Tensors, numbers and strings only: weights_only keeps pickled code out.
        saved = torch.load(folder / "training.pt", map_location="cpu", weights_only=True)
        own = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in saved["model"].items():
                own[name].copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        state: dict[str, Any] = saved["state"]
        return state
