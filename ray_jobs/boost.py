"""Boost the weak models and label the hard data: rounds, votes and pseudo-labels, no strong model.

ray job submit --working-dir . -- python ray_jobs/boost.py --config configs/demo.yaml runs_dir=FOLDER
"""

from __future__ import annotations

import argparse
import sys

from ensemw2s.jobs import job_parser, load, run_experiment, run_job


def boost(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Continues a run that was stopped; a boosted one is shown again."""
    from ensemw2s.runs.status import read_status, render_status

    result = run_experiment(load(arguments.config, overrides), arguments, "labels")
    print(render_status(read_status(result.run_dir)))
    print(f"\npseudo-labels: {result.run_dir / 'labels' / 'ensemble.parquet'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_job(job_parser(__doc__), boost))
