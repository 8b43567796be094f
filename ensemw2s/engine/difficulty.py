"""How hard the questions of a run are, where they say so, and how accurate its systems are on easy and hard ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ensemw2s.core.difficulty import difficulty_bins
from ensemw2s.engine.context import RunContext

HISTOGRAM_BINS = 12


def describe_difficulty(
    ctx: RunContext,
    right: Mapping[str, Mapping[str, np.ndarray]],
    ratings: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any] | None:
    """The part ``difficulty`` of results.json; None where no sample carries one.

    Args:
        ctx: the run.
        right: by split and system, (n,) bool.
        ratings: where the difficulties come from, by data source, as far as its file says.

    Returns:
        ``edges`` of the histograms' bins; by split the quartiles (least, 25 %, median, 75 %, largest), the counts and how many
        samples are not rated; by test split, easiest bin first, each system's accuracy; and ``ratings``.
    """
    values = {
        name: np.array([np.nan if s.difficulty is None else s.difficulty for s in ctx.splits[name].samples])
        for name in ctx.splits.names()
    }
    rated = {name: own[~np.isnan(own)] for name, own in values.items()}
    rated = {name: own for name, own in rated.items() if len(own)}
    if not rated:
        return None
    edges = _edges(np.concatenate(list(rated.values())))
    return {
        "ratings": {name: dict(rating) for name, rating in ratings.items()},
        "edges": edges.tolist(),
        "splits": {
            name: {
                "n": len(own),
                "unrated": len(values[name]) - len(own),
                "quartiles": np.quantile(own, [0.0, 0.25, 0.5, 0.75, 1.0]).tolist(),
                "counts": np.histogram(own, edges)[0].tolist(),
            }
            for name, own in rated.items()
        },
        "accuracy": {
            name: _accuracies(values[name], right[name]) for name in ctx.test_splits if name in rated
        },
    }


def _edges(values: np.ndarray) -> np.ndarray:
    """Bin edges; few different values stand in the middle of a bin each."""
    distinct = np.unique(values)
    if len(distinct) > HISTOGRAM_BINS:
        return np.linspace(distinct[0], distinct[-1], HISTOGRAM_BINS + 1)
    if len(distinct) == 1:
        return distinct[0] + np.array([-0.5, 0.5])
    between = (distinct[1:] + distinct[:-1]) / 2
    return np.concatenate([[2 * distinct[0] - between[0]], between, [2 * distinct[-1] - between[-1]]])


def _accuracies(difficulty: np.ndarray, right: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    known = ~np.isnan(difficulty)
    values = difficulty[known]
    bins = difficulty_bins(values)
    return [
        {
            "low": float(values[inside].min()),
            "high": float(values[inside].max()),
            "median": float(np.median(values[inside])),
            "n": int(inside.sum()),
            "systems": {system: float(own[known][inside].mean()) for system, own in right.items()},
        }
        for inside in (bins == b for b in range(int(bins.max()) + 1))
    ]
