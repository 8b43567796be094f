"""Training checkpoints of a stage: written aside, hashed, put in place whole, verified before they are read."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from ensemw2s.errors import ArtifactError

SEAL = "seal-{rank}.json"


def _hash(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _is_seal(path: Path) -> bool:
    return path.name.startswith("seal-") and path.suffix == ".json"


def seal(folder: Path, step: int, rank: int = 0) -> None:
    """Write the hashes of the files that one rank put into a checkpoint folder; the last thing that it writes."""
    files = {
        p.relative_to(folder).as_posix(): _hash(p)
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not _is_seal(p)
    }
    (folder / SEAL.format(rank=rank)).write_text(json.dumps({"step": step, "files": files}), encoding="utf-8")


def verify(folder: Path, world_size: int = 1) -> int:
    """The step of a checkpoint that every rank sealed.

    Raises:
        ArtifactError: a seal is missing, or a file is not what was written.
    """
    steps = set()
    for rank in range(world_size):
        try:
            content = json.loads((folder / SEAL.format(rank=rank)).read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            raise ArtifactError(
                f"{folder} is no whole training checkpoint: the seal of rank {rank} is missing"
            ) from None
        for relative, expected in content["files"].items():
            path = folder / relative
            if not path.is_file() or _hash(path) != expected:
                raise ArtifactError(f"{path} is not what was written into this checkpoint: its hash differs")
        steps.add(int(content["step"]))
    if len(steps) != 1:
        raise ArtifactError(f"{folder} mixes the checkpoints of steps {sorted(steps)}")
    return steps.pop()


def first_whole(folders: Iterable[Path]) -> Path | None:
    """The first of these checkpoints, of one rank, that is there and whole."""
    for folder in folders:
        try:
            verify(folder)
        except ArtifactError:
            continue
        return folder
    return None


class CheckpointFolder:
    """The latest checkpoint of one local training, in ``folder/current``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.current = folder / "current"

    def begin(self) -> Path:
        """An empty folder to write the next checkpoint into."""
        new = self.folder / "new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        return new

    def finish(self, step: int) -> None:
        """Seal the new checkpoint and put it in the place of the old one."""
        new, current, old = (self.folder / n for n in ("new", "current", "old"))
        seal(new, step)
        shutil.rmtree(old, ignore_errors=True)
        if current.exists():
            os.replace(current, old)
        os.replace(new, current)
        shutil.rmtree(old, ignore_errors=True)

    def latest(self) -> Path | None:
        """The newest whole checkpoint; a damaged one is never used."""
        return first_whole([self.current, self.folder / "old"])
