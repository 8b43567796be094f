"""Preference optimisation by TRL: a model is taught to prefer one continuation of a prompt to another.

The loss of a pair is that of direct preference optimization (Rafailov et al. 2023, section 4), or one of its relatives in
TRL. The model as it is when it comes here is the reference; what it says is computed once, before the first step.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ensemw2s.config import PreferenceConfig, TrainingConfig
from ensemw2s.errors import ConfigError, TrainingDiverged
from ensemw2s.models.device import trainable_attention
from ensemw2s.models.quiet import without_reports
from ensemw2s.training.checkpoint import first_whole, seal

REFERENCE = "ref"
"""the copy of an adapter that TRL makes as its reference"""


@dataclass(frozen=True)
class PreferenceRow:
    """A prompt, the continuation to prefer, and the other one; int32 token ids, the end-of-text token included."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def n_tokens(self) -> int:
        """Tokens of its two texts."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


@dataclass(frozen=True)
class PreferenceReport:
    """Optimizer steps, seconds (checkpoints included, and of this process alone), and the loss of each step."""

    steps: int
    seconds: float
    losses: list[float]


def check_installed() -> None:
    """Raise ConfigError where TRL is missing."""
    # Found, not imported: that takes seconds.
    if importlib.util.find_spec("trl") is None:
        raise ConfigError('strong.preference needs the package trl: pip install "ensemw2s[preference]"')


@trainable_attention()
def prefer(
    model: Any,
    tokenizer: Any,
    rows: Sequence[PreferenceRow],
    rule: PreferenceConfig,
    training: TrainingConfig,
    *,
    seed: int,
    scratch: Path,
    checkpoint_steps: int = 0,
    bf16: bool = False,
    world_size: int = 1,
    progress: Callable[[int, int, float], None] | None = None,
    reading: Callable[[int, int], None] | None = None,
) -> PreferenceReport:
    """Train in place, on this process' share of the pairs where there are several processes (torch.distributed).

    Where the last pairs of an epoch do not go round, several processes read some of them twice (accelerate's even batches).

    Args:
        model: with gradients where it is to be trained; a ``PeftModel`` has one adapter, ``default``.
        tokenizer: of its own; its padding token is set.
        rows: the pairs; every process passes the same ones.
        rule: loss, epochs and learning rate.
        training: the rest: batch sizes (in pairs), schedule, AdamW.
        seed: decides the order.
        scratch: folder for checkpoints, shared by the processes; the same call after a crash goes on from the last whole one.
        checkpoint_steps: a checkpoint every so many steps; 0: after every epoch.
        bf16: compute in bfloat16 with float32 weights.
        world_size: how many processes train.
        progress: called on the first process with (steps done, steps in all, loss).
        reading: before the first step, called there with (pairs that the reference has read, pairs in all).

    Raises:
        TrainingDiverged: the loss is not finite any more.
        ConfigError: TRL is missing.
    """
    check_installed()
    from torch.utils.data import DataLoader
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    class OfTokens(DPOTrainer):
        """The rows are token ids already, encoded as everywhere else here; TRL would tokenize texts in its own way."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, dataset: Any, _: str, batch_size: int) -> Any:
            """As TRL does, but kept in memory: its file lies in a folder that the other processes do not see."""
            batches = DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator)
            found: tuple[list[float], list[float]] = ([], [])
            for batch in self.accelerator.prepare(batches):
                said = self.compute_ref_log_probs(self.model, batch)
                for values, column in zip(self.accelerator.gather_for_metrics(said), found, strict=True):
                    column += values.tolist()
                if reading is not None and self.accelerator.is_main_process:
                    reading(len(found[0]), len(dataset))
            for name, column in zip(("ref_chosen_logps", "ref_rejected_logps"), found, strict=True):
                dataset = dataset.add_column(name, column)
            return dataset

        def _send_telemetry(self) -> None:
            """What users train is their own business."""

    device = next(model.parameters()).device
    if training.batch_size % world_size:
        raise ValueError(f"{training.batch_size} pairs cannot be divided evenly by {world_size} processes")
    share = training.batch_size // world_size
    # The largest that divides a process' share of a batch, so that a step has batch_size pairs.
    micro = max(m for m in range(1, min(training.micro_batch_size, share) + 1) if share % m == 0)
    accumulation = share // micro
    steps = rule.epochs * math.ceil(len(rows) / (micro * accumulation * world_size))
    begun = time.monotonic()
    configs = (model.config, model.generation_config)
    padding = [config.pad_token_id for config in configs]
    with without_reports():
        arguments = DPOConfig(
            output_dir=str(scratch),
            loss_type=[rule.loss],
            beta=rule.beta,
            precompute_ref_log_probs=True,
            max_length=None,
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=rule.epochs,
            learning_rate=rule.learning_rate,
            lr_scheduler_type="constant_with_warmup"
            if training.schedule == "constant"
            else training.schedule,
            warmup_steps=math.ceil(training.warmup_ratio * steps),
            weight_decay=training.weight_decay,
            adam_beta1=training.adam_betas[0],
            adam_beta2=training.adam_betas[1],
            max_grad_norm=training.max_grad_norm,
            gradient_checkpointing=bool(model.is_activation_checkpointing),
            bf16=bf16,
            use_cpu=device.type == "cpu",
            seed=seed % 2**32,
            save_strategy="steps" if checkpoint_steps else "epoch",
            save_steps=checkpoint_steps or 500,
            save_total_limit=2,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        # On one device, whichever others this process sees.
        arguments._n_gpu = min(1, arguments.n_gpu)
        trainer = OfTokens(
            model,
            args=arguments,
            train_dataset=_dataset(rows),
            processing_class=tokenizer,
            callbacks=[_watch(progress, rule.learning_rate)],
        )
    trainer.remove_callback(PrinterCallback)
    if hasattr(trainer.model, "peft_config"):
        # What it would say is known; checkpoints hold the trained adapter alone.
        trainer.model.delete_adapter(REFERENCE)
    latest = _latest(scratch)
    with without_reports():
        trainer.train(resume_from_checkpoint=None if latest is None else str(latest))
    for config, before in zip(configs, padding, strict=True):
        config.pad_token_id = before
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return PreferenceReport(trainer.state.global_step, time.monotonic() - begun, losses)


def _dataset(rows: Sequence[PreferenceRow]) -> Any:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt_ids": [row.prompt.tolist() for row in rows],
            "chosen_ids": [row.chosen.tolist() for row in rows],
            "rejected_ids": [row.rejected.tolist() for row in rows],
        }
    )


def _latest(scratch: Path) -> Path | None:
    """The newest whole checkpoint; a damaged one is never used."""
    found = scratch.glob("checkpoint-*")
    return first_whole(sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True))


def _watch(progress: Callable[[int, int, float], None] | None, learning_rate: float) -> Any:
    """A callback of the trainer: progress, a loss that is not finite, seals on checkpoints."""
    from transformers import TrainerCallback

    class Watch(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            loss = (logs or {}).get("loss")
            if loss is None:
                return
            if not math.isfinite(loss):
                raise TrainingDiverged(
                    f"the loss of the preferences became {loss} at step {state.global_step} of {state.max_steps}: lower "
                    f"strong.preference.learning_rate, now {learning_rate}"
                )
            if progress is not None and state.is_world_process_zero:
                progress(state.global_step, state.max_steps, float(loss))

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if torch.distributed.is_initialized():
                torch.distributed.barrier()
            if state.is_world_process_zero:
                seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)

    return Watch()
