"""The lock of a run on storage that has no locks: an object with an owner and a beat.

An owner writes it again every BEAT_SECONDS. Who wants it waits until it is gone, or until it has not been written for
LEASE_SECONDS; then writes an owner of its own, waits SETTLE_SECONDS, and has it if it still reads itself. Of several that try
at once the last writer wins, as long as none of them stops between its look and its write for longer than SETTLE_SECONDS:
object stores that pyarrow reaches have no compare-and-swap there. So an owner looks again before each manifest that it writes
(:meth:`RemoteLock.check`), and a run that lost its lock stops. It protects from a second run by mistake; one writer is a promise
only where the storage and the machines keep time to within LEASE_SECONDS.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from ensemw2s.config.uris import shown
from ensemw2s.errors import RunDirectoryError, WorkerFailure
from ensemw2s.runs.remote import Remote

NAME = "run.lock"
BEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0
SETTLE_SECONDS = 1.0
#: Times that a lock is read which is not whole.
LOOKS = 4


class RemoteLock:
    """The lock of one run.

    Args:
        remote: its run directory.
    """

    def __init__(self, remote: Remote) -> None:
        self._remote = remote
        self._owner = uuid.uuid4().hex
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self, timeout: float) -> None:
        """Have the lock until :meth:`release`.

        Args:
            timeout: seconds; never less than it takes to see that an owner is dead.

        Raises:
            RunDirectoryError: somebody else has it still.
        """
        deadline = time.monotonic() + max(timeout, LEASE_SECONDS + 2 * SETTLE_SECONDS)
        seen, since, old = None, time.monotonic(), False
        while True:
            found = self._read()
            if found != seen:
                seen, since, old = found, time.monotonic(), self._is_old()
            if found is None or old or time.monotonic() - since > LEASE_SECONDS:
                self._write(0)
                time.sleep(SETTLE_SECONDS)
                if self._owns(self._read()):
                    break
            if time.monotonic() > deadline:
                who = f"{found['host']}, process {found['process']}" if found else "another process"
                raise RunDirectoryError(
                    f"{shown(self._remote.uri)} is worked on by {who}: wait for it, stop it, or choose another name=...; the lock of "
                    f"one that died is free {LEASE_SECONDS:g} s later"
                )
            time.sleep(SETTLE_SECONDS)
        self._ended.clear()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()

    @property
    def held(self) -> bool:
        """Whether it was acquired and not released."""
        return self._beating is not None

    def check(self) -> None:
        """Before something is written that another owner would rely on.

        Raises:
            WorkerFailure: somebody else has the lock now.
        """
        if self.held and not self._owns(self._read()):
            raise WorkerFailure(
                f"{shown(self._remote.uri)} was taken over by another process, because this one was not heard of for "
                f"{LEASE_SECONDS:g} s or its lock was removed: the same command continues when the other has ended"
            )

    def release(self) -> None:
        """Give it back, if it is still held."""
        if self._beating is None:
            return
        self._ended.set()
        self._beating.join()
        self._beating = None
        # Who comes next waits for the lease where it cannot be removed.
        with contextlib.suppress(RunDirectoryError):
            if self._owns(self._read()):
                self._remote.delete(NAME)

    def is_held(self) -> bool:
        """Whether some process works on the run; only looks."""
        found = self._remote.entry(NAME)
        return found is not None and not (found.written and time.time() - found.written > LEASE_SECONDS)

    def _beat(self) -> None:
        beats = 0
        while not self._ended.wait(BEAT_SECONDS):
            beats += 1
            # A beat that cannot be given is missed; check() tells when it was one too many.
            with contextlib.suppress(RunDirectoryError):
                if not self._owns(self._read()):
                    return
                self._write(beats)

    def _is_old(self) -> bool:
        """Whether the lock has not been written for LEASE_SECONDS by the storage's own clock."""
        held = self._remote.entry(NAME)
        if held is None or not held.written:
            return False
        probe = f".probe-{self._owner}"
        self._remote.write(probe, b"")
        try:
            now = self._remote.entry(probe)
        finally:
            self._remote.delete(probe)
        return now is not None and now.written - held.written > LEASE_SECONDS

    def _owns(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("owner") == self._owner

    def _write(self, beats: int) -> None:
        content = {
            "owner": self._owner,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "beats": beats,
        }
        self._remote.write(NAME, json.dumps(content).encode())

    def _read(self) -> dict[str, Any] | None:
        # Some servers let a reader see half of what is being written: look again before it is taken for wrong.
        for _ in range(LOOKS - 1):
            with contextlib.suppress(ValueError):
                return self._looked()
            time.sleep(SETTLE_SECONDS / LOOKS)
        try:
            return self._looked()
        except ValueError as error:
            raise RunDirectoryError(
                f"{shown(self._remote.uri)}/{NAME} is not what was written: remove it; a server of S3's protocol that is not Amazon's may "
                "need AWS_REQUEST_CHECKSUM_CALCULATION=when_required on every node"
            ) from error

    def _looked(self) -> dict[str, Any] | None:
        content = self._remote.read(NAME)
        return None if content is None else {"host": "?", "process": "?", **json.loads(content)}
