"""`ensemw2s sweep`, also behind ray_jobs/sweep.py."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from ensemw2s.sweeps.config import load_sweep


def sweep(path: str, overrides: Sequence[str]) -> int:
    """Run or continue a sweep, print its table; returns the exit code: 1 where no trial finished."""
    loaded = load_sweep(path, overrides)
    from ensemw2s.sweeps.report import BEST, best_trial, render_table, write_sweep_report
    from ensemw2s.sweeps.tuning import run_sweep

    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:7.1f} s] {text}", file=sys.stderr, flush=True)

    outcomes = run_sweep(loaded, say)
    write_sweep_report(loaded, outcomes)
    print(render_table(loaded, outcomes))
    print(f"\nreport: {loaded.folder / 'sweep.html'} (also trials.json)")
    best = best_trial(outcomes)
    if best is None:
        print("no trial finished: the table says why", file=sys.stderr)
        return 1
    print(f"best: {best.name}; its whole experiment: ensemw2s run {loaded.folder / BEST}")
    return 0
