"""The lock of a run on storage: one owner, that of a dead process is free later, who has lost it stops."""

from __future__ import annotations

import os
import threading

import pytest

from ensemw2s.errors import RunDirectoryError, WorkerFailure
from ensemw2s.runs import remote_lock as module
from ensemw2s.runs.remote import Entry, Remote
from ensemw2s.runs.remote_lock import RemoteLock
from tests.s3_server import S3


@pytest.fixture
def place(s3: S3, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(module, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(module, "LEASE_SECONDS", 2.0)
    return f"{s3.bucket()}/run"


def lock(s3: S3, place: str) -> RemoteLock:
    return RemoteLock(Remote(s3.uri(place)))


def die(owner: RemoteLock) -> None:
    """No more beats, and nothing given back."""
    assert owner._beating is not None
    owner._ended.set()
    owner._beating.join()


def test_one_owner_at_a_time(s3: S3, place: str) -> None:
    first, second = lock(s3, place), lock(s3, place)
    assert not first.is_held()
    first.acquire(0)
    assert second.is_held()
    with pytest.raises(
        RunDirectoryError, match=rf"s3://{place} is worked on by .*, process {os.getpid()}: wait"
    ):
        second.acquire(0)
    first.check()
    first.release()
    assert not second.is_held()
    second.acquire(0)
    first.release()
    second.check()
    second.release()
    assert Remote(s3.uri(place)).entries() == {}


def test_the_lock_of_a_dead_process_is_taken_and_it_does_not_come_back(s3: S3, place: str) -> None:
    first, second = lock(s3, place), lock(s3, place)
    first.acquire(0)
    die(first)
    second.acquire(0)
    with pytest.raises(WorkerFailure, match="was taken over by another process"):
        first.check()
    first.release()
    second.check()
    second.release()


def test_an_old_lock_is_free_at_once(s3: S3, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the clock of the storage, whatever this machine's says: a wait for the lease would end the test."""
    first, second = lock(s3, place), lock(s3, place)
    first.acquire(0)
    die(first)
    monkeypatch.setattr(module, "LEASE_SECONDS", 3000.0)
    entry = Remote.entry

    def old(self: Remote, name: str) -> Entry | None:
        found = entry(self, name)
        age = 4000.0 if name == module.NAME else 0.0
        return None if found is None else Entry(found.size, found.written - age)

    monkeypatch.setattr(Remote, "entry", old)
    second.acquire(0)
    second.check()
    assert second.held
    with pytest.raises(WorkerFailure, match="was taken over by another process"):
        first.check()
    second.release()


def test_of_many_that_begin_at_once_one_has_it(s3: S3, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = [lock(s3, place) for _ in range(4)]
    # The first call of a client takes its time, and nobody may stop between its look and its write for longer than this.
    monkeypatch.setattr(module, "SETTLE_SECONDS", 1.0)
    assert not any(own.is_held() for own in locks)
    begin = threading.Barrier(len(locks))
    had: list[RemoteLock] = []

    def acquire(own: RemoteLock) -> None:
        begin.wait()
        try:
            own.acquire(0)
            had.append(own)
        except RunDirectoryError:
            pass

    threads = [threading.Thread(target=acquire, args=(own,)) for own in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (owner,) = had
    assert owner.held
    owner.check()
    owner.release()


def test_half_of_what_is_being_written_is_read_again(
    s3: S3, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = lock(s3, place)
    owner.acquire(0)
    read, halves = Remote.read, [b"", b'{"owner": "']

    def half(remote: Remote, name: str) -> bytes | None:
        return halves.pop() if halves else read(remote, name)

    monkeypatch.setattr(Remote, "read", half)
    owner.check()
    assert halves == []
    owner.release()


def test_a_server_that_stores_something_else(s3: S3, place: str) -> None:
    """As one does that takes the checksum at the end, and the lengths of the parts, for content."""
    Remote(s3.uri(place)).write(module.NAME, b"C2\r\n{}\r\n0\r\nx-amz-checksum-crc64nvme:x")
    with pytest.raises(RunDirectoryError, match=r"run.lock is not what was written.*AWS_REQUEST_CHECKSUM"):
        lock(s3, place).acquire(0)
