"""A run whose directory is on storage with a URI, and the copy of it on this machine's disk that is worked on.

The storage has the layout of a run directory, and is the truth: ``manifest.json`` there names what is committed, and is written
after the files that it names. A copy takes what it needs when it needs it, checked by hash. Workers put what they made where the
stage will have it, and then its hashes into ``.staging/STAGE.json``; nothing reads it before the manifest has it. Training
checkpoints go to ``.scratch``: a folder for each, and then ``NAME.json``, which says which one counts.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ensemw2s.config.uris import is_uri, shown
from ensemw2s.errors import ArtifactError, RunDirectoryError
from ensemw2s.runs.files import file_hash, write_atomic
from ensemw2s.runs.loose import LooseFiles
from ensemw2s.runs.remote import Remote
from ensemw2s.runs.remote_lock import NAME as LOCK
from ensemw2s.runs.remote_lock import RemoteLock

MANIFEST = "manifest.json"
STAGING, SCRATCH = ".staging", ".scratch"
BASE = ".mirror/manifest.json"
"""the manifest of the storage as this copy knows it"""
HEAVY = ("members/", "students/")
"""what a coordinator does not need itself"""
WORK_DIR = "ENSEMW2S_WORK_DIR"


@dataclass(frozen=True)
class Storage:
    """Where a run is that is not a folder. It goes to other processes; each opens it for itself.

    Attributes:
        uri: of the run directory.
        work_dir: folder of the copies, as configured; each node reads ~ and $VARIABLES for itself.
    """

    uri: str
    work_dir: str | None = None

    def folder(self) -> Path:
        """The copy on this machine, absolute.

        Raises:
            RunDirectoryError: the folder of the copies names a variable that this machine does not have.
        """
        given = self.work_dir or os.environ.get(WORK_DIR) or "~/.cache/ensemw2s/runs"
        path = os.path.expandvars(os.path.expanduser(given))
        if "$" in path or not os.path.isabs(path):
            raise RunDirectoryError(
                f"runtime.work_dir {given!r} is {path!r} on this machine: set its variables there, or give an absolute path"
            )
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", shown(self.uri)).strip("-")
        return Path(path) / f"{readable}-{hashlib.sha256(self.uri.encode()).hexdigest()[:12]}"


def place_of(run: Path | str) -> Storage | Path:
    """What a person gave as a run: a folder, absolute, or a URI."""
    return Storage(str(run)) if is_uri(str(run)) else Path(run).expanduser().resolve()


@dataclass
class Mirror:
    """The two sides of one run.

    Attributes:
        storage: where the run is.
        lazy: weights of members and students are not brought here: who only coordinates does not need them.
    """

    storage: Storage
    lazy: bool = False
    remote: Remote = field(init=False)
    folder: Path = field(init=False)
    lock: RemoteLock = field(init=False)

    def __post_init__(self) -> None:
        self.folder = self.storage.folder()
        self.remote = Remote(self.storage.uri)
        self.lock = RemoteLock(self.remote)
        self._loose = LooseFiles(self.folder, self.remote)
        self._names: set[str] | None = None
        self._staged: dict[str, str] = {}
        self._hashes: dict[Path, tuple[tuple[int, int], str]] = {}

    # -- the whole run -----------------------------------------------------------------------------------------

    def pull(self) -> None:
        """Take the manifest and the small files beside it; what only this copy has is dropped.

        A copy that is one commit ahead of the very manifest that it took last keeps it: :meth:`push` was killed.

        Raises:
            RunDirectoryError: something else is there.
        """
        content = self.remote.read(MANIFEST)
        self._names = None
        if content is None:
            self._check_empty()
            if self.folder.is_dir():
                _clear(self.folder)
            return
        text, here, base = content.decode(), _text(self.folder / MANIFEST), _text(self.folder / BASE)
        if here is None or base != text:
            write_atomic(self.folder / MANIFEST, text)
        write_atomic(self.folder / BASE, text)
        self._loose.pull()

    def push(self) -> None:
        """Bring the storage to what this copy has: files that the manifest names, small files, the manifest, in this order.

        Raises:
            WorkerFailure: another process has the run now.
            RunDirectoryError: the storage cannot be written.
        """
        text, base = _text(self.folder / MANIFEST), _text(self.folder / BASE)
        if text is None:
            return
        named = {} if base is None else _files(base)
        there = {n: h for n, h in named.items() if n in self.names()} | self._staged
        self.lock.check()
        for name, expected in _files(text).items():
            if there.get(name) == expected:
                continue
            source = self.folder / name
            if source.exists():
                self.remote.upload(source, name)
                self.names().add(name)
            # Else the worker that made it has published it, before a process that was killed since could say so; or it was there and is
            # nowhere now. Its hash is looked at when it is asked for.
        self._loose.push()
        if text != base:
            self.lock.check()
            self.remote.write(MANIFEST, text.encode())
            write_atomic(self.folder / BASE, text)

    def push_loose(self) -> None:
        """The small files beside the manifest alone: configuration, events, report."""
        self._loose.push()

    def names(self) -> set[str]:
        """What the storage holds."""
        if self._names is None:
            self._names = set(self.remote.entries())
        return self._names

    def _check_empty(self) -> None:
        other = sorted(n for n in self.names() if n != LOCK and not n.startswith(".probe-"))
        if other:
            raise RunDirectoryError(
                f"{shown(self.storage.uri)} is not empty and holds no run (it has {other[0]}): choose another name=... or runs_dir=..., "
                "or remove it"
            )

    # -- committed files ---------------------------------------------------------------------------------------

    def supply(self, name: str, expected: str, *, only_look: bool = False) -> bool:
        """Have a committed file here, whole; where it need not be here, that it is there.

        Args:
            name: path in the run directory.
            expected: its SHA-256.
            only_look: bring nothing.
        """
        if only_look or (self.lazy and name.startswith(HEAVY) and not (self.folder / name).exists()):
            return name in self.names()
        return self._bring(name, self.folder / name, expected)

    def bring(self, *prefixes: str, needed: bool = True) -> None:
        """Have all committed files here whose path begins so; reads the manifest of the storage, and leaves that here alone.

        Raises:
            ArtifactError: one of them is not what was committed, and is `needed`.
        """
        content = self.remote.read(MANIFEST)
        if content is None:
            raise RunDirectoryError(f"{shown(self.storage.uri)} is not a run directory: it has no {MANIFEST}")
        for name, expected in _files(content.decode()).items():
            if name.startswith(prefixes):
                (self._demand if needed else self._bring)(name, self.folder / name, expected)

    def _bring(self, name: str, target: Path, expected: str) -> bool:
        if self._is(target, expected):
            return True
        draft = target.with_name(f".{target.name}.{os.getpid()}.new")
        try:
            # What this node made itself, and what travelled badly the first time.
            for other in self.folder.glob(f"{STAGING}/*/{glob.escape(name)}"):
                if other != target and self._is(other, expected):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with contextlib.suppress(OSError):
                        os.link(other, draft)
                        os.replace(draft, target)
                        return True
            for _ in range(2):
                if not self.remote.download(name, draft):
                    return False
                if file_hash(draft) == expected:
                    os.replace(draft, target)
                    return True
        finally:
            draft.unlink(missing_ok=True)
        return False

    def _is(self, path: Path, expected: str) -> bool:
        """Whether a file here has this hash; computed once for as long as the file stays as it is."""
        try:
            stat = path.stat()
        except FileNotFoundError:
            return False
        state = (stat.st_size, stat.st_mtime_ns)
        known = self._hashes.get(path)
        if known is None or known[0] != state:
            known = self._hashes[path] = (state, file_hash(path))
        return known[1] == expected

    def _demand(self, name: str, target: Path, expected: str) -> None:
        if not self._bring(name, target, expected):
            raise ArtifactError(
                f"{shown(self.storage.uri)}/{name} is missing or not what was committed: remove it there, and give the run's command "
                "again to make it"
            )

    # -- what a worker made for a stage ------------------------------------------------------------------------

    def publish(self, folder: Path, info: dict[str, Any] | None = None) -> None:
        """Hand over a folder that lies in a stage's staging folder (or in scratch: a checkpoint); its hashes go last."""
        top, name, *rest = folder.relative_to(self.folder).parts
        files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
        hashes = {relative: file_hash(path) for relative, path in files.items()}
        if top == SCRATCH:
            self._publish_scratch("/".join((top, name, *rest)), files, hashes)
            return
        self.retract(name)
        inside = "/".join(rest)
        for relative, path in files.items():
            self.remote.upload(path, f"{inside}/{relative}")
        listing = {"files": {f"{inside}/{r}": h for r, h in hashes.items()}, "info": info or {}}
        self.remote.write(f"{STAGING}/{name}.json", json.dumps(listing).encode())

    def retract(self, stage: str) -> None:
        """What was handed over for a stage does not count any more: it is made again."""
        self.remote.delete(f"{STAGING}/{stage}.json")

    def staged(self, stage: str) -> dict[str, Any] | None:
        """What a worker handed over for a stage that is not committed: files (path in the run directory -> SHA-256) and info."""
        content = self.remote.read(f"{STAGING}/{stage}.json")
        if content is None:
            return None
        listing: dict[str, Any] = json.loads(content)
        return listing

    def accept(self, stage: str) -> dict[str, str]:
        """The files of a stage that lie where the commit will have them; they are not sent again."""
        listing = self.staged(stage)
        files: dict[str, str] = {} if listing is None else listing["files"]
        self._staged |= files
        self.names().update(files)
        return files

    def obtain(self, folder: Path) -> None:
        """Have a folder of weights here, wherever it was made: committed, handed over, or in scratch.

        Raises:
            ArtifactError: it is not there, or not what was written.
        """
        top, name, *rest = folder.relative_to(self.folder).parts
        if top == SCRATCH:
            if not self.restore(folder):
                raise ArtifactError(f"{shown(self.storage.uri)} has no {folder.name} of {name}")
        elif top == STAGING:
            listing = self.staged(name)
            inside = "/".join(rest)
            if listing is None:
                # It was committed meanwhile; another process that had asked for it was slow.
                self.bring(f"{inside}/")
                return
            for path, expected in listing["files"].items():
                self._demand(path, self.folder / STAGING / name / path, expected)
        else:
            self.bring("/".join((top, name, *rest)) + "/")

    # -- checkpoints -------------------------------------------------------------------------------------------

    def _publish_scratch(self, place: str, files: dict[str, Path], hashes: dict[str, str]) -> None:
        key = hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()[:16]
        for relative, path in files.items():
            self.remote.upload(path, f"{place}/{key}/{relative}")
        self.remote.write(f"{place}.json", json.dumps({"folder": key, "files": hashes}).encode())
        for name in self.remote.entries(place):
            if not name.startswith(f"{place}/{key}/"):
                self.remote.delete(name)

    def restore(self, folder: Path) -> bool:
        """Have the folder of scratch that was handed over last here, in the place of what is here; False where there is none."""
        place = folder.relative_to(self.folder).as_posix()
        content = self.remote.read(f"{place}.json")
        if content is None:
            return False
        listing = json.loads(content)
        files: dict[str, str] = listing["files"]
        if all(self._is(folder / relative, expected) for relative, expected in files.items()):
            return True
        draft = folder.with_name(f".{folder.name}.{os.getpid()}.new")
        try:
            shutil.rmtree(draft, ignore_errors=True)
            for relative, expected in files.items():
                if not self._bring(f"{place}/{listing['folder']}/{relative}", draft / relative, expected):
                    return False
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return True

    def forget(self, stage: str) -> None:
        """Remove the checkpoints of a stage, and the list of what was handed over for it; it is committed."""
        self.retract(stage)
        self.remote.delete_all(f"{SCRATCH}/{stage}")


def _files(manifest: str) -> dict[str, str]:
    """Path -> SHA-256 of all committed files."""
    try:
        stages: dict[str, Any] = json.loads(manifest)["stages"]
    except (ValueError, KeyError) as error:
        raise ArtifactError(
            f"{MANIFEST} of the run is not whole ({error}): restore it, or remove the run and start it again"
        ) from None
    return {name: digest for stage in stages.values() for name, digest in stage["files"].items()}


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _clear(folder: Path) -> None:
    """Remove the copy of a run that is not there any more; its lock file stays, as somebody may hold it."""
    for path in folder.iterdir():
        if path.name == LOCK:
            continue
        shutil.rmtree(path) if path.is_dir() else path.unlink()
