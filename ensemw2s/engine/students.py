"""What a student is taught: questions with the labels of one teacher, in the strong model's tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from ensemw2s.config import ExperimentConfig
from ensemw2s.config.models import StrongTrainingConfig
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.encoded import EncodedSplit, EncodedSplits
from ensemw2s.engine.soft_labels import labels_path, read_token_labels, tokens_path
from ensemw2s.engine.tasks import StudentTask
from ensemw2s.engine.teaching import by_classes
from ensemw2s.errors import DataError
from ensemw2s.training.plan import TrainingSet

TEACHERS = ("single", "ensemble")
LEFT_OUT = 0.01
"""share of a vote that need not be taught: each choice costs a forward pass, and moves the student by its share"""


def student_training_set(
    config: ExperimentConfig, run_dir: Path, splits: EncodedSplits, task: StudentTask
) -> TrainingSet:
    """The training set of a student: every labelled sample once, every target token with weight 1.

    With ``labels.targets`` choices, every choice of a sample is a row whose weight is its share of the teacher's vote:
    the cross-entropy with the teacher's distribution over the answers; a classification head whose loss takes a distribution
    has one row with the share of each class. With tokens, each target token has the vote's distribution beside it. Labels
    of the truth are certain: one choice, one token.

    Args:
        config: what labels say.
        run_dir: holds the teacher's soft labels.
        splits: in the strong model's tokens.
        task: the student.

    Raises:
        DataError: no sample has a label.
    """
    samples = splits[task.split].samples
    if len(samples) != len(task.labels):
        raise ValueError(f"{len(samples)} samples, {len(task.labels)} labels")
    kept = [i for i, label in enumerate(task.labels) if label is not None]
    if not kept:
        raise DataError(
            f"no sample of {task.split} got a label for student {task.name}: the teacher answered nothing"
        )
    of_classes = by_classes(config)
    if config.labels.targets == "choices" and task.teacher is not None and not of_classes:
        return _by_choice(splits, task, kept, run_dir / labels_path(task.teacher))
    data = splits.encode([replace(samples[i], answer=task.labels[i]) for i in kept])
    rows = TrainingSet.uniform([e.prompt for e in data.encoded], data.targets)
    uncertainty = np.zeros(len(kept))
    if task.teacher is not None:
        uncertainty = _uncertainty(run_dir / labels_path(task.teacher), kept)
    soft = None
    if config.labels.targets == "tokens":
        soft = _certain(data) if task.teacher is None else _voted(data, run_dir / tokens_path(task.teacher))
    elif of_classes:
        soft = _certain(data) if task.teacher is None else _shares(run_dir / labels_path(task.teacher), kept)
    return replace(rows, uncertainty=uncertainty, soft=soft)


def _by_choice(splits: EncodedSplits, task: StudentTask, kept: list[int], path: Path) -> TrainingSet:
    """A row for every choice with a share that counts, all of a sample in one group."""
    shares = pq.read_table(path, columns=["shares"]).column("shares").to_pylist()
    rows, weights, groups = [], [], []
    for group, i in enumerate(kept):
        own = taught_shares(np.array(shares[i], dtype=np.float64))
        for choice in np.flatnonzero(own):
            rows.append(replace(splits[task.split].samples[i], answer=int(choice)))
            weights.append(float(own[choice]))
            groups.append(group)
    data = splits.encode(rows)
    lengths = np.array([len(t) for t in data.targets], dtype=np.float64)
    return TrainingSet(
        [e.prompt for e in data.encoded],
        data.targets,
        [np.full(len(t), w) for t, w in zip(data.targets, weights, strict=True)],
        np.array(weights) * lengths,
        uncertainty=_uncertainty(path, kept)[np.array(groups)],
        groups=np.array(groups, dtype=np.int64),
    )


def taught_shares(shares: np.ndarray) -> np.ndarray:
    """(K,) shares of a question's choices without the smallest ones, which together have at most `LEFT_OUT`; scaled to the sum 1."""
    order = np.argsort(shares, kind="stable")
    kept = shares.copy()
    kept[order[np.cumsum(shares[order]) <= LEFT_OUT * shares.sum()]] = 0.0
    scaled: np.ndarray = kept / kept.sum()
    return scaled


def _uncertainty(path: Path, kept: list[int]) -> np.ndarray:
    """1 - the teacher's confidence."""
    confidence = pq.read_table(path, columns=["confidence"]).column("confidence").to_numpy()
    return np.clip(1.0 - confidence[kept], 0.0, 1.0)


def _certain(data: EncodedSplit) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(t[:, None].astype(np.int32), np.ones((len(t), 1), dtype=np.float32)) for t in data.targets]


def _voted(data: EncodedSplit, path: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    soft = read_token_labels(path)
    return [(soft.ids[s.id], soft.probs[s.id]) for s in data.samples]


def _shares(path: Path, kept: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The teacher's share of every class, at the one target of a sample."""
    shares = pq.read_table(path, columns=["shares"]).column("shares").to_pylist()
    return [
        (np.arange(len(shares[i]), dtype=np.int32)[None], np.array(shares[i], dtype=np.float32)[None])
        for i in kept
    ]


def student_system(ctx: RunContext, name: str) -> str:
    """Name of a student's score files; a student with another's labels shares that one's."""
    stage = ctx.store.done(f"student-{name}")
    return (
        f"student-{stage.info['same_as']}"
        if stage is not None and "same_as" in stage.info
        else f"student-{name}"
    )


def student_training(config: ExperimentConfig, task: StudentTask) -> StrongTrainingConfig:
    """How a student is trained."""
    training = config.strong.training
    return truth_training(training) if task.name in ("ceiling", "on_easy") else training


def truth_training(training: StrongTrainingConfig) -> StrongTrainingConfig:
    """How the ceiling and the student of the easy labels are trained: they have the truth, and are fine-tuned on it plainly where the
    others are told to trust themselves against doubtful labels (Burns et al. 2023, arXiv 2312.09390, sections 3 and 4.3.2)."""
    if training.loss == "confidence":
        return training.model_copy(update={"loss": "cross_entropy", "loss_options": {}})
    return training
