"""Whole runs as single processes on a cluster: how much of a node each takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ensemw2s.cluster.placement import gpu_slots
from ensemw2s.config import RuntimeConfig
from ensemw2s.errors import ResourceError


@dataclass(frozen=True)
class Share:
    """What one process takes, and how many of them the cluster holds at once.

    Attributes:
        cpus, gpus: logical ones.
        threads: torch threads.
        at_once: processes, 1 or more.
    """

    cpus: float
    gpus: float
    threads: int
    at_once: int


def process_share(
    runtime: RuntimeConfig,
    cpus: float | None,
    gpus: float | None,
    *,
    what: str,
    fields: str,
    command: str,
    wanted: int | None = None,
) -> Share:
    """The share of one run on the connected cluster.

    Args:
        runtime: of the experiment.
        cpus: wanted; None: as many as go with its GPUs, or without any an even part of a node for as many as are wanted.
        gpus: wanted; None: one where there is any.
        what: a trial, or a run, for messages.
        fields: which fields say so.
        command: what asks an autoscaling cluster for workers.
        wanted: how many at once; None: one a node, and with GPUs as many as these give.

    Raises:
        ResourceError: no node holds one.
    """
    import ray

    nodes = [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    if not nodes:
        raise ResourceError(
            f"no node of the cluster has a CPU: start workers first ({command} --gpus N asks an autoscaling cluster for them)"
        )
    with_gpu = [n for n in nodes if n.get("GPU", 0.0) > 0]
    use_gpu = bool(with_gpu) and runtime.device != "cpu"
    gpus = gpus if gpus is not None else (1.0 if use_gpu else 0.0)
    if cpus is None:
        if gpus > 0 and with_gpu:
            cpus = min(max(1.0, n["CPU"] * gpus / n["GPU"]) for n in with_gpu)
        else:
            a_node = -(-(wanted or 1) // len(nodes))
            cpus = max(1.0, float(int(min(n["CPU"] for n in nodes) / a_node)))
    at_once = sum(_fit(n, cpus, gpus) for n in nodes)
    if at_once == 0:
        largest = max(nodes, key=lambda n: (n.get("GPU", 0.0), n["CPU"]))
        have = f"{largest['CPU']:g} CPU and {largest.get('GPU', 0.0):g} GPU"
        raise ResourceError(
            f"{what} needs {cpus:g} CPU and {gpus:g} GPU, and the largest node has {have}: lower {fields}"
        )
    return Share(float(cpus), float(gpus), max(1, int(cpus)), at_once)


def _fit(node: dict[str, Any], cpus: float, gpus: float) -> int:
    """How many of them a node holds."""
    by_cpu = int(node["CPU"] / cpus + 1e-9)
    return min(by_cpu, gpu_slots(node.get("GPU", 0.0), gpus)) if gpus > 0 else by_cpu


def in_one_process(runtime: RuntimeConfig, share: Share, cache: str) -> RuntimeConfig:
    """The runtime of a run in such a process: no Ray inside, shared work, its share of the cores."""
    update: dict[str, Any] = {"executor": "local", "cache": cache}
    if runtime.threads == "auto":
        update["threads"] = share.threads
    return runtime.model_copy(update=update)
