"""A run on storage and its copies: any machine goes on from what is committed, and no manifest names what is not there."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.errors import ArtifactError, RunDirectoryError
from ensemw2s.runs import remote_lock
from ensemw2s.runs.files import file_hash
from ensemw2s.runs.mirror import WORK_DIR, Storage, place_of
from ensemw2s.runs.remote import Remote
from ensemw2s.runs.store import RunStore, run_store
from tests.s3_server import S3

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """Stands for SIGKILL: nothing handles it."""


class Machines:
    """Machines with a disk each, and one run on the storage that all of them reach."""

    def __init__(self, uri: str, folder: Path) -> None:
        self.uri, self._folder = uri, folder
        self.remote = Remote(uri)

    def store(self, machine: str, **how: Any) -> RunStore:
        store = run_store(Storage(self.uri, str(self._folder / machine)), **how)
        store.pull()
        return store

    def check(self) -> dict[str, Any]:
        """The manifest of the storage, when every file that it names is there and whole."""
        manifest: dict[str, Any] = json.loads(self.remote.read("manifest.json") or b'{"stages": {}}')
        for stage in manifest["stages"].values():
            for name, expected in stage["files"].items():
                target = self._folder / "checked"
                assert self.remote.download(name, target), name
                assert file_hash(target) == expected, name
        return manifest


@pytest.fixture
def machines(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machines:
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.0)
    return Machines(s3.uri(f"{s3.bucket()}/runs/demo"), tmp_path)


def commit(store: RunStore, name: str, *texts: str) -> None:
    staging = store.begin(name)
    (staging / "votes").mkdir()
    for i, text in enumerate(texts or (name,)):
        (staging / "votes" / f"{name}-{i}.txt").write_text(text)
    store.commit(name, {"texts": list(texts)})


def begun(machines: Machines, machine: str = "a") -> RunStore:
    store = machines.store(machine)
    store.create({"seed": 1}, "hash")
    return store


def test_another_machine_sees_what_is_committed(machines: Machines) -> None:
    here = begun(machines)
    commit(here, "one", "1", "2")
    (here.folder / "config.yaml").write_text("seed: 1\n")
    here.event("continued", committed=1)
    commit(here, "two")
    there = machines.store("b")
    assert there.folder != here.folder
    assert there.identity() == {"seed": 1}
    assert list(there.stages()) == ["one", "two"]
    assert (there.folder / "config.yaml").read_text() == "seed: 1\n"
    assert not (there.folder / "votes").exists()
    assert there.is_whole()
    record = there.done("one")
    assert record is not None
    assert record.info == {"texts": ["1", "2"]}
    assert (there.folder / "votes" / "one-1.txt").read_text() == "2"
    assert not (there.folder / "votes" / "two-0.txt").exists()
    commit(there, "three")
    here.pull()
    assert here.require("three").files == there.require("three").files
    # Only what a run directory has.
    assert set(machines.remote.entries()) == {
        "manifest.json",
        "config.yaml",
        "events.jsonl",
        *(f"votes/{name}" for name in ("one-0.txt", "one-1.txt", "two-0.txt", "three-0.txt")),
    }


def kill_at(monkeypatch: pytest.MonkeyPatch, moment: int) -> list[str]:
    """Let a process die before its request number `moment` that changes the storage; those before it are noted."""
    seen: list[str] = []
    for method in ("upload", "write", "delete"):
        real = getattr(Remote, method)

        def killed(self: Remote, *args: Any, real: Any = real) -> Any:
            if len(seen) == moment:
                raise Killed
            seen.append(str(args[-1] if real.__name__ == "upload" else args[0]))
            return real(self, *args)

        monkeypatch.setattr(Remote, method, killed)
    return seen


@pytest.mark.parametrize("where", ["same disk", "another disk"])
def test_a_commit_that_is_killed_anywhere(machines: Machines, where: str) -> None:
    """At each of its requests: the storage is whole, and the run goes on, here and elsewhere."""
    store, moment = begun(machines), 0
    commit(store, "first")
    while True:
        name = f"stage-{moment:02d}"
        with pytest.MonkeyPatch.context() as patch:
            seen = kill_at(patch, moment)
            try:
                commit(store, name, "x", "y")
                ended = len(seen) <= moment
            except Killed:
                ended = False
        stages = machines.check()["stages"]
        assert (name in stages) == ("manifest.json" in seen)
        if where == "another disk":
            store = machines.store(f"disk-{moment}")
        else:
            store = machines.store("a")
            # What this disk has beyond the manifest that it took last goes with the lock.
            store.lock()
            store.unlock()
        if store.done(name) is None:
            commit(store, name, "x", "y")
        assert name in machines.check()["stages"]
        if ended:
            break
        moment += 1
    assert moment >= 3
    assert store.is_whole()


def test_a_commit_that_only_this_disk_has_counts_unless_the_run_went_on(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = begun(machines)
    commit(here, "one")
    for went_on in (False, True):
        name = f"late-{went_on}"
        with monkeypatch.context() as patch:
            kill_at(patch, 0)
            with pytest.raises(Killed):
                commit(here, name)
        assert name not in machines.check()["stages"]
        if went_on:
            commit(machines.store("b"), "two")
        here = machines.store("a")
        here.lock()
        here.unlock()
        assert (name in machines.check()["stages"]) == (name in here.stages()) == (not went_on)
    assert list(here.stages()) == ["one", "late-False", "two"]


@pytest.mark.parametrize("damage", ["alter", "remove"])
def test_a_damaged_object_is_found_and_made_again(machines: Machines, damage: str) -> None:
    here = begun(machines)
    commit(here, "one")
    commit(here, "two")
    if damage == "alter":
        machines.remote.write("votes/one-0.txt", b"0ne")
    else:
        machines.remote.delete("votes/one-0.txt")
    there = machines.store("b")
    # Who goes on with the run has nothing to send in its place.
    there.lock()
    there.unlock()
    with pytest.raises(ArtifactError, match=r"s3://.*/runs/demo has a damaged file votes/one-0.txt"):
        there.require("one")
    with pytest.raises(
        ArtifactError, match=r"votes/one-0.txt is missing or not what was committed: remove it there"
    ):
        run_store(Storage(machines.uri, str(there.folder.parent / "worker"))).mirror.bring("votes/")  # type: ignore[union-attr]
    assert there.done("one") is None
    assert there.done("two") is not None
    commit(there, "one")
    assert list(machines.check()["stages"]) == ["two", "one"]
    events = [json.loads(line)["event"] for line in (there.folder / "events.jsonl").read_text().splitlines()]
    assert events == ["artifact_damaged"]


def test_events_of_two_machines_are_kept(machines: Machines) -> None:
    here = begun(machines)
    here.event("one")
    commit(here, "stage")
    there = machines.store("b")
    here.event("here")
    there.event("there")
    commit(there, "more")
    again = machines.store("a")
    told = [json.loads(line)["event"] for line in (again.folder / "events.jsonl").read_text().splitlines()]
    assert told == ["one", "there", "here"]


def test_a_run_that_was_removed_is_not_continued_from_a_copy(machines: Machines) -> None:
    here = begun(machines)
    commit(here, "one")
    machines.remote.delete_all("")
    again = machines.store("a")
    assert not again.exists
    assert [p.name for p in again.folder.iterdir()] == ["run.lock"]
    again.create({"seed": 2}, "other")
    assert json.loads(machines.remote.read("manifest.json") or b"")["identity"] == {"seed": 2}


def test_a_place_with_other_things_is_refused(machines: Machines, tmp_path: Path) -> None:
    machines.remote.write("notes.txt", b"mine")
    with pytest.raises(RunDirectoryError, match=r"is not empty and holds no run \(it has notes.txt\)"):
        machines.store("a")
    assert not (tmp_path / "a").exists()


def test_two_processes_do_not_work_on_one_run(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(remote_lock, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(remote_lock, "BEAT_SECONDS", 0.1)
    here, there = begun(machines), machines.store("b")
    here.lock()
    with pytest.raises(RunDirectoryError, match="is worked on by"):
        there.lock(timeout=0)
    commit(here, "one")
    here.unlock()
    there.lock(timeout=0)
    assert list(there.stages()) == ["one"]
    there.unlock()


# -- what workers make ---------------------------------------------------------------------------------------------


@pytest.fixture
def worker(machines: Machines) -> RunStore:
    return machines.store("worker")


def test_weights_go_from_worker_to_worker_and_not_through_the_coordinator(machines: Machines) -> None:
    coordinator = begun(machines)
    coordinator.mirror.lazy = True  # type: ignore[union-attr]
    worker, other = machines.store("worker").mirror, machines.store("other").mirror
    assert worker is not None
    assert other is not None
    staging = coordinator.begin("member-00")
    made = worker.folder / ".staging" / "member-00" / "members" / "00"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_text("weights")
    worker.publish(made)
    # Another one scores them before they are committed.
    elsewhere = other.folder / made.relative_to(worker.folder)
    other.obtain(elsewhere)
    assert (elsewhere / "model.safetensors").read_text() == "weights"
    (staging / "members" / "00").mkdir(parents=True)
    (staging / "members" / "00" / "member.json").write_text("{}")
    record = coordinator.commit("member-00")
    assert set(record.files) == {"members/00/model.safetensors", "members/00/member.json"}
    assert not (coordinator.folder / "members" / "00" / "model.safetensors").exists()
    assert coordinator.done("member-00") is not None
    assert list(machines.check()["stages"]) == ["member-00"]
    # A process that begins later, too, and one that needs them.
    later = machines.store("a", lazy=True)
    assert later.done("member-00") is not None
    assert not (later.folder / "members" / "00" / "model.safetensors").exists()
    with pytest.MonkeyPatch.context() as patch:
        # From its own staging folder, not from the storage.
        real = Remote.download
        asked: list[str] = []
        patch.setattr(Remote, "download", lambda self, name, to: asked.append(name) or real(self, name, to))
        worker.obtain(worker.folder / "members" / "00")
        assert asked == ["members/00/member.json"]
    assert (worker.folder / "members" / "00" / "model.safetensors").read_text() == "weights"
    reader = machines.store("reader")
    reader.require("member-00")
    assert (reader.folder / "members" / "00" / "model.safetensors").read_text() == "weights"


def test_a_commit_of_a_workers_files_that_is_killed_goes_on(machines: Machines) -> None:
    """The next process does not know that they were published, and has no copy of them; the storage has."""
    coordinator = begun(machines)
    coordinator.mirror.lazy = True  # type: ignore[union-attr]
    worker = machines.store("worker").mirror
    assert worker is not None
    coordinator.begin("member-00")
    made = worker.folder / ".staging" / "member-00" / "members" / "00"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_text("weights")
    worker.publish(made)
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 0)
        with pytest.raises(Killed):
            coordinator.commit("member-00")
    assert "member-00" not in machines.check()["stages"]
    later = machines.store("a", lazy=True)
    later.lock()
    later.unlock()
    commit(later, "votes")
    assert list(machines.check()["stages"]) == ["member-00", "votes"]
    assert later.done("member-00") is not None


def test_weights_that_were_sent_in_part_do_not_count(machines: Machines, worker: RunStore) -> None:
    coordinator, mirror = begun(machines), worker.mirror
    assert mirror is not None
    made = mirror.folder / ".staging" / "member-00" / "members" / "00"
    made.mkdir(parents=True)
    for name in ("a", "b"):
        (made / name).write_text("first")
    mirror.publish(made)
    for name in ("a", "b"):
        (made / name).write_text("second")
    with pytest.MonkeyPatch.context() as patch:
        # The list of before, and one file.
        kill_at(patch, 2)
        with pytest.raises(Killed):
            mirror.publish(made)
    assert mirror.staged("member-00") is None
    coordinator.begin("member-00")
    assert coordinator.commit("member-00").files == {}


@pytest.mark.parametrize("moment", [0, 2, 3])
def test_a_checkpoint_that_is_sent_in_part_leaves_the_one_before(
    machines: Machines, worker: RunStore, moment: int
) -> None:
    mirror, other = worker.mirror, machines.store("other").mirror
    assert mirror is not None
    assert other is not None
    folder = mirror.folder / ".scratch" / "member-00" / "current"
    target = other.folder / ".scratch" / "member-00" / "current"
    folder.mkdir(parents=True)
    assert not other.restore(target)
    for step in ("first", "second"):
        for name in ("model", "seal"):
            (folder / name).write_text(f"{name} {step}")
        with pytest.MonkeyPatch.context() as patch:
            seen = kill_at(patch, moment if step == "second" else -1)
            with contextlib.suppress(Killed):
                mirror.publish(folder)
    reached = "second" if ".scratch/member-00/current.json" in seen else "first"
    assert reached == ("second" if moment >= 3 else "first")
    assert other.restore(target)
    assert sorted(p.read_text() for p in target.iterdir()) == [f"model {reached}", f"seal {reached}"]
    assert other.restore(target)
    worker.clear_scratch("member-00")
    assert machines.remote.entries() == {}
    assert not other.restore(target)


# -- where the copies lie ------------------------------------------------------------------------------------------


def test_copies_lie_where_the_node_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.setenv("DISK", str(tmp_path / "fast"))
    monkeypatch.delenv(WORK_DIR, raising=False)
    monkeypatch.delenv("NO_SUCH", raising=False)
    uri = "s3://bucket/runs/demo?region=x"
    name = Storage(uri).folder().name
    assert name.startswith("s3-bucket-runs-demo-")
    assert Storage(uri).folder().parent == tmp_path / "me" / ".cache" / "ensemw2s" / "runs"
    assert Storage(uri, "$DISK/copies").folder() == tmp_path / "fast" / "copies" / name
    monkeypatch.setenv(WORK_DIR, "~/work")
    assert Storage(uri).folder().parent == tmp_path / "me" / "work"
    # Another server has another bucket of this name.
    assert Storage("s3://bucket/runs/demo?region=y").folder().name != name
    with pytest.raises(
        RunDirectoryError, match=r"runtime.work_dir '\$NO_SUCH/x' is '\$NO_SUCH/x' on this machine"
    ):
        Storage(uri, "$NO_SUCH/x").folder()
    assert place_of(uri) == Storage(uri)
    assert place_of(tmp_path / "x" / "..") == tmp_path


def test_a_copy_can_be_removed_at_any_time(machines: Machines) -> None:
    here = begun(machines)
    commit(here, "one")
    shutil.rmtree(here.folder)
    again = machines.store("a")
    assert again.done("one") is not None
