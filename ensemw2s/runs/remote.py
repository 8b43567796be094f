"""A folder on storage that has a URI: through pyarrow, as Ray Train resolves it, else through fsspec.

Objects are read, written and replaced whole. What goes wrong is one line that says what to look at; what may pass is tried again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from ensemw2s.config.uris import shown
from ensemw2s.errors import RunDirectoryError

ANSWER_SECONDS = 20.0
"""for the first answer of a storage; some clients would go on asking for a quarter of an hour"""
CONNECT_SECONDS = 3.0
RETRY_SECONDS = (1.0, 5.0, 15.0)
CHUNK = 8 * 2**20
BUCKETS = ("s3", "gcs", "abfs")
"""file systems of pyarrow whose first part is a bucket, and which need no folders"""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
REMEDY = "check the URI, the credentials of this node and its network; what was committed is kept"

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """An object: its size in bytes, and when it was written by the clock of the storage, in seconds (0 where it is not told)."""

    size: int
    written: float


class Remote:
    """A folder on storage.

    Args:
        uri: such as ``s3://bucket/runs/demo``.

    Raises:
        RunDirectoryError: it cannot be reached; within ANSWER_SECONDS.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.file_system, self.path = _first_answer(uri)
        self._folders: set[str] = set()

    def read(self, name: str) -> bytes | None:
        """The content of an object; None where there is none."""

        def read() -> bytes | None:
            try:
                with self.file_system.open_input_stream(self._place(name), compression=None) as stream:
                    content: bytes = stream.read()
                    return content
            except FileNotFoundError:
                return None

        return self._try("read", name, read)

    def write(self, name: str, content: bytes) -> None:
        """Replace an object."""

        def write() -> None:
            self._make_folder(name)
            with self.file_system.open_output_stream(self._place(name), compression=None) as stream:
                stream.write(content)

        self._try("write", name, write)

    def upload(self, source: Path, name: str) -> None:
        """Replace an object by a file."""

        def upload() -> None:
            self._make_folder(name)
            with (
                source.open("rb") as file,
                self.file_system.open_output_stream(self._place(name), compression=None) as stream,
            ):
                while chunk := file.read(CHUNK):
                    stream.write(chunk)

        self._try("write", name, upload)

    def download(self, name: str, target: Path) -> bool:
        """Write an object into a file that is put in place whole; False where there is no such object."""
        draft = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.part")

        def download() -> bool:
            try:
                stream = self.file_system.open_input_stream(self._place(name), compression=None)
            except FileNotFoundError:
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            with stream, draft.open("wb") as file:
                while chunk := stream.read(CHUNK):
                    file.write(chunk)
            os.replace(draft, target)
            return True

        try:
            return self._try("read", name, download)
        finally:
            draft.unlink(missing_ok=True)

    def entries(self, folder: str = "") -> dict[str, Entry]:
        """All objects in a folder and below, by name relative to this folder."""
        from pyarrow.fs import FileSelector

        def look() -> dict[str, Entry]:
            place = self._place(folder)
            infos = self.file_system.get_file_info(FileSelector(place, recursive=True, allow_not_found=True))
            start = len(self.path.rstrip("/")) + 1
            return {
                info.path[start:]: Entry(int(info.size or 0), (info.mtime_ns or 0) / 1e9)
                for info in infos
                if info.is_file
            }

        return self._try("list", folder, look)

    def entry(self, name: str) -> Entry | None:
        """One object; None where there is none."""

        def look() -> Entry | None:
            info = self.file_system.get_file_info(self._place(name))
            return Entry(int(info.size or 0), (info.mtime_ns or 0) / 1e9) if info.is_file else None

        return self._try("read", name, look)

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""

        def delete() -> None:
            with contextlib.suppress(FileNotFoundError):
                self.file_system.delete_file(self._place(name))

        self._try("remove", name, delete)

    def delete_all(self, folder: str) -> None:
        """Remove what is in a folder and below."""
        for name in self.entries(folder):
            self.delete(name)

    def _place(self, name: str) -> str:
        return f"{self.path.rstrip('/')}/{name}".rstrip("/")

    def _make_folder(self, name: str) -> None:
        parent = self._place(name).rpartition("/")[0]
        if self.file_system.type_name not in BUCKETS and parent not in self._folders:
            self.file_system.create_dir(parent, recursive=True)
            self._folders.add(parent)

    def _try(self, what: str, name: str, action: Callable[[], T]) -> T:
        import pyarrow

        for delay in (*RETRY_SECONDS, None):
            try:
                return action()
            except (OSError, pyarrow.ArrowException) as error:
                if isinstance(error, OSError) and (error.filename is not None or error.errno in FULL):
                    # The disk of this node; the run directory has words for it.
                    raise
                if delay is None or _is_final(error):
                    place = f"{shown(self.uri)}/{name}".rstrip("/")
                    raise RunDirectoryError(
                        f"cannot {what} {place}: {first_line(error)}; {REMEDY}"
                    ) from error
            time.sleep(delay)
        raise AssertionError


def first_line(error: BaseException) -> str:
    """For messages."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")


def _is_final(error: BaseException) -> bool:
    """Whether the same would come again."""
    text = str(error)
    return isinstance(error, PermissionError) or any(
        sign in text
        for sign in ("ACCESS_DENIED", "HTTP status 403", "NO_SUCH_BUCKET", "SIGNATURE", "NotFound")
    )


def _first_answer(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and its path there, when the storage has answered."""
    _check_endpoint(uri)
    answers: queue.SimpleQueue[tuple[Any, str] | BaseException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            file_system, path = resolve(uri)
            _check_bucket(uri, file_system, path)
            answers.put((file_system, path))
        except BaseException as error:
            answers.put(error)

    # A thread, because a client cannot be stopped; it ends with the process.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise RunDirectoryError(f"{shown(uri)} has not answered in {ANSWER_SECONDS:g} s: {REMEDY}") from None
    if isinstance(answer, RunDirectoryError):
        raise answer
    if isinstance(answer, BaseException):
        raise RunDirectoryError(f"cannot reach {shown(uri)}: {first_line(answer)}; {REMEDY}") from answer
    return answer


def resolve(uri: str) -> tuple[Any, str]:
    """File system and path of a URI: what pyarrow knows (as Ray Train takes it), else what fsspec knows.

    Raises:
        RunDirectoryError: nobody knows its scheme, or a package is missing.
    """
    import pyarrow
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(uri)
    except pyarrow.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
    from fsspec.core import url_to_fs

    try:
        file_system, path = url_to_fs(uri)
    except ImportError as error:
        raise RunDirectoryError(f"cannot reach {shown(uri)}: {first_line(error)}") from error
    except ValueError as error:
        scheme = uri.partition("://")[0]
        raise RunDirectoryError(
            f"runs_dir: neither pyarrow nor fsspec knows {scheme}:// ({shown(uri)}): use s3://, gs://, another of theirs, or a folder"
        ) from error
    return fs.PyFileSystem(fs.FSSpecHandler(file_system)), str(path)


def _check_bucket(uri: str, file_system: Any, path: str) -> None:
    """Refuse a bucket that does not exist, or may not be read; buckets are never made here."""
    from pyarrow.fs import FileSelector, FileType

    if file_system.type_name in BUCKETS:
        bucket = path.partition("/")[0]
        if file_system.get_file_info(bucket).type == FileType.NotFound:
            raise RunDirectoryError(
                f"{shown(uri)}: there is no bucket {bucket!r}: make it, or correct the URI"
            )
    # Whether it may be listed.
    file_system.get_file_info(FileSelector(path, recursive=False, allow_not_found=True))


def _check_endpoint(uri: str) -> None:
    """Ask for a connection before the client does, which would try for long."""
    for given in parse_qs(urlsplit(uri).query).get("endpoint_override", ()):
        address = urlsplit(given if "://" in given else f"//{given}")
        port = address.port
        if address.hostname is None or port is None:
            continue
        connect = partial(socket.create_connection, (address.hostname, port), timeout=CONNECT_SECONDS)
        try:
            connect().close()
        except OSError as error:
            raise RunDirectoryError(
                f"cannot reach {shown(uri)}: nothing answers at {address.hostname}:{port} ({first_line(error)}); start it, or "
                "correct endpoint_override in runs_dir"
            ) from error
