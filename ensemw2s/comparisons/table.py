"""From the predictions of many runs to one table: means over seeds, paired intervals, Holm's correction."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ensemw2s.comparisons.config import Comparison
from ensemw2s.core.exact_match import normalize_answer
from ensemw2s.core.metrics import (
    Interval,
    accuracy_interval,
    paired_bootstrap,
    paired_permutation,
    pgr_interval,
)
from ensemw2s.core.multiple import holm
from ensemw2s.errors import ArtifactError

SHARED = (
    ("weak_zero_shot", "Weak model as it is"),
    ("weak_single", "Single weak model"),
    ("student_single", "Student of the single model"),
    ("student_noise", "Student of random noise"),
    ("strong_zero_shot", "Strong model as it is"),
    ("strong_few_shot", "Strong model, few-shot"),
    ("strong_on_easy", "Strong model, easy labels"),
    ("ceiling", "Ceiling (true hard labels)"),
)
"""systems beside the variants, from the first variant's runs; some only where evaluation.baselines asks for them"""
RECOVERING = ("student_single", "student_noise", "strong_on_easy")
"""of these, those whose share of the gap to the ceiling is of interest"""
SECOND_STAGE = "student_preference"
WEAK_STAGES = ("prior-", "member-", "votes-member-", "answers-member-")

Scores = dict[str, np.ndarray]
"""system -> (n_seeds, n) 1.0 where right, samples in one order"""


@dataclass(frozen=True)
class Difference:
    """Against the reference system; `p_holm` is corrected for all differences of the table on this split."""

    value: float
    low: float
    high: float
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class VariantRow:
    """One variant on one test split.

    Attributes:
        name: of the variant.
        ensemble, student: accuracies.
        ensemble_difference: ensemble minus the single weak model of the first variant.
        student_difference: student minus the single model's student of the first variant.
        pgr: of the student, None where there may be no gap.
        members: members that vote, mean over the seeds.
        weak_flops: FLOPs of the weak side, mean over the seeds.
        single_student: student of the variant's own single model, where its labels (or members) differ from the first variant's;
            None where they do not.
        own_difference: student minus that one.
        second_stage: the ensemble's student after its second stage (``strong.preference``); None where it has none.
        second_difference: that one minus the single model's student of the first variant.
        second_pgr: of that one, None where there may be no gap.
        flops_per_point: FLOPs beyond the single model's for each point that the ensemble is better than it; None where it is not.
    """

    name: str
    ensemble: Interval
    student: Interval
    ensemble_difference: Difference
    student_difference: Difference
    pgr: Interval | None
    members: float
    weak_flops: float
    flops_per_point: float | None
    single_student: Interval | None
    own_difference: Difference | None
    second_stage: Interval | None
    second_difference: Difference | None
    second_pgr: Interval | None


@dataclass(frozen=True)
class SplitTable:
    """The comparison on one split: systems that all variants share, and a row a variant.

    Attributes:
        split: its name.
        shared: accuracies, by label.
        shared_differences: of these from the single weak model (the weak model as it is), or from the single model's student.
        shared_pgr: of those that are taught; None where there may be no gap.
        variants: in their order.
    """

    split: str
    shared: dict[str, Interval]
    shared_differences: dict[str, Interval]
    shared_pgr: dict[str, Interval | None]
    variants: list[VariantRow]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def read_scores(run_dirs: list[Path], split: str) -> Scores:
    """Who was right, from the stored predictions of one variant's runs, a run a seed.

    Raises:
        ArtifactError: the runs answered different questions.
    """
    tables = [pq.read_table(folder / "predictions" / f"{split}.parquet").to_pylist() for folder in run_dirs]
    ids = [row["id"] for row in tables[0]]
    if any([row["id"] for row in table] != ids for table in tables):
        raise ArtifactError(f"the runs do not have the same questions in {split}: make the comparison anew")
    systems = [c for c in tables[0][0] if c not in ("id", "question", "choices", "truth")]
    return {s: np.array([[float(_right(row, s)) for row in table] for table in tables]) for s in systems}


def _right(row: dict[str, Any], system: str) -> bool:
    if row["choices"] is not None:
        return bool(row[system] == row["truth"])
    return normalize_answer(row[system]) == normalize_answer(row["truth"])


def build_table(
    comparison: Comparison,
    results: dict[str, list[dict[str, Any]]],
    folders: dict[str, list[Path]],
    split: str,
) -> SplitTable:
    """The table of one split.

    Args:
        comparison: says how to resample.
        results: results.json of each variant's runs, a run a seed; the shared systems come from the first variant.
        folders: their run directories.
        split: easy_val or a test split.
    """
    scores = {name: read_scores(runs, split) for name, runs in folders.items()}
    base = scores[next(iter(scores))]
    resamples, level = comparison.base.evaluation.resamples, comparison.base.evaluation.level
    accuracy = partial(accuracy_interval, n_resamples=resamples, seed=0, level=level)
    others = {name for name, own in scores.items() if (own["student_single"] != base["student_single"]).any()}
    pairs = {
        (name, what): (own[ours], theirs)
        for name, own in scores.items()
        for what, ours, theirs in (
            ("ensemble", "weak_ensemble", base["weak_single"]),
            ("student", "student_ensemble", base["student_single"]),
            ("own", "student_ensemble", own["student_single"]),
            ("second", SECOND_STAGE, base["student_single"]),
        )
        if ours in own and (what != "own" or name in others)
    }
    gap = partial(pgr_interval, base["weak_single"], n_resamples=resamples, seed=0, level=level)
    # Variants that share their members have the same ensemble: one difference, asked about once.
    asked = {(a - b).tobytes(): (a, b) for a, b in pairs.values()}
    found = {key: _compared(a, b, resamples, level) for key, (a, b) in asked.items()}
    corrected = dict(zip(found, holm([p for _, p in found.values()]), strict=True))
    differences = {}
    for key, (a, b) in pairs.items():
        same = (a - b).tobytes()
        differences[key] = _difference(*found[same], float(corrected[same]))
    rows = []
    reference = next(iter(results))
    n_models = len(comparison.run(reference, comparison.config.seeds[0]).weak.models)
    single_flops = float(np.mean([_single_flops(r, n_models) for r in results[reference]]))
    for name, own in scores.items():
        runs = results[name]
        weak_flops = float(np.mean([_weak_flops(r) for r in runs]))
        points = 100.0 * differences[name, "ensemble"].value
        rows.append(
            VariantRow(
                name,
                accuracy(own["weak_ensemble"]),
                accuracy(own["student_ensemble"]),
                differences[name, "ensemble"],
                differences[name, "student"],
                gap(own["student_ensemble"], base["ceiling"]),
                float(np.mean([r["selected_rounds"] for r in runs])),
                weak_flops,
                (weak_flops - single_flops) / points if points > 0 and weak_flops > single_flops else None,
                accuracy(own["student_single"]) if name in others else None,
                differences.get((name, "own")),
                accuracy(own[SECOND_STAGE]) if SECOND_STAGE in own else None,
                differences.get((name, "second")),
                gap(own[SECOND_STAGE], base["ceiling"]) if SECOND_STAGE in own else None,
            )
        )
    there = [(key, label) for key, label in SHARED if key in base]
    apart = {
        label: paired_bootstrap(
            base[key],
            base["weak_single" if key.startswith("weak") else "student_single"],
            n_resamples=resamples,
            seed=0,
            level=level,
        )
        for key, label in there
        if key not in ("weak_single", "student_single")
    }
    pgr = {label: gap(base[key], base["ceiling"]) for key, label in there if key in RECOVERING}
    return SplitTable(split, {label: accuracy(base[key]) for key, label in there}, apart, pgr, rows)


def _compared(a: np.ndarray, b: np.ndarray, resamples: int, level: float) -> tuple[Interval, float]:
    """The difference of two systems, (n_seeds, n), and p that they are alike. A permutation of the answers takes the trained models as they
    are, and would find two ways of training different that only their seeds make so."""
    interval = paired_bootstrap(a, b, n_resamples=resamples, seed=0, level=level, test=len(a) > 1)
    if interval.p_value is None:
        return interval, paired_permutation(a, b, n_permutations=resamples, seed=0)
    return interval, interval.p_value


def _difference(interval: Interval, p: float, adjusted: float) -> Difference:
    return Difference(interval.value, interval.low, interval.high, p, adjusted)


def _weak_flops(results: dict[str, Any]) -> float:
    return sum(c["flops"] for stage, c in results["cost"].items() if stage.startswith(WEAK_STAGES))


def _single_flops(results: dict[str, Any], n_models: int) -> float:
    """FLOPs of the single model, the first member that was kept, alone: those of the ensemble are more."""
    lost = {int(member["attempt"]) for member in results.get("lost_members", ())}
    # Results of earlier versions do not name the attempt, which is the place unless a member was lost.
    attempts = ((member.get("attempt", i), member["kept"]) for i, member in enumerate(results["members"]))
    attempt = next(i for i, kept in attempts if kept and i not in lost)
    name = f"member-{attempt:02d}"
    own = (f"prior-{attempt % n_models}", name, f"votes-{name}", f"answers-{name}")
    return sum(c["flops"] for stage, c in results["cost"].items() if stage in own)
