"""What a run has done, what is under way and what comes next, read from its directory; nothing is changed there."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ensemw2s.errors import RunDirectoryError
from ensemw2s.runs.reading import read_run
from ensemw2s.runs.store import MANIFEST, StageRecord

STUDENTS = ("ceiling", "on_easy", "single", "ensemble")
LAST_EVENTS = 5
State = Literal["running", "stopped", "finished"]


@dataclass(frozen=True)
class Member:
    """One attempt at a member; `error` and `prior_error` in the unit's own terms, `alpha` the voting weight."""

    attempt: int
    round: int
    base: str
    error: float
    prior_error: float
    alpha: float
    kept: bool
    reason: str


@dataclass(frozen=True)
class RunStatus:
    """What a run directory tells.

    Attributes:
        run_dir: absolute path, or URI.
        state: running (a process holds the run), finished, or stopped.
        committed: stages in the order of their commits.
        last_commit: when the newest of them was committed, ISO 8601; None where there is none.
        under_way: stages that were begun and are not committed; those of a stopped run are made again.
        rounds: members asked for.
        members: attempts so far.
        selected: how many members vote; None until it is chosen.
        selection_scores: accuracy on easy_val after 1..T members.
        students: strong models trained so far.
        events: the last of events.jsonl, oldest first.
        next: the next step in words; None in a finished run.
    """

    run_dir: str
    state: State
    committed: list[str]
    last_commit: str | None
    under_way: list[str]
    rounds: int
    members: list[Member]
    selected: int | None
    selection_scores: list[float]
    students: list[str]
    events: list[dict[str, Any]]
    next: str | None


def read_status(run_dir: Path | str) -> RunStatus:
    """The status of a run, by its folder or URI; committed files are not verified here.

    Raises:
        RunDirectoryError: not a run directory.
        ArtifactError: its manifest is damaged.
    """
    store = read_run(run_dir)
    run_dir = store.folder
    if not store.exists:
        raise RunDirectoryError(
            f"{store.place} is not a run directory: it has no {MANIFEST}; give the folder that `ensemw2s run` made, for example runs/demo"
        )
    stages = store.stages()
    boosting = store.identity()["boosting"]
    rounds = int(boosting["rounds"])
    following = next_step(stages, rounds)
    select = stages["select"].info if "select" in stages else {}
    if is_locked(run_dir) or (store.mirror is not None and store.mirror.lock.is_held()):
        state: State = "running"
    else:
        state = "finished" if following is None else "stopped"
    return RunStatus(
        run_dir=store.place,
        state=state,
        committed=list(stages),
        last_commit=_time((run_dir / MANIFEST).stat().st_mtime) if stages else None,
        under_way=[name for name in _under_way(run_dir) if name not in stages],
        rounds=rounds,
        members=_members(stages),
        selected=select.get("selected"),
        selection_scores=[float(s) for s in select.get("scores", [])],
        students=[s for s in STUDENTS if f"student-{s}" in stages],
        events=_events(run_dir / "events.jsonl"),
        next=following,
    )


def next_step(stages: Mapping[str, StageRecord], rounds: int) -> str | None:
    """What the run does next, in words; None when it is finished.

    Args:
        stages: the committed stages by name.
        rounds: members asked for.
    """
    if "splits" not in stages:
        return "make the splits"
    if "select" not in stages:
        attempts = [stages[name].info for name in stages if name.startswith("member-")]
        kept = sum(1 for info in attempts if info["decision"] == "keep")
        # Members that were lost before they were there are rounds less.
        lost = [stages[name].info for name in stages if name.startswith("lost-")]
        rounds -= sum(1 for info in lost if not info["trained"])
        if kept < rounds and not any(info["decision"] == "stop" for info in attempts):
            return f"train a member for round {kept + 1} of {rounds}"
        return "choose how many members vote, on easy_val"
    for teacher in ("single", "ensemble"):
        if f"labels-{teacher}" not in stages:
            voters = "the first member" if teacher == "single" else "the ensemble"
            return f"label hard_train by {voters}"
    for student in STUDENTS:
        if f"student-{student}" not in stages:
            return f"train the strong model: {student}"
    if "results" not in stages:
        return "score the students and write the results"
    return "write the report" if "report" not in stages else None


def is_locked(run_dir: Path) -> bool:
    """Whether a process is working on the run, on any machine that shares the folder's locks."""
    try:
        with (run_dir / "run.lock").open("rb") as handle:
            # Let go at once; a run that begins in this very moment tries for longer than that.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def render_json(status: RunStatus) -> str:
    """One JSON object with the attributes of :class:`RunStatus`."""
    return json.dumps(asdict(status), indent=1)


def render_status(status: RunStatus) -> str:
    """Plain text for a person; ends without a line break."""
    newest = f", the newest {status.committed[-1]} at {status.last_commit}" if status.committed else ""
    lines = [
        f"{status.run_dir}: {status.state}",
        f"stages    {len(status.committed)} committed{newest}",
    ]
    if status.under_way:
        again = "" if status.state == "running" else " (begun, not committed: made again)"
        lines.append(f"under way {', '.join(status.under_way)}{again}")
    kept = sum(1 for m in status.members if m.kept)
    lines.append(f"members   {kept} of {status.rounds}")
    if status.members:
        lines += [f"  {line}" for line in _member_table(status)]
    if status.selected is not None:
        scores = ", ".join(f"{s:.3f}" for s in status.selection_scores)
        lines.append(
            f"vote      {status.selected} of {kept} members (accuracy on easy_val after 1..: {scores})"
        )
    if status.students:
        lines.append(f"students  {len(status.students)} of {len(STUDENTS)}: {', '.join(status.students)}")
    if status.events:
        lines.append("events, the last ones:")
        lines += [f"  {_event_line(event)}" for event in status.events]
    lines.append(f"next      {status.next or 'nothing: the run is finished'}")
    return "\n".join(lines)


def _member_table(status: RunStatus) -> list[str]:
    rows = [("round", "weak model", "error", "prior error", "weight", "")]
    voting = 0
    for m in status.members:
        voting += m.kept
        left_out = m.kept and status.selected is not None and voting > status.selected
        note = "dropped" if not m.kept else "does not vote" if left_out else ""
        rows.append((str(m.round), m.base, f"{m.error:.4f}", f"{m.prior_error:.4f}", f"{m.alpha:.3f}", note))
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if c in (1, 5) else cell.rjust(w)
            for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _members(stages: Mapping[str, StageRecord]) -> list[Member]:
    records = [stages[name].info["record"] for name in stages if name.startswith("member-")]
    names = tuple(Member.__dataclass_fields__)
    return sorted((Member(**{n: r[n] for n in names}) for r in records), key=lambda m: m.attempt)


def _under_way(run_dir: Path) -> list[str]:
    staging = run_dir / ".staging"
    return sorted(p.name for p in staging.iterdir() if p.is_dir()) if staging.is_dir() else []


def _events(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    return [_event(line) for line in lines[-LAST_EVENTS:]]


def _event(line: str) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except json.JSONDecodeError:
        event = None
    # A process that was killed while it wrote leaves a part of a line.
    return event if isinstance(event, dict) else {"event": "unreadable", "line": line[:200]}


def _event_line(event: Mapping[str, Any]) -> str:
    rest = ", ".join(f"{k} {v}" for k, v in event.items() if k not in ("time", "event"))
    return "  ".join(part for part in (str(event.get("time", "")), str(event.get("event", "")), rest) if part)


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
