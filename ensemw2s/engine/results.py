"""The last stage: join the answers with the truth, and write results.json and the predictions."""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ensemw2s.core.levels import LevelWeights
from ensemw2s.core.metrics import (
    Interval,
    accuracy_interval,
    paired_bootstrap,
    paired_permutation,
    pgr_interval,
)
from ensemw2s.engine.answers import Answers, Ensemble, correct, ensemble_answers, model_answers
from ensemw2s.engine.boosting import MemberRecord, unit_weights
from ensemw2s.engine.checks import chance, label_correct, taught_rows
from ensemw2s.engine.choice_scoring import other_choice_scores
from ensemw2s.engine.context import FEW_SHOT, RunContext
from ensemw2s.engine.diagnostics import diagnose
from ensemw2s.engine.difficulty import describe_difficulty
from ensemw2s.engine.lost import lost_members
from ensemw2s.engine.lost import sentence as lost_sentence
from ensemw2s.engine.merging import voting_ensemble
from ensemw2s.engine.other_votes import other_votes
from ensemw2s.engine.preferences import SYSTEM as PREFERENCE
from ensemw2s.engine.students import TEACHERS, student_system
from ensemw2s.engine.tasks import add_costs
from ensemw2s.engine.unit_errors import build_units
from ensemw2s.runs.store import write_atomic

SYSTEMS = (
    "weak_zero_shot",
    "weak_single",
    "weak_ensemble",
    "strong_zero_shot",
    "strong_on_easy",
    "student_single",
    "student_ensemble",
    "ceiling",
)
COMPARED = (
    ("weak_ensemble", "weak_single"),
    ("student_ensemble", "student_single"),
    ("student_ensemble", "weak_ensemble"),
    ("student_ensemble", "strong_on_easy"),
    ("student_ensemble", "ceiling"),
)
#: Systems that a run may have beside them, and what they are compared with.
EXTRA_COMPARED = {
    "strong_few_shot": ("student_ensemble", "strong_few_shot"),
    "student_noise": ("student_ensemble", "student_noise"),
    PREFERENCE: (PREFERENCE, "student_ensemble"),
}
PACKAGES = (
    "ensemw2s",
    "torch",
    "transformers",
    "numpy",
    "ray",
    "deepspeed",
    "datasets",
    "peft",
    "pyarrow",
    "reasoning-gym",
)


def extra_systems(ctx: RunContext) -> dict[str, str]:
    """Those that this run has, and the names of their score files."""
    baselines = ctx.config.evaluation.baselines
    found: dict[str, str] = {}
    if "few_shot" in baselines:
        found["strong_few_shot"] = FEW_SHOT
    if "random_noise" in baselines:
        found["student_noise"] = student_system(ctx, "noise")
    if ctx.config.strong.preference is not None:
        found[PREFERENCE] = student_system(ctx, "preference")
    return found


def system_files(ctx: RunContext, ensemble: Ensemble) -> dict[str, str]:
    """Every system that is one model, and the name of its score files."""
    return {
        "weak_zero_shot": "weak-0",
        "weak_single": ensemble.systems[0],
        "strong_zero_shot": "strong",
        "strong_on_easy": student_system(ctx, "on_easy"),
        "student_single": student_system(ctx, "single"),
        "student_ensemble": student_system(ctx, "ensemble"),
        "ceiling": student_system(ctx, "ceiling"),
        **extra_systems(ctx),
    }


def all_answers(ctx: RunContext, ensemble: Ensemble, selected: int, split: str) -> dict[str, Answers]:
    """Every system's answers to a split, from what is committed."""
    found = {name: model_answers(ctx, files, split) for name, files in system_files(ctx, ensemble).items()}
    found["weak_ensemble"] = ensemble_answers(ctx, voting_ensemble(ctx, ensemble, selected), split)
    return {name: found[name] for name in (*SYSTEMS, *extra_systems(ctx))}


def build_results(
    ctx: RunContext, records: list[MemberRecord], ensemble: Ensemble, selected: int
) -> dict[str, Any]:
    """results.json as a dict; see the documentation of the run directory for its keys."""
    config = ctx.config
    evaluated = ["easy_val", *ctx.test_splits]
    answers = {split: all_answers(ctx, ensemble, selected, split) for split in evaluated}
    right = {
        split: {n: correct(ctx.splits[split].samples, a) for n, a in own.items()}
        for split, own in answers.items()
    }
    kept = [r for r in records if r.kept]
    lost = lost_members(ctx.store)
    select = ctx.store.require("select").info
    data_info = ctx.store.require("splits").info
    staged_splits = [*evaluated, "hard_train"] if ctx.multiple_choice else evaluated
    results: dict[str, Any] = {
        "schema": 1,
        "name": config.name,
        "task": "multiple_choice" if ctx.multiple_choice else "generation",
        "seed": config.seed,
        "splits": {
            s: {
                "n": len(ctx.splits[s].samples),
                "target_tokens": int(ctx.splits[s].target_offsets[-1])
                if s in ("easy_train", "easy_val")
                else None,
                "role": data_info["roles"][s],
                "chance": chance(ctx, s),
                "truncated": data_info["truncated"].get(s, 0),
            }
            for s in ctx.splits.names()
        },
        "split_check": {k: data_info[k] for k in ("duplicates_dropped", "same_question_warnings")},
        "members": [_member(r) for r in records],
        "lost_members": lost,
        "effective_sample_size": [r.effective_sample_size for r in kept],
        "n_units": len(unit_weights(ctx, records[-1].attempt)),
        "token_weight": token_weight(ctx, kept),
        "staged": {s: _staged(ctx, ensemble, s) for s in staged_splits},
        "selected_rounds": selected,
        "selection": {k: select[k] for k in ("rule", "split", "scores")},
        "pgr": {},
        "comparisons": {},
        "label_accuracy": {t: _interval(ctx, label_correct(ctx, t)) for t in TEACHERS},
        "taught_label_accuracy": {
            t: _interval(ctx, label_correct(ctx, t)[taught_rows(ctx, t)]) for t in TEACHERS
        },
        "diagnostics": {
            **diagnose(ctx, ensemble, selected, answers),
            "choice_scores": other_choice_scores(
                ctx, voting_ensemble(ctx, ensemble, selected), system_files(ctx, ensemble)
            ),
            "votes": other_votes(ctx, voting_ensemble(ctx, ensemble, selected)),
        },
        "difficulty": describe_difficulty(ctx, right, data_info.get("ratings", {})),
        "warnings": [*data_info["warnings"], *ctx.warnings, *map(lost_sentence, lost)],
    }
    extra = extra_systems(ctx)
    for system in (*SYSTEMS, *extra):
        results[system] = {split: _interval(ctx, right[split][system]) for split in evaluated}
    for split in ctx.test_splits:
        results["pgr"][split] = {
            who: _pgr(
                ctx, right[split]["weak_single"], right[split][f"student_{who}"], right[split]["ceiling"]
            )
            for who in ("single", "ensemble", *(["preference"] if PREFERENCE in extra else []))
        }
        pairs = [*COMPARED, *(EXTRA_COMPARED[name] for name in extra)]
        results["comparisons"][split] = [_compare(ctx, right[split], a, b) for a, b in pairs]
    results["cost"] = _cost(ctx)
    results["versions"] = versions()
    return results


def comparable(results: dict[str, Any]) -> dict[str, Any]:
    """The part of results.json that is the same for two runs of one configuration: all but times and versions."""
    kept = {k: v for k, v in results.items() if k not in ("cost", "versions")}
    kept["members"] = [{k: v for k, v in m.items() if k != "train_seconds"} for m in results["members"]]
    return kept


def write_results(
    ctx: RunContext, folder: Path, results: dict[str, Any], ensemble: Ensemble, selected: int
) -> None:
    """results.json and predictions/*.parquet into `folder`."""
    write_atomic(folder / "results.json", json.dumps(results, indent=1) + "\n")
    (folder / "predictions").mkdir(parents=True)
    for split in ["easy_val", *ctx.test_splits]:
        samples = ctx.splits[split].samples
        columns: dict[str, Any] = {
            "id": [s.id for s in samples],
            "question": [s.question for s in samples],
            "choices": pa.array(
                [list(s.choices) if s.choices else None for s in samples], pa.list_(pa.string())
            ),
            "truth": [s.answer_text for s in samples],
        }
        for system, answers in all_answers(ctx, ensemble, selected, split).items():
            columns[system] = [
                s.choices[int(v)] if s.choices else str(v)
                for s, v in zip(samples, answers.values, strict=True)
            ]
        pq.write_table(pa.table(columns), folder / "predictions" / f"{split}.parquet", compression="zstd")


def token_weight(
    ctx: RunContext, kept: list[MemberRecord], n_points: int = 41, n_heaviest: int = 20
) -> dict[str, Any]:
    """Where the weight went: share of the weight on the heaviest x of the units, by round, and the heaviest units."""
    x = np.linspace(0.0, 1.0, n_points)
    curves = []
    for record in kept:
        weights = unit_weights(ctx, record.attempt)
        order, counts = np.argsort(-weights.values, kind="stable"), weights.counts()
        # A line from level to level: units of one level have equal shares.
        units = np.concatenate([[0.0], np.cumsum(counts[order])]) / len(weights)
        shares = np.concatenate([[0.0], np.cumsum((weights.values * counts)[order])])
        curves.append(np.interp(x, units, shares).round(6).tolist())
    last = unit_weights(ctx, kept[-1].attempt)
    return {"curve_x": x.round(6).tolist(), "curves": curves, "heaviest": _heaviest(ctx, last, n_heaviest)}


def _heaviest(ctx: RunContext, weights: LevelWeights, n: int) -> list[dict[str, Any]]:
    split, tokenizer = ctx.splits["easy_train"], ctx.splits.tokenizer
    tokens = split.of_member(0)
    units = build_units(ctx.config.boosting, split)
    rows = []
    for unit in weights.heaviest(n):
        sample, start, stop = units.place(unit)
        start, stop = split.first_tokens(sample, start, stop)
        target = tokens.targets[sample]
        context = str(tokenizer.decode(np.concatenate([tokens.encoded[sample].prompt, target[:start]])))
        token = str(tokenizer.decode(target[start:stop]))
        if ctx.splits.n_classes is not None:
            token = str(split.samples[sample].answer_text)
        rows.append(
            {
                "sample": split.samples[sample].id,
                "token": token,
                "context": context[-120:],
                "times_uniform": float(weights.values[weights.level[unit]] * len(weights)),
            }
        )
    return rows


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _member(record: MemberRecord) -> dict[str, Any]:
    keys = (
        "attempt",
        "round",
        "base",
        "error",
        "errors",
        "prior_error",
        "alpha",
        "kept",
        "reason",
        "train_seconds",
        "train_tokens",
    )
    return {k: getattr(record, k) for k in keys}


def _staged(ctx: RunContext, ensemble: Ensemble, split: str) -> list[float]:
    samples = ctx.splits[split].samples
    prefixes = [ensemble.first(t) for t in range(1, len(ensemble.refs) + 1)]
    return [float(correct(samples, ensemble_answers(ctx, p, split)).mean()) for p in prefixes]


def _interval(ctx: RunContext, right: np.ndarray) -> dict[str, Any]:
    e = ctx.config.evaluation
    return _plain(accuracy_interval(right, n_resamples=e.resamples, seed=ctx.config.seed, level=e.level))


def _plain(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}


def _pgr(
    ctx: RunContext, weak: np.ndarray, student: np.ndarray, ceiling: np.ndarray
) -> dict[str, Any] | None:
    e = ctx.config.evaluation
    scores = (weak.astype(float), student.astype(float), ceiling.astype(float))
    interval = pgr_interval(*scores, n_resamples=e.resamples, seed=ctx.config.seed, level=e.level)
    if interval is None:
        return None
    # Resamples whose gap is 0 have no finite PGR; JSON has no infinity.
    ends = {k: (v if np.isfinite(v) else None) for k, v in (("low", interval.low), ("high", interval.high))}
    return {"value": interval.value, **ends}


def _compare(ctx: RunContext, right: dict[str, np.ndarray], a: str, b: str) -> dict[str, Any]:
    e = ctx.config.evaluation
    first, second = right[a].astype(float), right[b].astype(float)
    interval = paired_bootstrap(first, second, n_resamples=e.resamples, seed=ctx.config.seed, level=e.level)
    p = paired_permutation(first, second, n_permutations=e.resamples, seed=ctx.config.seed)
    return {
        "a": a,
        "b": b,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "p_value": p,
    }


def _cost(ctx: RunContext) -> dict[str, Any]:
    """Cost by stage; the many small scoring stages of one system are added up."""
    # One split's name may end another's.
    splits = sorted(ctx.splits.names(), key=len, reverse=True)
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, record in ctx.store.stages().items():
        if "cost" in record.info:
            kind, _, rest = name.partition("-")
            label = name
            if kind in ("votes", "answers"):
                split = next((s for s in splits if rest.endswith(f"-{s}")), "")
                label = f"{kind}-{rest.removesuffix(f'-{split}')}"
            groups.setdefault(label, []).append(record.info["cost"])
    return {label: add_costs(parts) for label, parts in groups.items()}
