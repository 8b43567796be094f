"""Progress on the standard error: bars on a terminal, plain lines in logs."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ensemw2s.engine.tasks import ProgressEvent

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType

LINE_EVERY_SECONDS = 15.0


class PlainProgress:
    """One line when a task begins to show, every 15 s, and when it is done."""

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream or sys.stderr
        self._last: dict[str, float] = {}
        self._begun = time.monotonic()

    def __enter__(self) -> PlainProgress:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.flush()

    def __call__(self, event: ProgressEvent) -> None:
        now = time.monotonic()
        finished = event.done >= event.total
        if not finished and now - self._last.get(event.task, self._begun) < LINE_EVERY_SECONDS:
            return
        self._last[event.task] = now
        count = f" {event.done}/{event.total}" if event.total > 1 else ""
        detail = f" ({event.detail})" if event.detail else ""
        print(f"[{now - self._begun:7.1f} s] {event.task}{count}{detail}", file=self._stream, flush=True)


@dataclass
class Board:
    """What a run has done so far, from its events: members with their accuracies, and stages."""

    rounds: int = 0
    stages: int = 0
    members: dict[int, dict[str, float]] = field(default_factory=dict)

    def take(self, event: ProgressEvent) -> None:
        """Note an event."""
        numbers = event.metrics
        if "round" in numbers:
            self.members.setdefault(int(numbers["round"]), {}).update(numbers)
        self.rounds = int(numbers.get("rounds", self.rounds))
        if event.task.startswith("committed "):
            self.stages += 1

    def rows(self) -> list[tuple[str, ...]]:
        """A row a member: round, error, prior error, weight, accuracy of the members so far on easy_val."""
        names = (("error", ".4f"), ("prior_error", ".4f"), ("alpha", ".3f"), ("easy_val_accuracy", ".1%"))
        return [
            (str(number), *(format(own[n], form) if n in own else "" for n, form in names))
            for number, own in sorted(self.members.items())
        ]


class BarProgress:
    """One screen (rich): the members, the stages, and a bar for each task under way; what is said stands above as lines."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self._console,
        )
        self._board = Board()
        self._live = Live(console=self._console, get_renderable=self._screen, refresh_per_second=4)
        self._tasks: dict[str, Any] = {}
        self._begun = time.monotonic()

    def __enter__(self) -> BarProgress:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def __call__(self, event: ProgressEvent) -> None:
        self._board.take(event)
        if event.total <= 1:
            elapsed = time.monotonic() - self._begun
            self._console.print(f"[dim]{elapsed:7.1f} s[/dim] ", end="")
            self._console.print(event.task, markup=False, highlight=False)
            return
        if event.task not in self._tasks:
            self._tasks[event.task] = self._progress.add_task(event.task, total=event.total, detail="")
        self._progress.update(self._tasks[event.task], completed=event.done, detail=event.detail)
        if event.done >= event.total:
            self._progress.remove_task(self._tasks.pop(event.task))

    def _screen(self) -> Group:
        from rich.console import Group
        from rich.table import Table

        board = self._board
        parts: list[RenderableType] = []
        if board.members:
            table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
            for name in ("round", "error", "prior error", "weight", "easy_val"):
                table.add_column(name, justify="right")
            for row in board.rows():
                table.add_row(*row)
            parts.append(table)
        if board.stages:
            members = f"{len(board.members)} of {board.rounds} rounds, " if board.rounds else ""
            parts.append(f"[dim]{members}{board.stages} stages committed[/dim]")
        return Group(*parts, self._progress)


def make_progress() -> PlainProgress | BarProgress:
    """Bars where the standard error is a terminal, else lines."""
    return BarProgress() if sys.stderr.isatty() else PlainProgress()
