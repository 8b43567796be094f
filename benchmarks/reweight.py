"""Reweighting and resampling a training set of 100 million target tokens, against numpy copying the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.common import Ratio, make_parser, medians, publish, ratio_table, table
from ensemw2s.core.boosting import (
    LevelWeights,
    draw_round,
    effective_sample_size,
    reweight,
    weighted_error,
)

TOKENS, QUICK_TOKENS = 100_000_000, 160_000
ALPHA, MISSED = 0.9, 0.3
TOKENS_A_SAMPLE = 16


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--tokens", type=int, default=None, help=f"target tokens (default {TOKENS:,})")
    arguments = parser.parse_args(argv)
    n = arguments.tokens or (QUICK_TOKENS if arguments.quick else TOKENS)
    repeats = arguments.repeats or (2 if arguments.quick else 5)
    rng = np.random.default_rng(0)
    weights = rng.random(n)
    weights /= weights.sum()
    wrong = rng.random(n) < MISSED
    # As the coordinator holds them: after four rounds.
    levels = LevelWeights.uniform(n)
    for _ in range(4):
        levels = levels.reweighted(rng.random(n) < MISSED, ALPHA)
    # Memory that was written before: the pages are there, as they are for the second of many copies.
    to_weights, to_wrong = np.ones_like(weights), np.ones_like(wrong)

    def copy() -> None:
        np.copyto(to_weights, weights)
        np.copyto(to_wrong, wrong)

    seconds = medians(
        {
            "copy": copy,
            "copy, new memory": lambda: (weights.copy(), wrong.copy()),
            "reweight": lambda: reweight(weights, wrong, ALPHA),
            "reweight, capped": lambda: reweight(weights, wrong, ALPHA, max_weight=3.0),
            "weighted error": lambda: weighted_error(wrong, weights),
            "effective sample size": lambda: effective_sample_size(weights),
            "by level: copy, new memory": lambda: (levels.level.copy(), wrong.copy()),
            "by level: reweight": lambda: levels.reweighted(wrong, ALPHA),
            "by level: reweight, capped": lambda: levels.reweighted(wrong, ALPHA, 3.0),
            "by level: weighted error": lambda: levels.error(wrong),
        },
        repeats,
    )
    offsets = np.arange(0, n + 1, TOKENS_A_SAMPLE)
    seconds |= medians(
        {"by level: token bootstrap": lambda: draw_round(1, "token_bootstrap", levels, offsets, rng)}, 1
    )
    gigabytes = (weights.nbytes + wrong.nbytes) / 1e9
    against = f"numpy copying weights and flags, {gigabytes:.2f} GB"
    fresh = "numpy copying them into new memory, as reweighting has to"
    ratios = [
        Ratio(f"reweighting {n:,} tokens", fresh, seconds["copy, new memory"] / seconds["reweight"], 0.4),
        Ratio(
            f"the same by level, {levels.values.size} levels",
            "numpy copying levels and flags into new memory",
            seconds["by level: copy, new memory"] / seconds["by level: reweight"],
            0.4,
        ),
        Ratio("the same", against + ", into memory that is there", seconds["copy"] / seconds["reweight"]),
    ]
    rows = [[name, f"{value:.3f}", f"{value / n * 1e9:.2f}"] for name, value in seconds.items()]
    body = ratio_table(ratios) + "\n\n" + table(("", "seconds", "ns a token"), rows)
    publish("reweight", body, arguments, argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
