"""What may follow in UTF-8, against Python's own decoder."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.core.utf8 import END, may_follow, unfinished

#: One of them completes every beginning of a character.
ENDINGS = (b"", *(bytes([first]) + b"\x80" * n for first in (0x80, 0x90, 0xA0) for n in range(3)))


def can_become_text(data: bytes) -> bool:
    return any(is_text(data + ending) for ending in ENDINGS)


def is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_every_beginning_of_a_character() -> None:
    """All of one byte, and all of two."""
    beginnings = [b""]
    for size in range(3):
        longer = []
        for tail in [b for b in beginnings if len(b) == size]:
            allowed = may_follow(tail)
            for byte in range(256):
                text = tail + bytes([byte])
                assert allowed[byte] == can_become_text(text), text
                if allowed[byte] and not is_text(text):
                    longer.append(text)
            assert allowed[END] == (tail == b"")
        beginnings += longer
    assert {len(b) for b in beginnings} == {0, 1, 2, 3}


@given(st.text(), st.text(max_size=1))
def test_the_unfinished_end(before: str, last: str) -> None:
    whole, character = before.encode(), last.encode()
    assert unfinished(whole + character) == b""
    for size in range(1, len(character)):
        assert unfinished(whole + character[:size]) == character[:size]


@given(st.integers(0, 2**32 - 1))
def test_whatever_is_allowed_gives_text(seed: int) -> None:
    rng, text = np.random.default_rng(seed), b""
    while True:
        symbol = int(rng.choice(np.flatnonzero(may_follow(unfinished(text)))))
        if symbol == END or (len(text) > 40 and not unfinished(text)):
            break
        text += bytes([symbol])
    assert text.decode().encode() == text
