"""Training a member: by one supervisor, or by several together while they would wait for each other."""

from __future__ import annotations

from dataclasses import replace

from ensemw2s.engine.context import RunContext
from ensemw2s.engine.pool import Pending, SupervisorPool
from ensemw2s.engine.tasks import MemberTask, TrainOutcome
from ensemw2s.errors import WorkerFailure
from ensemw2s.training.share import GroupLost, Share


class MemberTraining:
    """A training under way.

    Args:
        ctx: the run.
        pool: supervisors.
        slot: whose turn it is; with ``runtime.member_workers`` the ones after it help.
        task: what to train.
    """

    def __init__(self, ctx: RunContext, pool: SupervisorPool, slot: int, task: MemberTask) -> None:
        self._ctx, self._pool, self._slot, self._task = ctx, pool, slot, task
        self._size = min(ctx.config.runtime.member_workers, pool.size)
        self._pending = self._start()

    def _start(self) -> list[Pending]:
        if self._size == 1:
            return [self._pool.submit(self._slot, "train_member", self._task)]
        # Nobody is asked to meet the others before all have ended what they had to do: a process that died there would be waited for.
        slots = [self._slot + rank for rank in range(self._size)]
        for asked in [self._pool.submit(slot, "device") for slot in slots]:
            asked.result()
        meeting = self._pool.submit(slots[0], "meeting").result()
        return [
            self._pool.submit(
                slot, "train_member", replace(self._task, share=Share(rank, self._size, meeting))
            )
            for rank, slot in enumerate(slots)
        ]

    def close(self) -> None:
        """Let go of it before it has ended: whoever trains this member next may be this very process."""
        for pending in self._pending:
            if (close := getattr(pending, "close", None)) is not None:
                close()

    def result(self) -> TrainOutcome:
        """Wait for it. Where one of several is lost, all begin again from the last checkpoint.

        Raises:
            WorkerFailure: that happened more often than runtime.max_failures allows.
        """
        allowed, again = self._ctx.config.runtime.max_failures, 0
        while True:
            outcomes, lost = self._collect()
            if lost is None:
                return outcomes[0]
            if again == allowed:
                raise WorkerFailure(
                    f"the supervisors that trained a member together were parted more often than runtime.max_failures {allowed} "
                    f"allows ({lost}); run the same command to continue"
                ) from lost
            again += 1
            self._ctx.store.event("group_lost", doing="training", restarts=again)
            self._pending = self._start()

    def _collect(self) -> tuple[list[TrainOutcome], GroupLost | None]:
        """All outcomes, or that one of the others is gone; an error of the work itself is raised when all have ended."""
        outcomes: list[TrainOutcome] = []
        lost: GroupLost | None = None
        wrong: Exception | None = None
        for pending in self._pending:
            try:
                outcomes.append(pending.result())
            except GroupLost as error:
                lost = error
            except Exception as error:
                wrong = wrong or error
        if wrong is not None:
            raise wrong
        return outcomes, lost
