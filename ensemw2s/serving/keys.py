"""API keys from a file that may change while the server runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
from pathlib import Path

from ensemw2s.errors import ConfigError

MIN_LENGTH = 16
_LOG = logging.getLogger(__name__)


class ApiKeys:
    """The keys in a file: one a line, blank lines and lines that begin with ``#`` left out.

    The file is looked at on every check and read again when it has changed, so that keys are added and revoked
    without a restart. Where it cannot be read any more, or holds a line that is no key, nobody is let in until it can.

    Args:
        path: the file.

    Raises:
        ConfigError: it cannot be read, holds no key, or a key that is too short.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._digests: tuple[bytes, ...] = ()
        self._stamp, self._digests = self._read()
        if not self._digests:
            raise ConfigError(
                f"{path} holds no API key: write one a line, at least {MIN_LENGTH} characters each"
            )

    def allows(self, key: str) -> bool:
        """Whether this is one of the keys; takes the same time whichever it is and however wrong."""
        self._refresh()
        digest = _digest(key)
        found = False
        # Every key is compared, so that the time does not tell which one fits.
        for known in self._digests:
            found |= hmac.compare_digest(digest, known)
        return found

    def _refresh(self) -> None:
        try:
            if self._stat() != self._stamp:
                self._stamp, self._digests = self._read()
                _LOG.info("API keys read again: %d", len(self._digests))
        except ConfigError as error:
            if self._digests:
                _LOG.error("no API key is accepted: %s", error)
            self._stamp, self._digests = None, ()

    def _stat(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise ConfigError(f"the API keys in {self._path} cannot be read: {error.strerror}") from error
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[tuple[int, int, int], tuple[bytes, ...]]:
        stamp = self._stat()
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"the API keys in {self._path} cannot be read: {reason}") from error
        digests = []
        for number, line in enumerate(lines, start=1):
            key = line.strip()
            if not key or key.startswith("#"):
                continue
            if len(key) < MIN_LENGTH or not key.isascii() or any(c.isspace() for c in key):
                raise ConfigError(
                    f"{self._path}:{number} is no API key: at least {MIN_LENGTH} ASCII characters without spaces, "
                    "for example from `openssl rand -hex 24`"
                )
            digests.append(_digest(key))
        return stamp, tuple(digests)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
