"""Weak supervisors as Ray actors, and how workers send their progress to the coordinator."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import ray

from ensemw2s.cluster.away import Away
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.runs.mirror import Storage

REPORT_EVERY_SECONDS = 0.5


class RemoteReport:
    """Sends progress to the coordinator, at most twice a second for each task; the last event of a task always goes."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._last: dict[str, float] = {}

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        if event.done < event.total and now - self._last.get(event.task, 0.0) < REPORT_EVERY_SECONDS:
            return
        self._last[event.task] = now
        self._coordinator.note.remote(event)


class SupervisorActor:
    """A weak supervisor as a Ray actor; every public method of WeakSupervisor is called through `call`.

    Args:
        config: with absolute paths.
        run_dir: the run directory, or the coordinator's copy of it.
        threads: torch threads.
        coordinator: actor that receives progress.
        storage: where the run is, if it is not a folder that this node sees.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        threads: int,
        coordinator: Any,
        storage: Storage | None = None,
    ) -> None:
        from ensemw2s.engine.supervisor import WeakSupervisor

        self._away = None if storage is None else Away(storage)
        mirror = None if self._away is None else self._away.mirror
        self._supervisor = WeakSupervisor(
            config,
            run_dir if mirror is None else mirror.folder,
            threads=threads,
            report=RemoteReport(coordinator),
            mirror=mirror,
        )

    def call(self, method: str, *args: Any) -> Any:
        """Run one method."""
        if method == "meeting":
            return self.meeting()
        if self._away is None:
            return getattr(self._supervisor, method)(*args)
        args = self._away.before(method, args)
        result = getattr(self._supervisor, method)(*args)
        self._away.after(method, args)
        return result

    def meeting(self) -> str:
        """Where others find this process: ``tcp://HOST:PORT``, a port that is free now."""
        address = ray.util.get_node_ip_address()
        with socket.create_server((address, 0), family=_family(address)) as server:
            port = server.getsockname()[1]
        return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"

    def where(self) -> str:
        """The node's id."""
        return str(ray.get_runtime_context().get_node_id())


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
