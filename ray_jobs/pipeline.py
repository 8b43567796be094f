"""The whole experiment: boost, vote, label, teach, compare, report.

ray job submit --working-dir . -- python ray_jobs/pipeline.py --config configs/demo.yaml runs_dir=FOLDER
"""

from __future__ import annotations

import argparse
import sys

from ensemw2s.console import print_finished, print_results
from ensemw2s.jobs import job_parser, load, run_experiment, run_job


def pipeline(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Continues a run that was stopped; a finished one is shown again."""
    result = run_experiment(load(arguments.config, overrides), arguments, "results")
    if not result.ran:
        print_finished(result.place)
    print_results(result.run_dir, result.place)
    return 0


if __name__ == "__main__":
    sys.exit(run_job(job_parser(__doc__), pipeline))
