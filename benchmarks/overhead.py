"""Wall time of a run against the pure compute in it.

Compute is what results.json counts under `cost`: seconds in which members are trained, texts are scored or answers decoded, and
students are trained, without loading models, starting workers, writing or hashing files. Where several supervisors work
at a time their seconds overlap, and the difference says nothing: give a run of one supervisor.

Measure a new run (CONFIG and overrides as for `ensemw2s run`), or one that was not interrupted (--run): its wall time is then
the time between its first file and its results.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Ratio, make_parser, publish, ratio_table, table


def compute_seconds(cost: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds by kind of work: the names of results.json's `cost` up to the first hyphen."""
    kinds: dict[str, float] = {}
    for name, spent in cost.items():
        kind = name.partition("-")[0]
        kinds[kind] = kinds.get(kind, 0.0) + float(spent["seconds"])
    return kinds


def wall_of(run: Path) -> float:
    """Seconds between the first file of a run, its configuration, and its results."""
    return (run / "results.json").stat().st_mtime - (run / "config.yaml").stat().st_mtime


def run_now(config: str, overrides: Sequence[str]) -> tuple[Path, float]:
    """Run an experiment in a process of its own; its directory and its wall time, start of the process included."""
    from ensemw2s.engine.prepare import check_directory
    from ensemw2s.settings import load_config

    store = check_directory(load_config(config, list(overrides)))
    if store.exists:
        raise SystemExit(f"{store.folder} is there already: give another name=..., or measure it with --run")
    begun = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "ensemw2s.cli", "run", config, *overrides],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return store.folder, time.monotonic() - begun


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("config", nargs="?", help="YAML file of an experiment")
    parser.add_argument("overrides", nargs="*", help="key=value")
    parser.add_argument("--run", type=Path, default=None, help="a run directory that is there")
    arguments = parser.parse_args(argv)
    if (arguments.run is None) == (arguments.config is None):
        parser.error("give either a configuration or --run RUN")
    if arguments.run is not None:
        run, wall = arguments.run, wall_of(arguments.run)
    else:
        run, wall = run_now(arguments.config, arguments.overrides)
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    kinds = compute_seconds(results["cost"])
    compute = sum(kinds.values())
    ratio = Ratio(f"compute in the wall time of {run.name}", "wall time", compute / wall, 1 / 1.05)
    rows = [[kind, f"{seconds:.0f}", f"{seconds / wall:.1%}"] for kind, seconds in kinds.items()]
    rows.append(["all else", f"{wall - compute:.0f}", f"{1 - compute / wall:.1%}"])
    note = f"{wall / 60:.0f} minutes in all; overhead {wall / compute - 1:.1%} of the compute (target: under 5 %)."
    body = f"{note}\n\n{ratio_table([ratio])}\n\n{table(('', 'seconds', 'of the wall time'), rows)}"
    publish("overhead", body, arguments, argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
