"""The training loop, the same for members and students, for one process and for DeepSpeed workers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ensemw2s.config import TrainingConfig
from ensemw2s.errors import TrainingDiverged
from ensemw2s.models.device import trainable_attention
from ensemw2s.models.heads import divided, takes_positions
from ensemw2s.models.trainable import ActivationCache, FrozenPart
from ensemw2s.training.backends import Backend
from ensemw2s.training.collate import collate, targets_of
from ensemw2s.training.losses import BatchState, CrossEntropy, Targets, TokenLoss, make_loss, prepare_batch
from ensemw2s.training.plan import BatchPlan, MicroBatch, Step, TrainingSet, learning_rate_at

Progress = Callable[[int, int, float], None]
"""called with (steps done, steps in all, loss of the last step)"""

Checkpoint = Callable[[int, dict[str, Any]], None]
"""called on every rank with (steps done, state to store) when a checkpoint is due"""


@dataclass
class TrainingReport:
    """What a training did, all workers together. ``losses`` holds one weighted mean loss (nats a token) per optimizer step."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def target_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(b, k, V) float32: what the model says at the target positions."""
    width, k = batch["input_ids"].shape[1], batch["labels"].shape[1]
    # A column predicts the next one. Named one by one, so that the head does not run on the last and nothing is cut off behind it:
    # that would copy the logits, the largest array by far.
    before = torch.arange(width - k - 1, width - 1, device=batch["input_ids"].device)
    output = model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
        logits_to_keep=before,
    )
    logits: torch.Tensor = output.logits.float()
    return logits


def predictions(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, Targets]:
    """What the model says, (b, k, V) float32, and what it should say: where the output head can be run on the m positions with a loss
    alone these stand in one row, (1, m, V)."""
    targets, parts = targets_of(batch), divided(model)
    if parts is None:
        return target_logits(model, batch), targets
    body, head = parts
    width, k = batch["input_ids"].shape[1], targets.labels.shape[1]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    if takes_positions(body):
        inputs["position_ids"] = batch["position_ids"]
    hidden = body(**inputs, use_cache=False).last_hidden_state
    counted = batch["counted"]
    # A column predicts the next one.
    places = counted // k * width + counted % k + (width - k - 1)
    logits: torch.Tensor = head(hidden.flatten(0, 1).index_select(0, places)[None]).float()
    return logits, targets.at(counted)


def weighted_loss_sum(
    model: Any,
    batch: dict[str, torch.Tensor],
    loss: TokenLoss | None = None,
    state: BatchState | None = None,
) -> torch.Tensor:
    """Sum over the micro-batch of weight * loss (default: cross-entropy), float32; the caller divides by the batch's
    normalizer."""
    logits, targets = predictions(model, batch)
    values = (loss or CrossEntropy())(logits, targets, state or BatchState())
    return (values * targets.weights).sum()


@trainable_attention()
def fit(
    backend: Backend,
    data: TrainingSet,
    config: TrainingConfig,
    *,
    seed: int,
    pad_id: int,
    resume: Path | None = None,
    checkpoint: Checkpoint | None = None,
    checkpoint_steps: int = 0,
    progress: Progress | None = None,
    autocast: torch.dtype | None = None,
    frozen: FrozenPart | None = None,
    kept: ActivationCache | None = None,
) -> TrainingReport:
    """Train to the end of the plan; continued from `resume`, it ends where an uninterrupted run ends.

    Args:
        backend: holds the model and the optimizer.
        data: the whole training set; every rank passes the same one.
        seed: decides the order of the samples and dropout.
        pad_id: any valid token id; padded positions are masked by position.
        resume: folder of a verified checkpoint.
        checkpoint: called after every `checkpoint_steps` steps (0: after every epoch but the last).
        progress: called after each step on rank 0.
        autocast: compute in this dtype with float32 weights (None: in the model's own dtype). Not float16: nothing scales the loss, and
            small gradients would be 0.
        frozen: the part of the model that is not trained; it has no dropout.
        kept: what the frozen part says about each row is taken from here, and put here the first time.

    Raises:
        TrainingDiverged: the loss is not finite any more.
        ConfigError: the configured loss cannot be made.
    """
    loss = make_loss(config.loss, config.loss_options)
    plan = BatchPlan(data, config, seed, backend.world_size)
    report = TrainingReport()
    start = 0
    if resume is not None:
        state = backend.load(resume)
        start = int(state["step"])
        report = TrainingReport(**state["report"])
    every = checkpoint_steps or plan.steps_per_epoch
    # Found out before activations are kept of what the model reads.
    divided(backend.model)
    backend.model.train()
    if frozen is not None:
        frozen.keep_still(backend.model)
    begun = time.monotonic()

    def seeded(step: Step) -> None:
        # Dropout depends on the step alone, so that a resumed training draws what an uninterrupted one would.
        torch.manual_seed((seed * 1_000_003 + step.index * 1_009 + backend.rank) % (2**63))

    def on_device(micro: MicroBatch) -> dict[str, torch.Tensor]:
        return {n: t.to(backend.device) for n, t in collate(data, micro, pad_id).items()}

    def in_dtype() -> torch.autocast:
        return torch.autocast(backend.device.type, dtype=autocast, enabled=autocast is not None)

    def reading(micro: MicroBatch) -> AbstractContextManager[None]:
        rows = micro.rows
        if kept is None or not rows:
            return nullcontext()
        targets = [len(data.targets[i]) for i in rows]
        return kept.reading(
            rows, [len(data.prompts[i]) + n for i, n in zip(rows, targets, strict=True)], targets
        )

    def seen(step: Step) -> Iterator[tuple[torch.Tensor, Targets]]:
        for micro in step.micro_batches:
            batch = on_device(micro)
            with in_dtype(), reading(micro):
                said = predictions(backend.model, batch)
            yield said

    for step in plan.steps(backend.rank, start):
        seeded(step)
        known = prepare_batch(loss, seen(step), step.index / plan.n_steps, backend.gather_rows)
        if loss.whole_batch:
            # The same dropout as in the pass that was looked at.
            seeded(step)
        total = torch.zeros((), device=backend.device)
        for micro in step.micro_batches:
            batch = on_device(micro)
            with in_dtype(), reading(micro):
                value = weighted_loss_sum(backend.model, batch, loss, known) / step.denominator
            backend.backward(value)
            total += value.detach()
        # Summed over the workers, so that all of them take the same branch here.
        mean = backend.sum_over_workers(float(total))
        if not math.isfinite(mean):
            raise TrainingDiverged(
                f"the loss became {mean} at step {step.index + 1} of {plan.n_steps}: lower training.learning_rate, "
                f"now {config.learning_rate}"
            )
        backend.step(learning_rate_at(step.index, plan.n_steps, config))
        report.losses.append(mean)
        report.tokens += step.tokens
        report.steps = step.index + 1
        if progress is not None and backend.rank == 0:
            progress(report.steps, plan.n_steps, mean)
        if checkpoint is not None and report.steps % every == 0 and report.steps < plan.n_steps:
            report.seconds += time.monotonic() - begun
            begun = time.monotonic()
            checkpoint(report.steps, {"step": report.steps, "report": asdict(report)})
    report.seconds += time.monotonic() - begun
    return report
