"""What a streamed response gives back, however it ends, and which tokens go with its text."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from ensemw2s.engine.decoding.messages import Decision, StepOutput
from ensemw2s.serving import wire
from ensemw2s.serving.rows import Answer
from ensemw2s.serving.stream import EventStream


def test_the_place_is_given_back_though_the_end_is_interrupted() -> None:
    """A server that is told twice to stop cancels the response while it cleans up."""

    async def scenario() -> list[bool]:
        closed: list[bool] = []
        begun, cleaning = asyncio.Event(), asyncio.Event()

        async def chunks() -> AsyncGenerator[bytes]:
            try:
                yield b"one"
                begun.set()
                await asyncio.sleep(60)
            finally:
                cleaning.set()
                await asyncio.sleep(60)

        async def receive() -> Any:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            pass

        response = EventStream(chunks(), closed.append, 60.0, {})
        task = asyncio.create_task(response({"type": "http"}, receive, send))
        await begun.wait()
        task.cancel()
        await cleaning.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return closed

    assert asyncio.run(scenario()) == [True]


def test_tokens_of_a_stop_string_are_told_by_where_their_text_begins() -> None:
    """By bytes: a, the three of a euro sign, and a stop string of two tokens."""
    answer = Answer()
    texts, begins = ["a", "", "", "€", "", ""], [0, 1, 1, 1, 2, 3]
    for index, (text, begin) in enumerate(zip(texts, begins, strict=True)):
        decision = Decision(index, 0.5, "certified", (), ())
        answer.add(StepOutput(0, index, decision, text, "stop" if index == 5 else None, begin))
    assert answer.text == "a€"
    assert [(token, begin) for token, _, _, begin in wire.scored_answer(answer)] == [
        (0, 0),
        (1, 1),
        (2, 1),
        (3, 1),
    ]
    assert [begin for *_, begin in wire.scored_answer(answer, 10)] == [10, 11, 11, 11]
