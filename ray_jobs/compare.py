"""A comparison: several ways to make the ensemble, several seeds, one table.

ray job submit --working-dir . -- python ray_jobs/compare.py --config configs/compare.yaml runs_dir=FOLDER
"""

from __future__ import annotations

import argparse
import sys

from ensemw2s.comparisons.command import compare
from ensemw2s.comparisons.config import load_comparison
from ensemw2s.jobs import add_waiting, check_kept, gpus_there, plain_parser, run_job
from ensemw2s.progress import make_progress


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Continues a comparison that was stopped."""
    loaded = load_comparison(arguments.config, overrides)
    check_kept("runs_dir", str(loaded.folder))
    with make_progress() as progress, gpus_there(loaded.base, arguments, progress):
        return compare(arguments.config, overrides)


if __name__ == "__main__":
    parser = plain_parser(__doc__)
    parser.add_argument("--config", required=True, help="YAML file of the comparison")
    add_waiting(parser)
    sys.exit(run_job(parser, run))
