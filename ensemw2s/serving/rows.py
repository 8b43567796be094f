"""From one HTTP request to the rows that are decoded for it, and back."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from starlette.requests import Request

from ensemw2s.engine.decoding.messages import DecodeRequest, Finish, StepOutput
from ensemw2s.serving.protocol import Backend

T = TypeVar("T")
Item = Sequence[StepOutput] | BaseException


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


@dataclass
class Answer:
    """What was decoded for one row.

    Attributes:
        text: so far.
        steps: those that brought a token, in order.
        finish: why it ended; None while it goes on.
        voters: the fewest members that voted on a token.
    """

    text: str = ""
    steps: list[StepOutput] = field(default_factory=list)
    finish: Finish | None = None
    voters: int | None = None

    def add(self, step: StepOutput) -> None:
        """Take the next step."""
        self.text += step.text
        self.steps.append(step)
        voters = sum(1 for say in step.decision.members if say is not None)
        self.voters = voters if self.voters is None else min(self.voters, voters)
        if step.finish is not None:
            self.finish = step.finish


async def decode_rows(
    backend: Backend, model: str, requests: Sequence[DecodeRequest]
) -> AsyncGenerator[list[tuple[int, StepOutput]]]:
    """Decode rows together; yields (row, step) as they come, several at a time where they came together.

    Closing the iterator frees the rows that are not finished.

    Raises:
        Unavailable: too few members are left.
    """
    queue: asyncio.Queue[tuple[int, Item]] = asyncio.Queue()
    handles: list[int] = []

    def put(row: int, item: Item) -> None:
        queue.put_nowait((row, item))

    try:
        for row, request in enumerate(requests):
            handles.append(backend.start(model, request, partial(put, row)))
        left = len(requests)
        while left:
            came = [await queue.get()]
            while not queue.empty():
                came.append(queue.get_nowait())
            batch: list[tuple[int, StepOutput]] = []
            for row, item in came:
                if isinstance(item, BaseException):
                    raise item
                batch += [(row, step) for step in item]
            left -= sum(1 for _, step in batch if step.finish is not None)
            yield batch
    finally:
        for handle in handles:
            backend.cancel(handle)


async def collect_rows(
    backend: Backend, model: str, requests: Sequence[DecodeRequest], first: Callable[[], None]
) -> list[Answer]:
    """All answers, when all are finished; `first` is called when the first token comes."""
    answers = [Answer() for _ in requests]
    async with aclosing(decode_rows(backend, model, requests)) as batches:
        async for batch in batches:
            first()
            for row, step in batch:
                answers[row].add(step)
    return answers


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ClientGone: it went away.
    """
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for each in (task, watcher):
            each.cancel()
        # The cancelled work frees its rows before the request's place is given to another.
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def row_seeds(seed: int | None, n: int) -> list[int]:
    """Seeds of n answers to one prompt: the first is the client's own, so that n does not change it."""
    first = secrets.randbits(63) if seed is None else seed
    return [(first + i) % 2**63 for i in range(n)]
