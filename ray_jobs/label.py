"""Label a file of new questions with a trained ensemble, one supervisor a member.

ray job submit --working-dir . -- python ray_jobs/label.py --run FOLDER/demo --input new.jsonl --output FOLDER/labels.jsonl
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ensemw2s.jobs import (
    add_waiting,
    boosted_run,
    check_kept,
    label_samples,
    load,
    open_run,
    plain_parser,
    run_job,
)


def label(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Writes the labels whole or not at all; an interrupted job goes on."""
    from ensemw2s.data.streaming import SampleFile
    from ensemw2s.data.writing import check_output

    check_kept("--output", arguments.output)
    output = check_output(Path(arguments.output))
    samples = SampleFile(Path(arguments.input))
    if arguments.run is not None:
        config, store = open_run(arguments.run, overrides)
    else:
        config = load(arguments.config, overrides)
        store = boosted_run(config)
    members = label_samples(config, store, samples, output, arguments)
    print(f"{samples.n} labels by {members} members: {output}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The run by its directory or by its configuration, and the files."""
    made = plain_parser(__doc__)
    run = made.add_mutually_exclusive_group(required=True)
    run.add_argument("--run", help="run directory, or its URI")
    run.add_argument("--config", help="YAML file of the run")
    made.add_argument(
        "--input", required=True, help="JSONL, CSV or Parquet with question and, for multiple choice, choices"
    )
    made.add_argument("--output", required=True, help="file to write: .jsonl, .csv or .parquet")
    add_waiting(made)
    return made


if __name__ == "__main__":
    sys.exit(run_job(parser(), label))
