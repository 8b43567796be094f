"""Supervisor actors, one placement-group bundle each. One that dies is made again, and does its open work again.

Ray restarts nothing here: what follows a failure is decided by :mod:`ensemw2s.cluster.failures`, and told to `happened`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ensemw2s.cluster.failures import Failure, FailureCounts, FailureLimits, decide
from ensemw2s.cluster.placement import SupervisorPlan
from ensemw2s.cluster.remote_errors import failure_kind, first_line, last_line, unwrap
from ensemw2s.cluster.supervisors import SupervisorActor
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.lost import member_of, what_it_did
from ensemw2s.engine.pool import Pending
from ensemw2s.errors import MemberLost, ResourceError, WorkerFailure
from ensemw2s.runs.mirror import Storage
from ensemw2s.training.share import GroupLost

MAX_WAIT_SECONDS = 60.0
"""for a process that does not answer; it then counts as lost"""
PROBE_SECONDS = 5.0
PLACE_SECONDS = 120.0
"""for a place for a worker that is made again; its work then goes to another one, where there is one"""
#: A restarted worker does not hold the rows of a decode: the vote begins its texts again.
IN_SESSION = ("decode_step", "decode_steps", "decode_exact", "decode_more", "decode_full", "decode_bytes")

#: What a worker that is made again is told once more.
TOLD = ("keep_models", "share_bases")

Happened = Callable[..., None]
"""called with the kind of an event and its fields"""


def _nothing(kind: str, **fields: Any) -> None:
    pass


@dataclass(eq=False)
class _Worker:
    """One place of the pool: its actor, who says on which node it runs, and the calls that are not answered yet."""

    index: int
    actor: Any
    where: Any
    restarts: int = 0
    calls: list[RayCall] = field(default_factory=list)
    told: dict[str, tuple[Any, ...]] = field(default_factory=dict)


class RayCall:
    """A call under way."""

    def __init__(self, pool: RayPool, worker: _Worker, method: str, args: tuple[Any, ...]) -> None:
        self._pool, self.worker, self.method, self.args = pool, worker, method, args
        self._reference: Any = None
        self._in_doubt = False
        self._value: tuple[Any] | None = None
        self.send()

    @property
    def member(self) -> int | None:
        """The attempt whose member this work is for, if it is for one."""
        return member_of(self.args)

    @property
    def _together(self) -> bool:
        """Whether others do it, too, and do not go on without this worker."""
        return any(getattr(argument, "share", None) is not None for argument in self.args)

    def send(self) -> None:
        """Hand it to the worker, for the first time or again."""
        self._reference = self.worker.actor.call.remote(self.method, *self.args)

    def again(self) -> None:
        """The worker is another one, or did not answer: send once more what is not answered."""
        if self._answered():
            return
        if self.method in IN_SESSION or self._together:
            self._in_doubt = True
        else:
            self.send()

    def _answered(self) -> bool:
        if not ray.wait([self._reference], timeout=0)[0]:
            return False
        with contextlib.suppress(ray.exceptions.RayError):
            self._value = (ray.get(self._reference),)
        return self._value is not None

    def result(self) -> Any:
        while self._value is None:
            if self._in_doubt:
                from ensemw2s.engine.decoding.worker import SessionLost

                self._end()
                if self._together:
                    raise GroupLost("a worker that trained a member with others was restarted")
                raise SessionLost("the worker of this decode was restarted")
            try:
                self._value = (ray.get(self._reference),)
            except ray.exceptions.RayError as error:
                try:
                    self._pool.failed(self, error)
                except BaseException:
                    self._end()
                    raise
        self._end()
        return self._value[0]

    def _end(self) -> None:
        with contextlib.suppress(ValueError):
            self.worker.calls.remove(self)
        self._pool.tell_queue()


class RayPool:
    """Supervisor actors, started when the first work comes.

    Args:
        config: with absolute paths.
        run_dir: the run directory, reachable from every node; or the coordinator's copy of it.
        plan: how many, and what each reserves.
        threads: torch threads of each.
        coordinator: actor that receives progress.
        quorum: see :class:`ensemw2s.cluster.failures.FailureLimits`.
        members: how many members the run has left; asked when one is about to be dropped.
        happened: receives restarts and moves.
        queue: receives the number of calls that are not answered, when it changes.
        group_name: of the placement group. Ray keeps the group of an actor that dies until its job ends; by the name it can be
            removed before (:func:`remove_group`).
        storage: where the run is, if it is not a folder.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        run_dir: Path,
        plan: SupervisorPlan,
        threads: int,
        coordinator: Any,
        *,
        quorum: int | None = None,
        members: Callable[[], int] = lambda: 1,
        happened: Happened = _nothing,
        queue: Callable[[int], None] = lambda length: None,
        group_name: str = "",
        storage: Storage | None = None,
    ) -> None:
        self.size = plan.size
        self._config, self._run_dir, self._plan = config, run_dir, plan
        self._threads, self._coordinator = threads, coordinator
        self._limits = FailureLimits(config.runtime.max_failures, MAX_WAIT_SECONDS, quorum)
        self._members, self._happened = members, happened
        self._queue, self._group_name, self._storage = queue, group_name, storage
        self._group: PlacementGroup | None = None
        self._workers: list[_Worker] = []
        self._place: list[int] = []

    def submit(self, slot: int, method: str, *args: Any) -> Pending:
        if not self._workers:
            self._start()
        worker = self._workers[self._place[slot % self.size]]
        if method in TOLD:
            worker.told[method] = args
        call = RayCall(self, worker, method, args)
        worker.calls.append(call)
        self.tell_queue()
        return call

    def tell_queue(self) -> None:
        """Say how many calls are not answered."""
        self._queue(sum(len(worker.calls) for worker in self._workers))

    def close(self) -> None:
        """Give the devices back."""
        for worker in self._workers:
            ray.kill(worker.actor)
        self._workers = []
        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None

    # -- starting --------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._group = placement_group(self._plan.bundles, strategy="PACK", name=self._group_name)
        if not self._group.wait(timeout_seconds=300):
            self.close()
            raise ResourceError(
                f"the cluster is busy: {self.size} supervisors with {self._plan.bundles[0]} each were not placed in 300 s; wait, or lower "
                "runtime.supervisors"
            )
        self._workers = [_Worker(index, *self._make(index)) for index in range(self.size)]
        self._place = list(range(self.size))

    def _make(self, index: int) -> tuple[Any, Any]:
        actor = (
            ray.remote(SupervisorActor)
            .options(
                num_cpus=self._plan.cpus,
                num_gpus=self._plan.gpus,
                max_restarts=0,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=index
                ),
            )
            .remote(self._config, self._run_dir, self._threads, self._coordinator, self._storage)
        )
        return actor, actor.where.remote()

    # -- failures --------------------------------------------------------------------------------------------

    def failed(self, call: RayCall, error: ray.exceptions.RayError) -> None:
        """Make good for a failed call: return when it is under way again, else raise what ends it.

        Raises:
            MemberLost: the quorum lets the run go on without the member that the call is for.
            WorkerFailure: too many restarts.
            EnsemW2SError: the work itself raised it.
        """
        worker, waited = call.worker, 0.0
        while True:
            kind = failure_kind(error, node_alive=self._node_alive(worker))
            limits = (
                self._limits
                if call.member is not None
                else FailureLimits(self._limits.max_failures, MAX_WAIT_SECONDS)
            )
            action = decide(kind, FailureCounts(worker.restarts, waited, self._members()), limits)
            if action != "wait":
                break
            begun = time.monotonic()
            died = self._probe(worker)
            waited += time.monotonic() - begun
            if died is None:
                self._happened("worker_unavailable", worker=worker.index, seconds=round(waited, 1))
                self._again(worker)
                return
            error = died
        reason = _in_words(kind, error)
        if action == "retry":
            self._restart(worker, kind, reason, call)
        elif action == "drop" and call.member is not None:
            lost = MemberLost(call.member, what_it_did(call.method), f"{reason}, {worker.restarts + 1} times")
            worker.calls = [c for c in worker.calls if c.member != call.member]
            worker.restarts = -1
            self._restart(worker, kind, reason, call)
            raise lost from error
        else:
            raise self._final(kind, error) from error

    def _final(self, kind: Failure, error: ray.exceptions.RayError) -> BaseException:
        if isinstance(error, ray.exceptions.RayTaskError):
            return unwrap(error)
        if kind == "exception" and isinstance(error, ray.exceptions.RayActorError):
            return WorkerFailure(f"a weak supervisor could not start: {last_line(error)}")
        if kind == "exception":
            return error
        if kind == "out_of_memory":
            return WorkerFailure(
                f"a weak supervisor was killed for lack of memory ({first_line(error)}): lower runtime.supervisors, "
                "weak.training.micro_batch_size or runtime.batch_tokens and run the same command to continue"
            )
        return WorkerFailure(
            f"a weak supervisor died more often than runtime.max_failures {self._limits.max_failures} allows "
            f"({_in_words(kind, error)}); run the same command to continue"
        )

    def _node_alive(self, worker: _Worker) -> bool:
        if not ray.wait([worker.where], timeout=0)[0]:
            return True
        try:
            node = ray.get(worker.where)
        except ray.exceptions.RayError:
            return True
        return any(n["NodeID"] == node and n["Alive"] for n in ray.nodes())

    def _probe(self, worker: _Worker) -> ray.exceptions.RayError | None:
        """None where the worker can be reached, at work or not; else what came instead of an answer."""
        answer = worker.actor.where.remote()
        if not ray.wait([answer], timeout=PROBE_SECONDS)[0]:
            # It stands in the line behind what the worker is doing: no connection would be an error.
            return None
        try:
            ray.get(answer)
        except ray.exceptions.ActorUnavailableError as error:
            time.sleep(1.0)
            return error
        except ray.exceptions.RayError as error:
            return error
        return None

    def _restart(self, worker: _Worker, kind: Failure, reason: str, call: RayCall) -> None:
        worker.restarts += 1
        self._happened(
            "worker_restarted",
            worker=worker.index,
            failure=kind,
            doing=what_it_did(call.method),
            restarts=worker.restarts,
            **({} if call.member is None else {"member": call.member}),
        )
        ray.kill(worker.actor)
        worker.actor, worker.where = self._make(worker.index)
        if not ray.wait([worker.where], timeout=PLACE_SECONDS)[0]:
            others = [w for w in self._workers if w is not worker and w.index in self._place]
            if others:
                self._move(worker, min(others, key=lambda w: len(w.calls)))
                return
            self._happened("waiting_for_room", worker=worker.index)
        for method, args in worker.told.items():
            worker.actor.call.remote(method, *args)
        self._again(worker)

    def _move(self, worker: _Worker, other: _Worker) -> None:
        """There is no room for this worker: another one does its work from now on."""
        self._happened("worker_moved", worker=worker.index, to=other.index)
        ray.kill(worker.actor)
        self._place = [other.index if place == worker.index else place for place in self._place]
        moved, worker.calls = worker.calls, []
        for call in moved:
            call.worker = other
            other.calls.append(call)
            call.again()

    def _again(self, worker: _Worker) -> None:
        for call in worker.calls:
            call.again()


def remove_group(name: str) -> None:
    """Give back what a pool held whose owner died."""
    # ValueError: there is none.
    with contextlib.suppress(ValueError):
        remove_placement_group(get_placement_group(name))


def _in_words(kind: Failure, error: BaseException) -> str:
    if kind == "node_died":
        return "its node died"
    return "its process died" if kind == "actor_died" else first_line(error)
