"""Samples divided into easy_train, easy_val, hard_train and test, by id."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ensemw2s.config import DataConfig, SplitConfig
from ensemw2s.data.overlap import SplitReport, check_splits
from ensemw2s.data.samples import Sample
from ensemw2s.data.sources import AnySource, load_source
from ensemw2s.errors import DataError

__all__ = ["SplitReport", "Splits", "check_splits", "make_splits"]

_ROLES = {"easy_train": "train", "easy_val": "validation", "hard_train": "unlabeled", "test": "test"}


@dataclass(frozen=True)
class Splits:
    """Samples by split: easy_train, easy_val, hard_train, test, then the further test sets.

    Attributes:
        samples: each split's samples in the order of their source.
        roles: train, validation, unlabeled, test or further_test, by split.
        report: what the check for repeated samples found.
    """

    samples: dict[str, list[Sample]]
    roles: dict[str, str]
    report: SplitReport


def make_splits(
    data: DataConfig, *, base_dir: Path | None = None, require_hard_answers: bool = True
) -> Splits:
    """Load all sources and divide them.

    Which split a sample falls into depends on the seed and the ids of its source, not on their order.

    Args:
        data: sources and the rule.
        base_dir: folder that relative paths start from.
        require_hard_answers: False allows ``data.hard`` without answers where ``data.test`` is given (no
            ceiling then).

    Raises:
        DataError: a source cannot be used, a split would be empty, a sample stands in two splits, or some
            sources have choices and others have not.
    """
    sources: dict[str, AnySource | None] = {
        "pool": data.pool,
        "easy": data.easy,
        "hard": data.hard,
        "test": data.test,
    }
    sources |= {f"extra_tests.{name}": source for name, source in data.extra_tests.items()}
    loaded = {
        name: _load(name, source, base_dir, require_hard_answers or name != "hard" or data.test is None)
        for name, source in sources.items()
        if source is not None
    }
    _check_one_form(loaded)
    if data.split.method == "given":
        easy, hard = loaded["easy"], loaded["hard"]
    else:
        easy, hard = divide_pool(loaded["pool"], data.split)
    easy_val, easy_train = _cut(easy, data.split.val_fraction, data.split.seed)
    if "test" in loaded:
        test, hard_train = loaded["test"], hard
    else:
        test, hard_train = _cut(hard, data.split.test_fraction, data.split.seed)
    samples = {"easy_train": easy_train, "easy_val": easy_val, "hard_train": hard_train, "test": test}
    samples |= {name: loaded[f"extra_tests.{name}"] for name in data.extra_tests}
    _check_nonempty(samples, "raise the number of samples or change data.split's fractions")
    samples, report = check_splits(samples, duplicates=data.duplicates)
    _check_nonempty(samples, "all of its samples stand in other splits too")
    return Splits(samples, {name: _ROLES.get(name, "further_test") for name in samples}, report)


def divide_pool(pool: Sequence[Sample], split: SplitConfig) -> tuple[list[Sample], list[Sample]]:
    """The easy and the hard side of one data set, each in the order of the pool.

    Raises:
        DataError: method difficulty and a sample has none.
    """
    if split.method == "random":
        hard, easy = _cut(pool, split.hard_fraction, split.seed)
        return easy, hard
    missing = [sample.id for sample in pool if sample.difficulty is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(pool)} samples of data.pool have no difficulty (first: {missing[0]!r}): "
            "set columns.difficulty, or data.split.method=random"
        )
    values = sorted(sample.difficulty for sample in pool if sample.difficulty is not None)
    if split.easy_quantile is not None:
        # The value at the quantile is itself easy, and so is all that ties with it.
        threshold = values[max(0, math.ceil(round(split.easy_quantile * len(values), 9)) - 1)]
    else:
        threshold = math.nan if split.easy_threshold is None else split.easy_threshold
    easy = [s for s in pool if s.difficulty is not None and s.difficulty <= threshold]
    hard = [s for s in pool if s.difficulty is not None and s.difficulty > threshold]
    if not easy or not hard:
        raise DataError(
            f"all {len(pool)} samples of data.pool are {'hard' if hard else 'easy'} at difficulty <= "
            f"{threshold:g} (they "
            f"reach from {values[0]:g} to {values[-1]:g}): change data.split.easy_quantile or easy_threshold"
        )
    return easy, hard


def _cut(samples: Sequence[Sample], fraction: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """A share of the samples by the rank of sha256(seed:id), and the others; both in the given order."""

    def rank(sample: Sample) -> str:
        return hashlib.sha256(f"{seed}:{sample.id}".encode()).hexdigest()

    count = int(fraction * len(samples) + 0.5)
    chosen = {sample.id for sample in sorted(samples, key=rank)[:count]}
    return [s for s in samples if s.id in chosen], [s for s in samples if s.id not in chosen]


def _load(name: str, source: AnySource, base_dir: Path | None, require_answer: bool) -> list[Sample]:
    try:
        return load_source(source, base_dir=base_dir, require_answer=require_answer)
    except DataError as error:
        raise DataError(f"data.{name}: {error}") from error


def _check_one_form(loaded: dict[str, list[Sample]]) -> None:
    forms: dict[bool, str] = {}
    for name, samples in loaded.items():
        forms.setdefault(samples[0].choices is not None, name)
    if len(forms) > 1:
        raise DataError(
            f"data.{forms[True]} has choices and data.{forms[False]} has none: all sources must be alike"
        )


def _check_nonempty(samples: dict[str, list[Sample]], reason: str) -> None:
    empty = [name for name, rows in samples.items() if not rows]
    if empty:
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in samples.items())
        raise DataError(f"the split {empty[0]} is empty ({sizes}): {reason}")
