"""The status of run directories, written step by step as a run writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ensemw2s import cli
from ensemw2s.errors import ArtifactError, RunDirectoryError
from ensemw2s.runs.status import STUDENTS, next_step, read_status, render_json, render_status
from ensemw2s.runs.store import RunStore


def member(attempt: int, round_: int, *, alpha: float = 0.7, decision: str = "keep") -> dict[str, Any]:
    kept = decision == "keep"
    record = {
        "attempt": attempt,
        "round": round_,
        "base": f"tiny-{attempt}",
        "error": 0.25,
        "errors": {"train": 0.25},
        "prior_error": 0.5,
        "alpha": alpha,
        "kept": kept,
        "reason": "" if kept else "error 0.6 is not below the prior error 0.5: dropped",
        "seed": 1,
    }
    return {"record": record, "decision": decision}


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    run = RunStore(tmp_path / "run")
    run.create({"boosting": {"rounds": 2}}, "0" * 64)
    return run


def commit(store: RunStore, name: str, info: dict[str, Any] | None = None) -> None:
    (store.begin(name) / f"{name}.txt").write_text(name)
    store.commit(name, info)


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_every_step_from_the_first_to_the_last(store: RunStore) -> None:
    told = [read_status(store.folder).next]
    members = {"member-00": member(0, 1), "member-01": member(1, 2)}
    rest = ["labels-single", "labels-ensemble", *(f"student-{s}" for s in STUDENTS), "results", "report"]
    for name in ["splits", "prior-0", *members, "select", *rest]:
        info = {"selected": 1, "scores": [0.75, 0.5]} if name == "select" else members.get(name)
        commit(store, name, info)
        told.append(read_status(store.folder).next)
    assert told == [
        "make the splits",
        "train a member for round 1 of 2",
        "train a member for round 1 of 2",
        "train a member for round 2 of 2",
        "choose how many members vote, on easy_val",
        "label hard_train by the first member",
        "label hard_train by the ensemble",
        "train the strong model: ceiling",
        "train the strong model: on_easy",
        "train the strong model: single",
        "train the strong model: ensemble",
        "score the students and write the results",
        "write the report",
        None,
    ]
    status = read_status(store.folder)
    assert status.state == "finished"
    assert status.students == list(STUDENTS)
    text = render_status(status)
    assert "1 of 2 members (accuracy on easy_val after 1..: 0.750, 0.500)" in text
    assert "2  tiny-1      0.2500       0.5000   0.700  does not vote" in text
    assert text.endswith("nothing: the run is finished")


def test_a_dropped_member_is_tried_again_and_a_stop_ends_the_rounds(store: RunStore) -> None:
    commit(store, "splits")
    commit(store, "member-00", member(0, 1))
    commit(store, "member-01", member(1, 2, alpha=-0.1, decision="drop"))
    assert next_step(store.stages(), 2) == "train a member for round 2 of 2"
    assert "-0.100  dropped" in render_status(read_status(store.folder))
    commit(store, "member-02", member(2, 2, alpha=-0.2, decision="stop"))
    assert next_step(store.stages(), 2) == "choose how many members vote, on easy_val"
    assert [m.kept for m in read_status(store.folder).members] == [True, False, False]


def test_running_and_stopped(store: RunStore) -> None:
    commit(store, "splits")
    store.begin("member-00")
    assert read_status(store.folder).state == "stopped"
    assert "under way member-00 (begun, not committed: made again)" in render_status(
        read_status(store.folder)
    )
    store.lock()
    try:
        status = read_status(store.folder)
        assert (status.state, status.under_way) == ("running", ["member-00"])
        assert "made again" not in render_status(status)
    finally:
        store.unlock()
    assert read_status(store.folder).state == "stopped"
    # Asking did not take the run.
    store.lock(timeout=0)
    store.unlock()


def test_the_last_events_and_a_line_that_was_cut(store: RunStore) -> None:
    for i in range(7):
        store.event("worker_restarted", attempt=i)
    with (store.folder / "events.jsonl").open("a") as handle:
        handle.write('{"time": "2026')
    status = read_status(store.folder)
    assert [e.get("attempt") for e in status.events] == [3, 4, 5, 6, None]
    assert status.events[-1]["event"] == "unreadable"
    assert "worker_restarted  attempt 6" in render_status(status)


def test_json_says_the_same(store: RunStore) -> None:
    commit(store, "splits")
    commit(store, "member-00", member(0, 1))
    data = json.loads(render_json(read_status(store.folder)))
    assert data["committed"] == ["splits", "member-00"]
    assert data["members"][0] == {
        "attempt": 0,
        "round": 1,
        "base": "tiny-0",
        "error": 0.25,
        "prior_error": 0.5,
        "alpha": 0.7,
        "kept": True,
        "reason": "",
    }
    assert data["selected"] is None


def test_nothing_is_written(store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    commit(store, "splits")
    # A damaged file is left for the run itself to find.
    (store.folder / "splits.txt").write_text("other")
    before = tree(store.folder)
    assert cli.main(["status", str(store.folder)]) == 0
    assert capsys.readouterr().out.startswith(
        f"{store.folder}: stopped\nstages    1 committed, the newest splits at "
    )
    assert cli.main(["status", str(store.folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "stopped"
    assert tree(store.folder) == before


def test_what_is_no_run(tmp_path: Path, store: RunStore, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunDirectoryError, match="is not a run directory"):
        read_status(tmp_path)
    (store.folder / "manifest.json").write_text('{"schema": 1, "sta')
    with pytest.raises(ArtifactError, match="is not whole"):
        read_status(store.folder)
    for other in ("[]", '{"schema": 1, "stages": []}'):
        (store.folder / "manifest.json").write_text(other)
        with pytest.raises(ArtifactError, match="is not a manifest"):
            read_status(store.folder)
    assert cli.main(["status", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")
