"""Text while it grows: characters whole, stop strings held back, pieces that join to the text of all tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from ensemw2s.engine.decoding.text import REPLACEMENT, AnswerText, TextStream, beginnings


def as_bytes(tokens: list[int]) -> str:
    """A token is a byte; 256 is special and has no text."""
    return bytes(t for t in tokens if t < 256).decode("utf-8", errors="replace")


@pytest.fixture(scope="module")
def byte_fallback() -> Any:
    """As in SentencePiece vocabularies: pieces that begin with a space, and bytes for what has no piece."""
    vocab = {"<unk>": 0, "▁a": 1, "▁bc": 2, "d": 3, **{f"<0x{b:02X}>": 4 + b for b in range(256)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def pieces(tokens: list[int], decode: Any = as_bytes) -> list[str]:
    stream = TextStream(decode)
    return [*(stream.push(t) for t in tokens), stream.flush()]


@settings(max_examples=200)
@given(text=st.text(alphabet="aé€😀 \n\ufffd", max_size=12))
def test_characters_come_whole(text: str) -> None:
    parts = pieces(list(text.encode()))
    assert "".join(parts) == text
    assert REPLACEMENT in text or not any(REPLACEMENT in p for p in parts)
    # No character is held longer than its bytes, but for those that look unfinished.
    if REPLACEMENT not in text:
        assert parts[-1] == ""
        assert sum(bool(p) for p in parts) == len(text)


@settings(max_examples=200)
@given(tokens=st.lists(st.sampled_from([0x61, 0xE2, 0x82, 0xAC, 0xF0, 0xFF, 0x0A, 256]), max_size=12))
def test_any_bytes_join_to_the_text_of_all_tokens(tokens: list[int]) -> None:
    assert "".join(pieces(tokens)) == as_bytes(tokens)


def test_spaces_at_the_beginning_of_pieces(byte_fallback: Any) -> None:
    euro = [4 + b for b in "€".encode()]
    tokens = [1, 2, 3, *euro, 1, *euro]
    parts = pieces(tokens, byte_fallback.decode)
    assert parts == ["a", " bc", "d", "", "", "€", " a", "", "", "€", ""]
    assert "".join(parts) == byte_fallback.decode(tokens)


def test_where_each_tokens_text_begins(byte_fallback: Any) -> None:
    euro = [4 + b for b in "€".encode()]
    # "a bcd€ a€"
    expected = [0, 1, 4, 5, 5, 5, 6, 8, 8, 8]
    tokens = [1, 2, 3, *euro, 1, *euro]
    assert beginnings(byte_fallback.decode, tokens) == expected
    text, found = AnswerText(byte_fallback.decode, ("€ a",)), []
    for token in tokens[:7]:
        found.append(text.length)
        text.push(token)
    # What is held back counts, and so does the stop string.
    assert (found, text.length, text.stopped) == (expected[:7], 8, True)


def answer(tokens: list[int], stop: tuple[str, ...], **more: Any) -> tuple[list[str], bool]:
    text = AnswerText(as_bytes, stop, **more)
    parts = []
    for token in tokens:
        parts.append(text.push(token))
        if text.stopped:
            return parts, True
    return [*parts, text.finish()], text.stopped


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    parts, stopped = answer(list(b"ab--c-->d"), ("-->",))
    assert parts == ["a", "b", "", "", "--c", "", "", ""]
    assert stopped


def test_what_only_began_like_a_stop_string_is_shown_at_the_end() -> None:
    assert answer(list(b"ab--"), ("-->",)) == (["a", "b", "", "", "--"], False)


def test_the_first_of_several_stop_strings_cuts() -> None:
    parts, stopped = answer(list(b"xy#END"), ("END", "#E", "y#EN"))
    assert ("".join(parts), stopped) == ("xy", True)  # "#E" is complete first


def test_stop_strings_behind_the_first_visible_character() -> None:
    assert answer(list(b"\n\n hi\nyou"), ("\n",), after_text=True)[0] == ["\n", "\n", " ", "h", "i", ""]
    assert answer(list(b"\n\n"), ("\n",), after_text=True) == (["\n", "\n", ""], False)
    assert answer(list(b"\nhi"), ("\n",)) == ([""], True)


def test_a_stop_string_in_front_of_an_unfinished_character() -> None:
    """One token that ends the line and begins a character: the end is seen at once."""

    def decode(tokens: list[int]) -> str:
        return b"".join([b"a", b"\n\xe2", b"\x82\xac"][t] for t in tokens).decode("utf-8", errors="replace")

    text = AnswerText(decode, ("\n",))
    assert [text.push(0), text.push(1), text.stopped] == ["a", "", True]


@settings(max_examples=300)
@given(
    text=st.text(alphabet="abc€\n", max_size=14),
    stop=st.lists(st.text(alphabet="abc€\n", min_size=1, max_size=4), max_size=3),
    after_text=st.booleans(),
)
def test_shown_text_is_the_text_before_the_first_complete_stop_string(
    text: str, stop: list[str], after_text: bool
) -> None:
    """Against a search from the beginning after every character."""
    parts, stopped = answer(list(text.encode()), tuple(stop), after_text=after_text)
    expected, ended = text, False
    for n in range(1, len(text) + 1):
        origin = len(text[:n]) - len(text[:n].lstrip()) if after_text else 0
        found = [text[:n].find(s, origin) for s in stop]
        if any(i >= 0 for i in found):
            expected, ended = text[: min(i for i in found if i >= 0)], True
            break
    assert ("".join(parts), stopped) == (expected, ended)
