"""The second stage for the ensemble's student: to prefer its own confident answers to the labels that it was not taught.

After Weak-to-Strong Reasoning (Yang et al., arXiv 2407.13647, section 3.2): the first stage teaches the labels that are likely to be
right; where they are not, the student that came out of it may know better than its teachers. Truth is not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from ensemw2s.config import ExperimentConfig, PreferenceConfig
from ensemw2s.engine.answers import Answers, model_answers
from ensemw2s.engine.bases import converted, forward_flops, training_flops
from ensemw2s.engine.checks import taught_rows
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import EncodedSplits
from ensemw2s.engine.soft_labels import labels_path
from ensemw2s.engine.tasks import Pair, ProgressEvent, StudentTask, TrainOutcome
from ensemw2s.models.device import describe_device, resolve_dtype
from ensemw2s.models.loading import load_tokenizer
from ensemw2s.models.storage import load_to_train, save_model
from ensemw2s.training.preference import PreferenceRow, prefer

STUDENT = "preference"
"""name of the student"""
SYSTEM = f"student_{STUDENT}"
"""its name in results"""


def preference_pairs(ctx: RunContext, student: str, rule: PreferenceConfig) -> tuple[Pair, ...]:
    """Pairs from the labels that the ensemble's student was not taught.

    Args:
        ctx: the run; the student's answers to hard_train are committed.
        student: the system whose answers they are.
        rule: how confident they must be.
    """
    labels = (
        pq.read_table(ctx.run_dir / labels_path("ensemble"), columns=["label"]).column("label").to_pylist()
    )
    left_out = ~taught_rows(ctx, "ensemble")
    offsets = ctx.splits["hard_train"].choice_offsets
    return pairs_of(
        model_answers(ctx, student, "hard_train"), labels, left_out, offsets, rule.least_confidence
    )


def pairs_of(
    own: Answers, labels: list[int], left_out: np.ndarray, offsets: np.ndarray, least: float
) -> tuple[Pair, ...]:
    """Where the student is sure: its answer, and the label if that is another one, else its second choice.

    Args:
        own: the student's answers to n multiple-choice questions, with shares.
        labels: (n,) the teachers' choices.
        left_out: (n,) bool, the questions to use.
        offsets: (n + 1,) where each question's shares begin.
        least: confidence.
    """
    if own.shares is None:
        raise ValueError("pairs are of multiple-choice questions")
    pairs = []
    for i in np.flatnonzero(left_out & (own.confidence >= least)):
        shares = own.shares[offsets[i] : offsets[i + 1]]
        chosen, rejected = int(own.values[i]), labels[i]
        if rejected == chosen:
            others = np.where(np.arange(len(shares)) == chosen, -np.inf, shares)
            rejected = int(np.argmax(others))
        if rejected != chosen:
            pairs.append(Pair(int(i), chosen, rejected))
    return tuple(pairs)


def preference_rows(splits: EncodedSplits, task: StudentTask) -> list[PreferenceRow]:
    """The texts of a task's pairs in the strong model's tokens."""
    samples = splits[task.split].samples
    chosen = splits.encode([replace(samples[p.row], answer=p.chosen) for p in task.pairs])
    rejected = splits.encode([replace(samples[p.row], answer=p.rejected) for p in task.pairs])
    texts = zip(chosen.encoded, chosen.targets, rejected.targets, strict=True)
    return [PreferenceRow(text.prompt, better, worse) for text, better, worse in texts]


def train_preferred(
    config: ExperimentConfig,
    run_dir: Path,
    splits: EncodedSplits,
    task: StudentTask,
    *,
    device: str,
    report: Callable[[ProgressEvent], None],
    world_size: int = 1,
    rank: int = 0,
    output: Path | None = None,
) -> TrainOutcome:
    """Train the student that `task` starts from on its pairs, and write it (the first of several processes does).

    Args:
        config: with absolute paths.
        run_dir: the run directory.
        splits: in the strong model's tokens.
        task: has pairs, and a start.
        device: of this process.
        report: receives progress.
        world_size, rank: this process among those that train together (torch.distributed).
        output: a new folder for the weights; default: ``task.output``.

    Raises:
        TrainingDiverged, ConfigError: as :func:`ensemw2s.training.preference.prefer`.
    """
    rule = config.strong.preference
    if rule is None or task.start is None or task.start.folder is None:
        raise ValueError(f"student {task.name} has no preferences to learn, or nothing to start from")
    base = converted(run_dir, config.strong.model)
    rows = preference_rows(splits, task)
    model = load_to_train(task.start.folder, base, device=device)
    bf16 = resolve_dtype(base.dtype, device) == torch.bfloat16

    def reading(at: int, of: int) -> None:
        report(ProgressEvent(f"student {task.name}: pairs read", at, of))

    done = prefer(
        model,
        load_tokenizer(base),
        rows,
        rule,
        config.strong.training,
        seed=task.seed,
        scratch=task.scratch / STUDENT,
        checkpoint_steps=config.runtime.checkpoint_steps,
        bf16=bf16,
        world_size=world_size,
        progress=lambda at, of, loss: report(
            ProgressEvent(f"student {task.name}", at, of, f"loss {loss:.3f}", {"loss": loss})
        ),
        reading=reading,
    )
    tokens = sum(row.n_tokens for row in rows)
    if rank == 0:
        if bf16 and base.lora is None:
            model.to(torch.bfloat16)
        save_model(model, load_tokenizer(base), task.output if output is None else output, base=base)
    where = describe_device(device)
    return TrainOutcome(
        done.seconds,
        rule.epochs * tokens,
        # The reference reads every pair once.
        tokens * (rule.epochs * training_flops(base) + forward_flops(base)),
        where if world_size == 1 else f"{world_size} x {where}",
        done.steps,
        [round(loss, 6) for loss in done.losses],
    )
