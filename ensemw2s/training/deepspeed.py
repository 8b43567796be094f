"""DeepSpeed as a training backend: ZeRO stages, bf16 with float32 master weights, one or several workers.

deepspeed is imported inside functions: it probes compilers and accelerators when it is imported.
"""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import torch

from ensemw2s.config import TrainingConfig
from ensemw2s.training.backends import make_optimizer
from ensemw2s.training.collectives import all_rows, sum_of

TAG = "state"


def engine_config(
    user: dict[str, Any], config: TrainingConfig, *, accumulation: int, world_size: int, bf16: bool
) -> dict[str, Any]:
    """The user's DeepSpeed configuration with the batch arithmetic of the plan filled in."""
    merged = dict(user)
    merged["train_micro_batch_size_per_gpu"] = config.micro_batch_size
    merged["gradient_accumulation_steps"] = accumulation
    merged["train_batch_size"] = config.micro_batch_size * accumulation * world_size
    merged["gradient_clipping"] = config.max_grad_norm
    merged["bf16"] = {"enabled": bf16}
    merged.setdefault("steps_per_print", 10**9)
    return merged


def choose_accelerator(device: str) -> None:
    """Tell DeepSpeed which accelerator to use, before it is imported for the first time in this process."""
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ.setdefault("DS_SKIP_CUDA_CHECK", "1")


class DeepSpeedBackend:
    """One rank of a DeepSpeed engine; the process group exists already (Ray Train makes it).

    The learning rate is set before each step by the loop. Without an ``optimizer`` section the optimizer is PyTorch's
    AdamW, which needs no compiled extension; with one (CPU offload, fused Adam) DeepSpeed builds its own.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        config: TrainingConfig,
        user_config: dict[str, Any],
        *,
        accumulation: int,
        bf16: bool,
    ) -> None:
        import deepspeed
        import torch.distributed as dist

        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._accumulation = accumulation
        merged = engine_config(
            user_config, config, accumulation=accumulation, world_size=self.world_size, bf16=bf16
        )
        optimizer = None if "optimizer" in merged else make_optimizer(model, config)
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=model, optimizer=optimizer, model_parameters=parameters, config=merged
        )
        self.model = self.engine
        self.device = torch.device(self.engine.device)

    def close(self) -> None:
        """Free the engine, so that the same process can train another model."""
        self.engine.destroy()
        self.engine = self.model = self.optimizer = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        return int(self.engine.zero_optimization_stage())

    def backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed divides by the accumulation steps and averages over the workers; the loss is already normalized by
        # the whole effective batch, so both divisions are undone here.
        self.engine.backward(loss * (self._accumulation * self.world_size))
        if not self.engine.is_gradient_accumulation_boundary():
            self.engine.step()

    def step(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.engine.step()

    def sum_over_workers(self, value: float) -> float:
        return sum_of(value, self.device)

    def gather_rows(self, rows: torch.Tensor) -> torch.Tensor:
        return all_rows(rows)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        self.engine.save_checkpoint(str(folder), tag=TAG, client_state={"ensemw2s": state})

    def load(self, folder: Path) -> dict[str, Any]:
        path, client = self.engine.load_checkpoint(str(folder), tag=TAG)
        if path is None:
            raise FileNotFoundError(f"{folder} holds no DeepSpeed checkpoint with the tag {TAG!r}")
        state: dict[str, Any] = client["ensemw2s"]
        return state

    def gathered(self) -> Any:
        """A context in which every rank's module holds whole parameters (ZeRO-3 keeps only slices otherwise)."""
        import contextlib

        if self.stage < 3:
            return contextlib.nullcontext()
        import deepspeed

        return deepspeed.zero.GatheredParameters(list(self.engine.module.parameters()))
