"""Results that several runs share, by the hash of what they were computed from.

Runs of a sweep or a comparison have stages in common: the same member on the same draw, the same scores, the same
student. Each is computed once. An entry is written aside and renamed into place; its files carry hashes, and an altered
or truncated one counts as absent.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemw2s.runs.store import file_hash

SCHEMA = 1
ENTRY = "entry.json"
ARRAYS = "arrays.npz"
FILES = "files"


def content_key(parts: dict[str, Any]) -> str:
    """SHA-256 (hexadecimal) of plain JSON data and arrays; the order of the keys does not matter."""
    digest = hashlib.sha256()
    for name in sorted(parts):
        value = parts[name]
        digest.update(f"\n{name}=".encode())
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        else:
            digest.update(json.dumps(value, sort_keys=True).encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """One stored result: `payload` is JSON data, `arrays` by name, `files` a folder or None."""

    payload: dict[str, Any]
    arrays: dict[str, np.ndarray]
    files: Path | None


class ResultCache:
    """A folder of entries. Removing it, or any entry, costs time and nothing else.

    Args:
        folder: made when the first entry comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _place(self, key: str) -> Path:
        return self.folder / key[:2] / key

    def get(self, key: str) -> Entry | None:
        """The entry, if it is there and whole."""
        place = self._place(key)
        try:
            record = json.loads((place / ENTRY).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, json.JSONDecodeError):
            record = {}
        if record.get("schema") != SCHEMA:
            shutil.rmtree(place, ignore_errors=True)
            return None
        for relative, expected in record["hashes"].items():
            path = place / relative
            if not path.is_file() or file_hash(path) != expected:
                shutil.rmtree(place, ignore_errors=True)
                return None
        arrays: dict[str, np.ndarray] = {}
        if ARRAYS in record["hashes"]:
            with np.load(place / ARRAYS) as stored:
                arrays = {name: stored[name] for name in stored.files}
        files = place / FILES
        return Entry(record["payload"], arrays, files if files.is_dir() else None)

    def lock(self, keys: Iterable[str]) -> ExitStack:
        """Wait until no other process computes any of these, and hold them until the stack is closed.

        They are taken in one order by everybody, so nobody waits in a circle; a process that dies lets them go.
        """
        held = ExitStack()
        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        for key in sorted(set(keys)):
            handle = held.enter_context((folder / key).open("a"))
            fcntl.flock(handle, fcntl.LOCK_EX)
        return held

    def put(
        self,
        key: str,
        payload: dict[str, Any],
        arrays: dict[str, np.ndarray] | None = None,
        files: Path | None = None,
    ) -> None:
        """Store an entry, unless another process was faster.

        Args:
            key: from :func:`content_key`.
            payload: JSON data.
            arrays: by name.
            files: a folder whose files belong to the entry; they are linked where the file system can, else copied.
        """
        place = self._place(key)
        if (place / ENTRY).is_file():
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=place.parent))
        try:
            if arrays:
                np.savez(aside / ARRAYS, **arrays)  # type: ignore[arg-type]
            if files is not None:
                link_tree(files, aside / FILES)
            hashes = {
                p.relative_to(aside).as_posix(): file_hash(p) for p in sorted(aside.rglob("*")) if p.is_file()
            }
            record = {"schema": SCHEMA, "payload": payload, "hashes": hashes}
            (aside / ENTRY).write_text(json.dumps(record), encoding="utf-8")
            try:
                os.rename(aside, place)
            except OSError:
                if (place / ENTRY).is_file():
                    return
                # The rest of an entry that was being removed.
                shutil.rmtree(place, ignore_errors=True)
                os.rename(aside, place)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def link_tree(source: Path, target: Path) -> None:
    """A copy of a folder whose files are links to the same content where the file system can; `target` is made anew.

    Sound only for files that are replaced, never written in place.
    """
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
