"""What a terminal shows of a run, and what a log does."""

from __future__ import annotations

import io

from rich.console import Console

from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.progress import BarProgress, PlainProgress

EVENTS = (
    ProgressEvent("round 1 of 3: training", 5, 40, "loss [0.5]"),
    ProgressEvent("committed member-00", 1, 1),
    ProgressEvent(
        "round 1: error 0.2500",
        0,
        0,
        metrics={"round": 1, "rounds": 3, "error": 0.25, "prior_error": 0.75, "alpha": 2.1972},
    ),
    ProgressEvent("easy_val", 0, 0, metrics={"round": 1.0, "easy_val_accuracy": 0.625}),
)


def test_one_screen_of_members_stages_and_tasks() -> None:
    stream = io.StringIO()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=120, color_system=None))
    with progress:
        for event in EVENTS:
            progress(event)
    text = stream.getvalue()
    last = text[text.rindex("prior error") :]
    assert last.split("\n")[1].split() == ["1", "0.2500", "0.7500", "2.197", "62.5%"]
    assert "1 of 3 rounds, 1 stages committed" in last
    bar = next(line for line in last.split("\n") if line.startswith("round 1 of 3: training"))
    assert "5/40" in bar
    # A loss in brackets is no markup.
    assert "loss [0.5]" in bar


def test_a_finished_task_leaves_the_screen() -> None:
    stream = io.StringIO()
    progress = BarProgress(Console(file=stream, force_terminal=True, width=120, color_system=None))
    with progress:
        progress(ProgressEvent("reading", 1, 2))
        progress(ProgressEvent("reading", 2, 2))
        before = len(stream.getvalue())
    assert "reading" not in stream.getvalue()[before:]


def test_a_log_has_lines() -> None:
    stream = io.StringIO()
    with PlainProgress(stream) as progress:
        for event in EVENTS:
            progress(event)
    lines = [line.partition("s] ")[2] for line in stream.getvalue().splitlines()]
    assert lines == ["committed member-00", "round 1: error 0.2500", "easy_val"]
