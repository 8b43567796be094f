"""The small files of a run that are in no manifest: configuration, events, report. They go where they were changed last."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensemw2s.runs.files import write_atomic
from ensemw2s.runs.remote import Entry, Remote

FILES = ("config.yaml", "events.jsonl", "report.md", "report.html")
FOLDERS = ("figures", "tracking")
EVENTS = "events.jsonl"
RECORD = ".mirror/loose.json"


class LooseFiles:
    """Both sides of them, and a record of what was the same when they last met.

    Args:
        folder: the copy of the run on this machine.
        remote: the run.
    """

    def __init__(self, folder: Path, remote: Remote) -> None:
        self._folder, self._remote = folder, remote

    def pull(self) -> None:
        """Take what was changed there; lines of events.jsonl that are only here are kept."""
        record = self._read_record()
        for name, entry in self._there():
            seen, target = record.get(name), self._folder / name
            if seen is not None and seen["there"] == _entry(entry) and target.is_file():
                continue
            own = target.read_text(encoding="utf-8") if name == EVENTS and target.is_file() else ""
            if not self._remote.download(name, target):
                continue
            record[name] = {"here": _stat(target), "there": _entry(entry)}
            if own:
                theirs = target.read_text(encoding="utf-8")
                known = set(theirs.splitlines())
                missing = [line for line in own.splitlines() if line not in known]
                if missing:
                    write_atomic(target, theirs + "".join(f"{line}\n" for line in missing))
        self._write_record(record)

    def push(self) -> None:
        """Send what was changed here."""
        record = self._read_record()
        for name in self._here():
            stat = _stat(self._folder / name)
            if name in record and record[name]["here"] == stat:
                continue
            self._remote.upload(self._folder / name, name)
            entry = self._remote.entry(name)
            record[name] = {"here": stat, "there": None if entry is None else _entry(entry)}
        self._write_record(record)

    def _here(self) -> Iterator[str]:
        for name in FILES:
            if (self._folder / name).is_file():
                yield name
        for folder in FOLDERS:
            for path in sorted((self._folder / folder).rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    yield path.relative_to(self._folder).as_posix()

    def _there(self) -> Iterator[tuple[str, Entry]]:
        for name in FILES:
            entry = self._remote.entry(name)
            if entry is not None:
                yield name, entry
        for folder in FOLDERS:
            yield from self._remote.entries(folder).items()

    def _read_record(self) -> dict[str, Any]:
        try:
            record: dict[str, Any] = json.loads((self._folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            # Without it everything is taken, and then sent, once more.
            return {}
        return record

    def _write_record(self, record: dict[str, Any]) -> None:
        write_atomic(self._folder / RECORD, json.dumps(record))


def _stat(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _entry(entry: Entry) -> list[float]:
    return [entry.size, entry.written]
