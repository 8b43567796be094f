"""What is there, and what is wrong: ``ensemw2s doctor``."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from ensemw2s.config import ExperimentConfig
from ensemw2s.config.uris import is_uri
from ensemw2s.doctor.check import Check, Status
from ensemw2s.doctor.machine import check_machine
from ensemw2s.doctor.reach import check_cache, check_config, check_hub, check_storage
from ensemw2s.doctor.software import (
    check_demo_packages,
    check_gpus,
    check_packages,
    check_preference,
    check_ray,
    check_trackers,
)
from ensemw2s.settings import load_config

__all__ = ["Check", "Status", "collect", "diagnose", "exit_code", "render"]


def collect(config: ExperimentConfig | None = None, *, deep: bool = False) -> list[Check]:
    """Look at everything that a run depends on.

    Args:
        config: its models, its data and what it asks of the machine are looked at, too.
        deep: start a small local Ray, or join the cluster, and run a task there.
    """
    from ensemw2s.engine.prepare import run_directory

    runtime = config.runtime if config else None
    uses_ray = runtime is None or runtime.executor == "ray"
    address = (runtime.ray_address if runtime else None) or os.environ.get("RAY_ADDRESS")
    runs = run_directory(config).parent if config else Path("runs")
    checks = check_machine(runs, compiler_needed=uses_ray)
    checks.append(check_gpus(needed=runtime is not None and runtime.device == "cuda"))
    checks += check_packages()
    checks += check_trackers(runtime.log_to if runtime else ())
    if config and config.strong.preference is not None:
        checks.append(check_preference())
    if uses_ray:
        checks += check_ray(address, deep=deep)
    checks += [check_hub(), check_cache()]
    if config and is_uri(config.runs_dir):
        checks.append(check_storage(config.runs_dir))
    checks += check_config(config) if config else check_demo_packages()
    return checks


def render(checks: Sequence[Check], width: int = 110) -> str:
    """The checks as a table for a terminal, the remedies under what they remedy, and a line that sums up."""
    name_width = max((len(check.name) for check in checks), default=0)
    indent = " " * (6 + name_width + 2)
    lines = []
    for check in checks:
        head = f"{check.status:<6}{check.name:<{name_width}}  "
        lines += textwrap.wrap(check.detail, width, initial_indent=head, subsequent_indent=indent) or [
            head.rstrip()
        ]
        if check.remedy:
            lines += textwrap.wrap(
                f"-> {check.remedy}", width, initial_indent=indent, subsequent_indent=indent
            )
    count = {status: sum(check.status == status for check in checks) for status in ("ok", "warn", "bad")}
    lines += ["", f"{count['ok']} ok, {count['warn']} to be aware of, {count['bad']} bad"]
    return "\n".join(lines)


def exit_code(checks: Sequence[Check]) -> int:
    """1 when anything is bad, else 0."""
    return int(any(check.status == "bad" for check in checks))


def diagnose(config: str | Path | None, overrides: Sequence[str] = (), *, deep: bool = False) -> int:
    """Collect, print, and give the exit code.

    Raises:
        ConfigError: the configuration itself cannot be used.
    """
    checks = collect(load_config(config, overrides) if config is not None else None, deep=deep)
    sys.stdout.write(render(checks) + "\n")
    return exit_code(checks)
