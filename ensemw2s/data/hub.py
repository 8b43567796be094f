"""Data sets of the Hugging Face hub, from there or from a copy on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ensemw2s.config import HubSource
from ensemw2s.errors import DataError


def load_hub(source: HubSource, path: str, shown: str) -> Any:
    """The rows of a data set.

    Args:
        source: which split, configuration and revision.
        path: its id, or the folder that is read in its place.
        shown: what messages call it.

    Raises:
        DataError: it cannot be had; the line says what to do.
    """
    with _library(shown, source) as datasets:
        # What Dataset.save_to_disk writes is no data files to load_dataset, which refuses it; with several splits, or
        # read from the hub, it is.
        if Path(path, "state.json").is_file():
            saved = datasets.load_from_disk(path)
        else:
            return datasets.load_dataset(path, source.name, split=source.split, revision=source.revision)
    # It may have been saved without the name of its split; then it is the one that is asked for.
    name = source.split.partition("[")[0]
    if saved.split is not None and str(saved.split) != name:
        raise DataError(
            f"{shown}: {path} holds the split {saved.split}, as one data set was saved, not {source.split}: give the folder of "
            "that split, or of a DatasetDict with all splits"
        )
    if name == source.split:
        return saved
    with _library(shown, source) as datasets:
        (part,) = datasets.ReadInstruction.from_spec(source.split).to_absolute({name: len(saved)})
        return saved.select(range(part.from_, part.to))


def local_copy(source: HubSource, folder: Path, shown: str) -> HubSource:
    """The source with what the folder itself says of configurations.

    A hub data set with several configurations (ARC) names them in its README.md or has a folder for each; a copy may
    hold one of them alone, and then names none.

    Args:
        source: a data set of the hub whose `path` is a folder.
        folder: the same, from any working directory.
        shown: what messages call it.

    Raises:
        DataError: there is no such folder, or it holds no data set.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise DataError(
            f"{shown}: path {source.path} {what}: give the folder of a copy, or leave path out to read it from the hub"
        )
    if source.name is None or (folder / "state.json").is_file():
        return source.model_copy(update={"name": None})
    with _library(shown, source) as datasets:
        names = datasets.get_dataset_config_names(str(folder))
    if source.name in names:
        return source
    if (folder / source.name).is_dir():
        return source.model_copy(update={"name": None, "path": f"{source.path}/{source.name}"})
    others = names if names != ["default"] else _configuration_folders(folder)
    if others:
        raise DataError(
            f"{shown}: {source.path} has no configuration {source.name}, only {', '.join(sorted(others))}: give the folder of a copy "
            "that has it, or the folder of its files"
        )
    return source.model_copy(update={"name": None})


#: What a folder of a configuration may be divided into; other folders are configurations.
_PARTS = ("data", "default", "train", "validation", "valid", "val", "dev", "test", "eval")


def _configuration_folders(folder: Path) -> list[str]:
    """Folders that stand for configurations, where a data set does not say which it has."""
    folders = [f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith((".", "_"))]
    if any(name.partition("-")[0].lower() in _PARTS for name in folders):
        return []
    return [] if any(f.is_file() and f.suffix in _FILES for f in folder.iterdir()) else folders


_FILES = (".parquet", ".json", ".jsonl", ".csv", ".arrow", ".txt", ".zst", ".gz")


@contextmanager
def _library(shown: str, source: HubSource) -> Iterator[Any]:
    """The package datasets, with its errors as ours."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"{shown} needs the package datasets: pip install datasets") from error
    try:
        yield datasets
    # The library raises a dozen unrelated types here (its own, huggingface_hub's, the HTTP client's,
    # pyarrow's), all of which mean that this data set cannot be had.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if _is_connection(error):
            revision = f" --revision {source.revision}" if source.revision else ""
            raise DataError(
                f"{shown}: the Hugging Face hub cannot be reached ({reason}): connect (and unset HF_HUB_OFFLINE), or give a "
                f"folder of this machine as path, made elsewhere by: hf download {source.path} --repo-type dataset{revision} "
                "--local-dir FOLDER"
            ) from error
        raise DataError(f"{shown} cannot be loaded: {reason[:300]}") from error


def _is_connection(error: BaseException) -> bool:
    # The HTTP client's error may be the cause of another one; its package depends on the hub client's
    # version.
    seen: BaseException | None = error
    while seen is not None:
        module = type(seen).__module__.partition(".")[0]
        if isinstance(seen, ConnectionError | TimeoutError) or module in ("httpx", "requests"):
            return True
        if type(seen).__name__ in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
            return True
        seen = seen.__cause__
    return False
