"""The run directory: stages that are committed atomically, with the hashes of what they wrote.

A stage writes into a staging folder that mirrors the run directory. ``commit`` moves the files into place and writes
the manifest entry last, so a run that is killed at any moment continues from its last committed stage. A committed
file that is missing or altered makes its stage count as not done; it is made anew, and events.jsonl says so. A run on storage
with a URI is worked on in a copy (:mod:`ensemw2s.runs.mirror`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ensemw2s.config.uris import shown
from ensemw2s.errors import ArtifactError, EnsemW2SError, RunDirectoryError
from ensemw2s.runs.files import file_hash as file_hash
from ensemw2s.runs.files import write_atomic as write_atomic
from ensemw2s.runs.mirror import MANIFEST as MANIFEST
from ensemw2s.runs.mirror import Mirror, Storage

SCHEMA = 1
KEPT = "what was committed is kept"
SMALLEST_ROOM = 64 * 1024
"""bytes; a disk with less is full"""


@dataclass(frozen=True)
class StageRecord:
    """A committed stage: its files (path in the run directory -> SHA-256) and what it measured."""

    name: str
    files: dict[str, str]
    info: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def directory_errors(folder: Path) -> Iterator[None]:
    """Turn "read-only", "no space" and "no permission" into one clear line."""
    try:
        yield
    except OSError as error:
        if error.errno in (
            errno.EACCES,
            errno.EPERM,
            errno.EROFS,
            errno.ENOSPC,
            errno.ENOTDIR,
            errno.EDQUOT,
            errno.EEXIST,
        ):
            raise RunDirectoryError(
                f"cannot write the run directory {folder}: {error.strerror}; free space or permissions there, or choose another with "
                f"runs_dir=FOLDER; {KEPT}"
            ) from error
        raise


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn whatever a full or read-only disk of the run directory made of itself into the same clear line.

    Libraries that write weights and tables have errors of their own for it, and workers wrap them: besides the error number the
    text is looked at, and whether there is room.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, RunDirectoryError) and KEPT in str(error):
            raise
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)
        numbers = {e.errno for e in chain if isinstance(e, OSError)}
        told = any(os.strerror(errno.ENOSPC) in str(e) for e in chain)
        full = not isinstance(error, EnsemW2SError) and shutil.disk_usage(folder).free < SMALLEST_ROOM
        if not (told or full or numbers & {errno.ENOSPC, errno.EDQUOT, errno.EROFS}):
            raise
        why = errno.EROFS if errno.EROFS in numbers else errno.ENOSPC
        raise RunDirectoryError(
            f"cannot write the run directory {folder}: {os.strerror(why)}; free space or permissions there, then give the same "
            f"command again; {KEPT}"
        ) from error


class RunStore:
    """One run directory.

    Args:
        folder: the run directory, or this machine's copy of it; made by :meth:`create` when it does not exist.
        mirror: the storage that the folder is a copy of. A commit is one when it is there; what is committed there and is not here
            comes when its stage is asked for.
    """

    def __init__(self, folder: Path, mirror: Mirror | None = None) -> None:
        self.folder, self.mirror = folder, mirror
        self._lock: IO[str] | None = None
        self._verified: set[str] = set()

    # -- life of the directory -------------------------------------------------------------------------------

    @property
    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.folder / MANIFEST).is_file()

    @property
    def storage(self) -> Storage | None:
        """Where the run is, if it is not a folder."""
        return None if self.mirror is None else self.mirror.storage

    @property
    def place(self) -> str:
        """The run directory, for messages: its folder or its URI."""
        return str(self.folder) if self.mirror is None else shown(self.mirror.storage.uri)

    def pull(self) -> None:
        """Take what is new on the storage, where there is one, and no process of this machine works on the run.

        Raises:
            RunDirectoryError: it cannot be reached, or holds something else.
        """
        if self.mirror is None:
            return
        if not self.folder.is_dir():
            self.mirror.pull()
            return
        # Who works on it here has the newest.
        with (self.folder / "run.lock").open("a+") as handle, contextlib.suppress(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.mirror.pull()

    def create(self, identity: dict[str, Any], identity_hash: str) -> None:
        """Begin a run, or do nothing where the same run was begun before.

        Raises:
            RunDirectoryError: the folder holds something else, or cannot be written.
        """
        if self.exists:
            return
        with directory_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.mirror is None and any(p.name != "run.lock" for p in self.folder.iterdir()):
                raise RunDirectoryError(
                    f"{self.folder} is not empty and holds no run: choose another name=... or runs_dir=..., or remove it"
                )
            self._write_manifest(
                {"schema": SCHEMA, "identity_hash": identity_hash, "identity": identity, "stages": {}}
            )

    def identity(self) -> dict[str, Any]:
        """The identity that the run was begun with."""
        value: dict[str, Any] = self._read_manifest()["identity"]
        return value

    def lock(self, timeout: float = 30.0) -> None:
        """Hold the run for this process until :meth:`unlock`.

        Raises:
            RunDirectoryError: another process holds it, still after `timeout` seconds.
        """
        with directory_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = (self.folder / "run.lock").open("a+")
        deadline = time.monotonic() + timeout
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    handle.close()
                    raise RunDirectoryError(
                        f"another process is working on {self.folder}: wait for it, stop it, or choose another name=..."
                    ) from None
                time.sleep(0.2)
        self._lock = handle
        if self.mirror is None:
            return
        try:
            self.mirror.lock.acquire(timeout)
            self.mirror.pull()
            self.mirror.push()
            if self.exists:
                self.mirror.bring("splits/", "bases/", needed=False)
        except BaseException:
            self.unlock()
            raise

    def unlock(self) -> None:
        """Let the run go."""
        if self.mirror is not None and self.mirror.lock.held:
            # Lines of events.jsonl that cannot be sent now go with the next command.
            with contextlib.suppress(EnsemW2SError):
                self.mirror.lock.check()
                self.mirror.push_loose()
            self.mirror.lock.release()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # -- stages ----------------------------------------------------------------------------------------------

    def done(self, name: str) -> StageRecord | None:
        """The record of a committed stage whose files are whole, else None."""
        entry = self._read_manifest()["stages"].get(name)
        if entry is None:
            return None
        damaged = self._damaged(name, entry["files"])
        if damaged is not None:
            self.event("artifact_damaged", stage=name, file=damaged)
            self.discard(name)
            return None
        return StageRecord(name, entry["files"], entry["info"])

    def require(self, name: str) -> StageRecord:
        """The record of a stage that must be there and whole; reads only.

        Raises:
            ArtifactError: it is not committed, or a file of it is damaged.
        """
        entry = self._read_manifest()["stages"].get(name)
        damaged = None if entry is None else self._damaged(name, entry["files"])
        if entry is None or damaged is not None:
            what = f"has no stage {name!r}" if damaged is None else f"has a damaged file {damaged}"
            raise ArtifactError(f"{self.place} {what}: give its `ensemw2s run` command again to make it")
        return StageRecord(name, entry["files"], entry["info"])

    def is_whole(self) -> bool:
        """Whether every committed file of the run is what was written; reads only."""
        stages = self._read_manifest()["stages"]
        return all(
            self._damaged(name, entry["files"], only_look=True) is None for name, entry in stages.items()
        )

    def _damaged(self, name: str, files: dict[str, str], *, only_look: bool = False) -> str | None:
        """The first file of a stage that is missing or altered; looked at once by each process."""
        if name in self._verified:
            return None
        all_here = True
        for relative, expected in files.items():
            path = self.folder / relative
            if path.is_file() and file_hash(path) == expected:
                continue
            if self.mirror is None or not self.mirror.supply(relative, expected, only_look=only_look):
                return relative
            all_here = all_here and not only_look
        if all_here:
            self._verified.add(name)
        return None

    def begin(self, name: str) -> Path:
        """An empty staging folder for a stage; its layout mirrors the run directory."""
        folder = self.folder / ".staging" / name
        with directory_errors(self.folder):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        return folder

    def commit(self, name: str, info: dict[str, Any] | None = None) -> StageRecord:
        """Move what the staging folder holds into place and write the manifest entry, last."""
        staging = self.folder / ".staging" / name
        with directory_errors(self.folder):
            files: dict[str, str] = {}
            if staging.is_dir():
                for path in sorted(p for p in staging.rglob("*") if p.is_file()):
                    relative = path.relative_to(staging)
                    files[relative.as_posix()] = file_hash(path)
                    target = self.folder / relative
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(path, target)
                shutil.rmtree(staging)
            if self.mirror is not None:
                files = {**self.mirror.accept(name), **files}
            manifest = self._read_manifest()
            manifest["stages"][name] = {"files": files, "info": info or {}}
            self._write_manifest(manifest)
        self._verified.add(name)
        self.clear_scratch(name)
        return StageRecord(name, files, info or {})

    def discard(self, name: str) -> None:
        """Forget a stage, so that it is made anew."""
        manifest = self._read_manifest()
        if manifest["stages"].pop(name, None) is not None:
            self._write_manifest(manifest)
        self._verified.discard(name)

    def stages(self) -> dict[str, StageRecord]:
        """All manifest entries in the order of their commits, unverified."""
        return {n: StageRecord(n, e["files"], e["info"]) for n, e in self._read_manifest()["stages"].items()}

    def scratch(self, name: str) -> Path:
        """Where a stage keeps checkpoints while it runs; removed when it is committed."""
        return self.folder / ".scratch" / name

    def clear_scratch(self, name: str) -> None:
        """Remove what a stage, or a group of stages, keeps there."""
        shutil.rmtree(self.scratch(name), ignore_errors=True)
        if self.mirror is not None:
            self.mirror.forget(name)

    # -- events ----------------------------------------------------------------------------------------------

    def event(self, kind: str, **fields: Any) -> None:
        """Append what happened (restarts, retries, drops, resumes) to events.jsonl."""
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": kind, **fields})
        with (
            directory_errors(self.folder),
            (self.folder / "events.jsonl").open("a", encoding="utf-8") as handle,
        ):
            handle.write(line + "\n")

    # -- manifest --------------------------------------------------------------------------------------------

    def _read_manifest(self) -> dict[str, Any]:
        path = self.folder / MANIFEST
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunDirectoryError(f"{self.folder} is not a run directory: it has no {MANIFEST}") from None
        except json.JSONDecodeError as error:
            raise ArtifactError(
                f"{path} is not whole ({error}): restore it, or remove the run and start it again"
            ) from None
        if not isinstance(manifest, dict) or not isinstance(manifest.get("stages", {}), dict):
            raise ArtifactError(f"{path} is not a manifest: restore it, or remove the run and start it again")
        if manifest.get("schema") != SCHEMA:
            raise RunDirectoryError(
                f"{path} has schema {manifest.get('schema')!r}, this version reads {SCHEMA}"
            )
        manifest.setdefault("stages", {})
        return manifest

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        write_atomic(self.folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=False) + "\n")
        if self.mirror is not None:
            self.mirror.push()


def run_store(place: Path | Storage, *, lazy: bool = False) -> RunStore:
    """The run in a folder or on storage, which is asked for an answer.

    Args:
        place: where it is.
        lazy: weights of members and students stay on the storage.

    Raises:
        RunDirectoryError: the storage cannot be reached.
    """
    if isinstance(place, Path):
        return RunStore(place)
    mirror = Mirror(place, lazy)
    return RunStore(mirror.folder, mirror)
