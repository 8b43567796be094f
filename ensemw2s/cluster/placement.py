"""Placement as arithmetic: what the supervisors ask for, and whether a cluster can hold it. No Ray here."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ensemw2s.config import RuntimeConfig
from ensemw2s.errors import ResourceError

Resources = Mapping[str, float]


@dataclass(frozen=True)
class SupervisorPlan:
    """How many supervisors there are and what each reserves."""

    size: int
    cpus: float
    gpus: float

    @property
    def bundles(self) -> list[dict[str, float]]:
        """Placement-group bundles, one a supervisor."""
        bundle = {"CPU": self.cpus}
        if self.gpus:
            bundle["GPU"] = self.gpus
        return [dict(bundle) for _ in range(self.size)]


def plan_supervisors(runtime: RuntimeConfig, rounds: int, total: Resources) -> SupervisorPlan:
    """Resolve ``auto``: one supervisor a GPU, or one for every 4 CPUs, and at most one a round.

    Args:
        runtime: what the user asked for.
        rounds: boosting rounds.
        total: CPU and GPU of the whole cluster.
    """
    n_gpus = 0.0 if runtime.device == "cpu" else total.get("GPU", 0.0)
    gpus = runtime.gpus_per_supervisor
    if gpus == "auto":
        gpus = 1.0 if n_gpus >= 1 else 0.0
    possible = gpu_slots(n_gpus, gpus) if gpus else int(total.get("CPU", 1.0) / 4 + 1e-9)
    automatic = max(1, min(rounds, possible))
    size = automatic if runtime.supervisors == "auto" else runtime.supervisors
    return SupervisorPlan(size, runtime.cpus_per_supervisor, float(gpus))


def gpu_slots(there: float, each: float) -> int:
    """How many processes that ask for `each` GPUs a node with `there` holds. Ray gives a part of a GPU from one GPU, never pieces of
    two: two GPUs hold two processes with 0.6, not three."""
    if each < 1.0:
        return int(there + 1e-9) * int(1.0 / each + 1e-9)
    return int(there / each + 1e-9)


class _Node:
    """What is free on a node."""

    def __init__(self, resources: Resources) -> None:
        self._free = {kind: amount for kind, amount in resources.items() if kind != "GPU"}
        there = resources.get("GPU", 0.0)
        whole = int(there + 1e-9)
        self._gpus = [1.0] * whole + ([there - whole] if there - whole > 1e-9 else [])

    def take(self, bundle: Resources) -> bool:
        """Reserve it, if it fits."""
        others = {kind: amount for kind, amount in bundle.items() if kind != "GPU"}
        if any(self._free.get(kind, 0.0) < amount - 1e-9 for kind, amount in others.items()):
            return False
        wanted = bundle.get("GPU", 0.0)
        part = min(wanted, 1.0)
        found = [i for i, free in enumerate(self._gpus) if free >= part - 1e-9] if wanted else []
        n = math.ceil(wanted - 1e-9)
        if len(found) < n:
            return False
        for i in found[:n]:
            self._gpus[i] -= part
        for kind, amount in others.items():
            self._free[kind] -= amount
        return True


def place(bundles: Sequence[Resources], nodes: Sequence[Resources]) -> list[int] | None:
    """First-fit decreasing: the node of each bundle, or None where they do not fit.

    Largest GPU demand first, so that equal bundles (all that this package makes) are placed whenever that is possible.
    """
    free = [_Node(n) for n in nodes]
    order = sorted(
        range(len(bundles)), key=lambda i: (-bundles[i].get("GPU", 0.0), -bundles[i].get("CPU", 0.0))
    )
    placed = [-1] * len(bundles)
    for i in order:
        for j, node in enumerate(free):
            if node.take(bundles[i]):
                placed[i] = j
                break
        else:
            return None
    return placed


def check_fits(what: str, bundles: Sequence[Resources], nodes: Sequence[Resources], knobs: str) -> None:
    """Refuse what the cluster can never hold.

    Raises:
        ResourceError: names what is asked for, what there is, and the settings to change.
    """
    if place(bundles, nodes) is not None:
        return
    asked = _sum(bundles)
    total = _sum(nodes)
    kinds = Counter(", ".join(f"{v:g} {k}" for k, v in bundle.items()) for bundle in bundles)
    each = " and ".join(f"{n} x ({kind})" for kind, n in kinds.items())
    there = " and ".join(f"{total.get(k, 0.0):g} {k}" for k in sorted(set(asked) | {"CPU"}))
    spread = f" on {len(nodes)} nodes" if len(nodes) > 1 else ""
    raise ResourceError(f"{what}: {each} does not fit the cluster, which has {there}{spread}: lower {knobs}")


def threads_per_process(runtime: RuntimeConfig, processes: int, cores: int) -> int:
    """Torch threads of each process: as configured, else the cores divided among the processes at work."""
    if runtime.threads != "auto":
        return runtime.threads
    return max(1, math.floor(cores / max(1, processes)))


def _sum(parts: Sequence[Resources]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for kind, amount in part.items():
            if kind in ("CPU", "GPU"):
                total[kind] = total.get(kind, 0.0) + amount
    return total
