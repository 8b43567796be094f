"""Opening a run that was begun, in a folder or on storage with a URI, to read from it."""

from __future__ import annotations

from pathlib import Path

from ensemw2s.config.uris import is_uri
from ensemw2s.errors import RunDirectoryError
from ensemw2s.runs.mirror import place_of
from ensemw2s.runs.store import RunStore, run_store

STUDENTS = "student-"


def begun_run(run: Path | str, *, lazy: bool = False) -> RunStore:
    """A run that was begun; of one on storage this machine's copy, with all that its commands read but for the students.

    Args:
        run: folder or URI.
        lazy: weights stay on the storage.

    Raises:
        RunDirectoryError: not a run directory, or storage that cannot be reached.
        ArtifactError: a committed file is missing or altered.
    """
    store = run_store(place_of(run), lazy=lazy)
    store.pull()
    if not store.exists or not (store.folder / "config.yaml").is_file():
        what = "the URI" if is_uri(str(run)) else "the folder"
        raise RunDirectoryError(
            f"{run} is not a run directory: give {what} that `ensemw2s run` made, for example runs/demo"
        )
    bring_all_but_students(store)
    return store


def bring_all_but_students(store: RunStore) -> None:
    """Have all of a run here that its ensemble needs; does nothing for a run in a folder.

    Raises:
        ArtifactError: a committed file is missing or altered.
    """
    if store.mirror is not None:
        for name in store.stages():
            if not name.startswith(STUDENTS):
                store.require(name)


def read_run(run: Path | str, *stages: str) -> RunStore:
    """A run to look at: its manifest and the small files beside it, and what these stages have made, if they are committed.

    Raises:
        RunDirectoryError: storage that cannot be reached.
        ArtifactError: a committed file is missing or altered.
    """
    store = run_store(place_of(run))
    store.pull()
    if store.mirror is not None and store.exists:
        for name in set(stages) & set(store.stages()):
            store.require(name)
    return store
