"""Serve a trained ensemble and its student from the cluster, until the job is stopped.

ray job submit --working-dir . -- python ray_jobs/serve.py --run FOLDER/demo --host 0.0.0.0 --api-keys FOLDER/keys.txt
"""

from __future__ import annotations

import argparse
import sys

from ensemw2s.jobs import check_kept, plain_parser, run_job


def serve(arguments: argparse.Namespace, overrides: list[str]) -> int:
    """Stopping the job takes the application away, when what is under way has ended."""
    from ensemw2s.serving.command import serve as serve_run

    check_kept("--run", arguments.run)
    return serve_run(arguments, overrides)


def parser() -> argparse.ArgumentParser:
    """What `ensemw2s serve` takes, but for the executor."""
    made = plain_parser(__doc__)
    made.epilog = "Limits: key=value, for example max_queue=10 quorum=2 (docs/serving.md)."
    made.add_argument(
        "--run", required=True, help="run directory, on storage that all nodes share, or its URI"
    )
    made.add_argument("--host", help="address to listen on (default 127.0.0.1); others need --api-keys")
    made.add_argument("--port", type=int, help="port (default 8000)")
    made.add_argument("--api-keys", help="file with one API key a line; may change while the server runs")
    made.add_argument(
        "--model",
        action="append",
        dest="models",
        choices=("ensemble", "student"),
        help="serve this one only (may be repeated); default: all that the run has",
    )
    made.add_argument(
        "--update",
        action="store_true",
        help="put this run in the place of the one that the cluster serves, without losing a request, and return",
    )
    made.set_defaults(executor="ray")
    return made


if __name__ == "__main__":
    sys.exit(run_job(parser(), serve))
