"""A sweep: one experiment with many settings, chosen on validation.

ray job submit --working-dir . -- python ray_jobs/sweep.py --config configs/sweep.yaml runs_dir=FOLDER
"""

from __future__ import annotations

import argparse
import sys

from ensemw2s.jobs import add_waiting, check_kept, gpus_there, plain_parser, run_job
from ensemw2s.progress import make_progress
from ensemw2s.sweeps.command import sweep
from ensemw2s.sweeps.config import load_sweep


def run(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Continues a sweep that was stopped."""
    loaded = load_sweep(arguments.config, overrides)
    check_kept("runs_dir", str(loaded.folder))
    with make_progress() as progress, gpus_there(loaded.base, arguments, progress):
        return sweep(arguments.config, overrides)


if __name__ == "__main__":
    parser = plain_parser(__doc__)
    parser.add_argument("--config", required=True, help="YAML file of the sweep")
    add_waiting(parser)
    sys.exit(run_job(parser, run))
