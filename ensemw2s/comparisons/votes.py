"""What every label model would have made of each variant's members: means over the seeds, from the runs' diagnostics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ensemw2s.runs.report_diagnostics import LABELS, vote_name
from ensemw2s.runs.report_format import NOTHING, percent

Results = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class VoteTable:
    """Ways to vote on one split.

    Attributes:
        split: hard_train (the labels) or a test split.
        variants: those whose members vote on choices.
        rows: a way to vote, and the mean accuracy of each variant's members; None where a run has none.
    """

    split: str
    variants: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        rows = [{"vote": name, "accuracy": list(values)} for name, values in self.rows]
        return {"split": self.split, "variants": list(self.variants), "rows": rows}

    def cells(self) -> list[list[str]]:
        """The rows as text."""
        return [[name, *(NOTHING if v is None else percent(v) for v in values)] for name, values in self.rows]


def vote_tables(results: Results, tests: list[str]) -> list[VoteTable]:
    """A table for the labels and for each test split; none where no members vote on choices.

    Args:
        results: results.json of each variant's runs, a run a seed; those of versions that did not look give nothing.
        tests: the test splits.
    """
    found = {name: [_by_name(run) for run in runs] for name, runs in results.items()}
    voting = {name: runs for name, runs in found.items() if all(runs)}
    # The ways that all runs have; a run may have its own beside them.
    names = [n for n in (next(iter(voting.values()))[0] if voting else ()) if _everywhere(n, voting)]
    return [
        VoteTable(
            split,
            tuple(voting),
            tuple((name, tuple(_mean(name, split, runs) for runs in voting.values())) for name in names),
        )
        for split in (LABELS, *tests)
        if names
    ]


def _by_name(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    rows = (results.get("diagnostics") or {}).get("votes") or []
    return {vote_name(row): row["splits"] for row in rows}


def _everywhere(name: str, voting: dict[str, list[dict[str, dict[str, Any]]]]) -> bool:
    return all(name in run for runs in voting.values() for run in runs)


def _mean(name: str, split: str, runs: list[dict[str, dict[str, Any]]]) -> float | None:
    values = [run[name][split]["accuracy"] for run in runs if split in run[name]]
    return float(np.mean(values)) if len(values) == len(runs) else None
