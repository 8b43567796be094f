"""What the command line and the jobs share: exit codes, errors as single lines, the final table.

Exit codes: 0 done, 1 a failure that the same command can continue from, 2 the input cannot be used, 130 interrupted.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from ensemw2s.errors import EnsemW2SError, UserError

FAILED, REFUSED, INTERRUPTED = 1, 2, 130


def exit_code(action: Callable[[], int]) -> int:
    """Run `action` and return its exit code, or the one of its error, which is printed without a traceback.

    SIGTERM ends it like Ctrl-C does. Errors that are nobody's intention keep their traceback.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        return action()
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return REFUSED
    except EnsemW2SError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as end:
        # ray.init replaces the handler of SIGTERM by one that exits with the signal's number.
        if end.code == signal.SIGTERM:
            return _interrupted()
        raise
    except BrokenPipeError:
        return FAILED


def print_results(run_dir: Path, place: str | None = None) -> None:
    """The comparison of a finished run, in color on a terminal, and where its report lies.

    Args:
        run_dir: its folder, or this machine's copy.
        place: the run's own name, if that is another: a URI.
    """
    from rich.console import Console

    from ensemw2s.api import read_results
    from ensemw2s.runs.tables import render_rich, render_text

    results = read_results(run_dir)
    if sys.stdout.isatty():
        render_rich(results, Console())
    else:
        print(render_text(results))
    print(f"\nreport: {run_dir / 'report.html'} (also report.md, results.json)")
    if place is not None and place != str(run_dir):
        print(f"the run itself: {place}")


def print_finished(run_dir: Path | str) -> None:
    """Say that there was nothing left to do."""
    print(
        f"{run_dir} is finished: nothing to do. Another seed or name makes another run.",
        file=sys.stderr,
    )


def _interrupted() -> int:
    print("interrupted: what was committed is kept; the same command continues", file=sys.stderr)
    return INTERRUPTED


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
