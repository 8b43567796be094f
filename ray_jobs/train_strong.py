"""Teach the strong model with the pseudo-labels of a boosted run, and compare: students, results, report.

ray job submit --working-dir . -- python ray_jobs/train_strong.py --config configs/demo.yaml runs_dir=FOLDER
"""

from __future__ import annotations

import argparse
import sys

from ensemw2s.console import print_finished, print_results
from ensemw2s.jobs import boosted_run, job_parser, load, run_experiment, run_job


def train_strong(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Continues the run that boost.py made with the same configuration."""
    config = load(arguments.config, overrides)
    boosted_run(config)
    result = run_experiment(config, arguments, "results")
    if not result.ran:
        print_finished(result.place)
    print_results(result.run_dir, result.place)
    return 0


if __name__ == "__main__":
    sys.exit(run_job(job_parser(__doc__), train_strong))
