"""Which bytes may follow in a UTF-8 text (The Unicode Standard, table 3-7), with the end of the text as one more symbol."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ensemw2s.core._checks import BoolArray

#: The symbol behind the 256 bytes: the text ends.
END = 256
SYMBOLS = 257
#: Second bytes that are narrower than 80..BF, by first byte.
_SECOND = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}


def unfinished(text: bytes) -> bytes:
    """The bytes at the end of a text that are the beginning of a character; none where it ends in a whole one.

    Args:
        text: what may become UTF-8 with more bytes.
    """
    for size in range(1, min(3, len(text)) + 1):
        byte = text[-size]
        if byte >= 0xC0:
            return text[-size:] if size < _length(byte) else b""
        if byte < 0x80:
            return b""
    return b""


@lru_cache(maxsize=4096)
def may_follow(tail: bytes) -> BoolArray:
    """(257,) bool: the bytes that may come next, and last whether the text may end.

    Args:
        tail: the bytes of an unfinished character, as :func:`unfinished` gives them.
    """
    allowed = np.zeros(SYMBOLS, dtype=np.bool_)
    if not tail:
        allowed[:0x80] = allowed[0xC2:0xF5] = allowed[END] = True
        return allowed
    low, high = _SECOND.get(tail[0], (0x80, 0xBF)) if len(tail) == 1 else (0x80, 0xBF)
    allowed[low : high + 1] = True
    return allowed


def _length(first: int) -> int:
    """Bytes of a character, by the first of them."""
    return 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def is_text(value: str) -> bool:
    """Whether a string can be written: Python's may hold half of a surrogate pair, from JSON or a byte of another encoding."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
