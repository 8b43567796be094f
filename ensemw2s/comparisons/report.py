"""comparison.html, comparison.json and the table on the terminal."""

from __future__ import annotations

import json
from pathlib import Path

from ensemw2s.comparisons.config import Comparison
from ensemw2s.comparisons.table import SHARED, Difference, SplitTable, VariantRow
from ensemw2s.comparisons.votes import VoteTable
from ensemw2s.core.metrics import Interval
from ensemw2s.runs.report_diagnostics import LABELS
from ensemw2s.runs.report_format import flops, p_value, percent_interval
from ensemw2s.runs.report_render import page
from ensemw2s.runs.store import write_atomic

TEMPLATES = Path(__file__).parent / "templates"
HEADER = [
    "system",
    "ensemble",
    "against the single model",
    "student",
    "against its student",
    "PGR",
    "weak FLOPs",
    "FLOPs a point",
]
NOTES = (
    "Shares of questions answered right, means over the seeds. Intervals and differences resample seeds and questions together; "
    "with few seeds they say little about other seeds.",
    "p is from the same resamples of seeds and questions (with one seed: a paired permutation test over questions, which says nothing of "
    "other seeds), corrected by Holm's method for all differences of the variants on the split. The rows above theirs have intervals "
    "alone.",
    "Where a variant's labels or members give its single model another student, that student has a row: what the variant does for a "
    "student of one model, and how much better the ensemble's is then.",
    "Weak FLOPs: training and scoring of the members of one run, as estimated, whether computed in that run or taken from an equal one. "
    "FLOPs a point: those beyond the single model's, for each point that the ensemble is better than it.",
)
#: Under the table of easy_val.
CHOSEN_ON = (
    "easy_val is what the number of members (vote.rounds), temperatures and fitted weights are chosen on: an ensemble that is so chosen "
    "is flattered there, and its p-values are too small. No choice looks at test sets."
)


def notes(split: str) -> tuple[str, ...]:
    """What is said under the table of a split."""
    return (CHOSEN_ON,) if split == "easy_val" else ()


def write_comparison(
    comparison: Comparison, tables: list[SplitTable], votes: list[VoteTable], failed: dict[str, str]
) -> None:
    """Write comparison.json and comparison.html into the comparison's folder; `failed` says which variants have no row."""
    folder = comparison.folder
    splits = [t.to_dict() for t in tables]
    content = {
        "seeds": list(comparison.config.seeds),
        "splits": splits,
        "votes": [v.to_dict() for v in votes],
        "failed": failed,
    }
    write_atomic(folder / "comparison.json", json.dumps(content, indent=1) + "\n")
    html = page(
        TEMPLATES,
        "comparison.html.j2",
        name=comparison.config.name,
        seeds=len(comparison.config.seeds),
        header=HEADER,
        tables=[
            {"split": t.split, "n": _count(t), "rows": cells(t), "notes": notes(t.split)} for t in tables
        ],
        notes=NOTES,
        votes=[
            {"split": _words(v.split), "header": ["vote", *v.variants], "rows": v.cells(), "notes": ()}
            for v in votes
        ],
        failed=failed,
        variants={
            name: ", ".join(f"{k}={json.dumps(v)}" for k, v in changes.items()) or "the experiment as it is"
            for name, changes in comparison.config.variants.items()
        },
    )
    write_atomic(folder / "comparison.html", html)


def _words(split: str) -> str:
    return f"{split} (the labels)" if split == LABELS else split


def render_table(table: SplitTable, seeds: int) -> str:
    """One split's table as text."""
    rows = [HEADER, *cells(table)]
    widths = [max(len(r[c]) for r in rows) for c in range(len(HEADER))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join([f"{table.split}: {_count(table)} questions, {seeds} seed(s)", *lines])


def cells(table: SplitTable) -> list[list[str]]:
    """The rows as text: shared systems, then variants."""
    weak = {label for key, label in SHARED if key.startswith("weak")}
    rows: list[list[str]] = []
    for label, interval in table.shared.items():
        row = [label, *("" for _ in HEADER[1:])]
        # One model stands in the ensemble's column, a taught one in the student's.
        place = 1 if label in weak else 3
        row[place] = _interval(interval)
        if label in table.shared_differences:
            row[place + 1] = _points(table.shared_differences[label])
        if label in table.shared_pgr:
            row[5] = _gap(table.shared_pgr[label])
        rows.append(row)
    for variant in table.variants:
        rows.append(_variant(variant))
        if variant.single_student is not None and variant.own_difference is not None:
            own = ["" for _ in HEADER]
            own[0] = f"{variant.name}: student of its single model"
            own[3] = _interval(variant.single_student)
            own[4] = f"ensemble's: {_difference(variant.own_difference)}"
            rows.append(own)
        if variant.second_stage is not None and variant.second_difference is not None:
            second = ["" for _ in HEADER]
            second[0] = f"{variant.name}: student after its second stage"
            second[3] = _interval(variant.second_stage)
            second[4] = _difference(variant.second_difference)
            second[5] = _gap(variant.second_pgr)
            rows.append(second)
    return rows


def _variant(row: VariantRow) -> list[str]:
    return [
        f"{row.name} ({row.members:.3g} members)",
        _interval(row.ensemble),
        _difference(row.ensemble_difference),
        _interval(row.student),
        _difference(row.student_difference),
        _gap(row.pgr),
        flops(row.weak_flops),
        "" if row.flops_per_point is None else flops(row.flops_per_point),
    ]


def _count(table: SplitTable) -> int:
    return next(iter(table.shared.values())).n


def _interval(interval: Interval) -> str:
    return percent_interval(interval.to_dict())


def _gap(pgr: Interval | None) -> str:
    return "undefined" if pgr is None else f"{pgr.value:.2f} ({pgr.low:.2f} to {pgr.high:.2f})"


def _points(d: Interval | Difference) -> str:
    return f"{d.value * 100:+.1f} ({d.low * 100:+.1f} to {d.high * 100:+.1f})"


def _difference(d: Difference) -> str:
    return f"{_points(d)}, {p_value(d.p_holm)}"
