"""The members as the voting side sees them: a pool of supervisors, of which some may be down for a while."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.pool import LocalPool, Pending, SupervisorPool
from ensemw2s.engine.tasks import ModelRef, ProgressEvent
from ensemw2s.engine.together import share_bases


class Members(SupervisorPool, Protocol):
    """A pool that knows who is alive. ``submit`` to a member that is down raises WorkerFailure at once."""

    def alive(self, slot: int) -> bool:
        """Whether this member can be asked."""

    def on_return(self, callback: Callable[[int], None]) -> None:
        """Call `callback(slot)`, from any thread, when a member that was down can be asked again."""

    def close(self) -> None:
        """Free what is held."""


class LocalMembers:
    """All members in this process, one supervisor that holds all of their models.

    Args:
        config: of the run, with absolute paths.
        run_dir: the run directory.
        threads: torch threads.
        refs: their models; all are held, and adapters of one base share it.
    """

    def __init__(
        self, config: ExperimentConfig, run_dir: Any, *, threads: int, refs: Sequence[ModelRef]
    ) -> None:
        def make() -> Any:
            from ensemw2s.serving.member import ServedSupervisor

            return ServedSupervisor(config, run_dir, threads=threads, report=quiet, models_kept=len(refs))

        self._pool = share_bases(LocalPool(make), refs)
        self.size = len(refs)

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        return self._pool.submit(0, method, *args)

    def alive(self, slot: int) -> bool:
        return True

    def on_return(self, callback: Callable[[int], None]) -> None:
        pass

    def close(self) -> None:
        pass


class Part:
    """Some slots of a pool, numbered from 0: the members of one model.

    Args:
        pool: of all.
        slots: which.
    """

    def __init__(self, pool: Members, slots: Sequence[int]) -> None:
        self._pool, self.slots = pool, tuple(slots)
        self.size = len(self.slots)

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        return self._pool.submit(self.slots[slot], method, *args)

    def alive(self) -> list[int]:
        """Places, among these, of the members that can be asked."""
        return [place for place, slot in enumerate(self.slots) if self._pool.alive(slot)]


def quiet(event: ProgressEvent) -> None:
    """Progress that nobody looks at."""
