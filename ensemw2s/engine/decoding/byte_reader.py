"""A tokenizer as a reader of bytes: the tokens that it gives for a text that grows by bytes, and those that may go on from it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ensemw2s.core.utf8 import unfinished
from ensemw2s.data.token_bytes import TokenBytes
from ensemw2s.errors import ModelError

Piece = tuple[int, int]
"""a token's id, and the bytes that it stands for"""


class ByteReader:
    """One tokenizer.

    Args:
        tokenizer: a fast one.
        known: the bytes of its tokens.
        ends: ids that end a text.
        vocab_size: ids that the model has.
    """

    def __init__(self, tokenizer: Any, known: TokenBytes, ends: Collection[int], vocab_size: int) -> None:
        self._tokenizer, self._known = tokenizer, known
        self.ends = np.array(sorted(e for e in ends if e < vocab_size), dtype=np.int64)
        silent = {*tokenizer.all_special_ids, *ends}
        spoken = [i for i, b in enumerate(known.table[:vocab_size]) if b and i not in silent]
        spoken.sort(key=lambda i: (known.table[i], i))
        self.order = np.array(spoken, dtype=np.int64)
        """ids of the tokens that say something, by their bytes"""
        self._sorted = [known.table[i] for i in spoken]
        self.place = np.full(max(vocab_size, len(known.table)), -1, dtype=np.int64)
        self.place[self.order] = np.arange(len(spoken))
        self.after = lru_cache(maxsize=65536)(self._after)

    def _after(self, rest: bytes) -> tuple[int, np.ndarray, np.ndarray] | None:
        """The tokens, by their place in ``order``, that begin with some bytes and go on.

        Returns:
            one behind the last of them, where those of each next byte start, and these bytes, ascending; None where there are none.
        """
        bounds = [self._first(rest + bytes([b])) for b in range(256)]
        bounds.append(self._end(rest))
        edges = np.array(bounds, dtype=np.int64)
        found = np.flatnonzero(np.diff(edges))
        return None if len(found) == 0 else (bounds[-1], edges[found], found)

    def has(self, rest: bytes) -> bool:
        """Whether a token begins with these bytes, or is them."""
        return self._first(rest) < self._end(rest)

    def _first(self, prefix: bytes) -> int:
        return bisect_left(self._sorted, prefix)

    def _end(self, prefix: bytes) -> int:
        """One behind the last token that begins with a prefix."""
        trimmed = prefix.rstrip(b"\xff")
        if not trimmed:
            return len(self._sorted)
        return self._first(trimmed[:-1] + bytes([trimmed[-1] + 1]))

    def tokens(self, context: str, answer: bytes) -> list[Piece]:
        """What the tokenizer gives for the answer behind the context: tokens, each with how many bytes it stands for.

        Where a token would begin in the context, and in an unfinished character, the bytes are written with the longest tokens that
        fit, and so is an answer that the tokenizer changes (a normalizer).
        """
        tail = unfinished(answer)
        whole = answer[: len(answer) - len(tail)]
        encoded = self._tokenizer(context + whole.decode(), add_special_tokens=False, verbose=False)
        ids, table = encoded["input_ids"], self._known.table
        begin, left = len(ids), len(whole)
        while begin > 0 and left >= len(table[ids[begin - 1]]):
            begin -= 1
            left -= len(table[ids[begin]])
        own = [(i, len(table[i])) for i in ids[begin:]]
        if b"".join([table[i] for i, _ in own]) != whole[left:]:
            return self._pieces(answer)
        return [*self._pieces(whole[:left]), *own, *self._pieces(tail)]

    def _pieces(self, text: bytes) -> list[Piece]:
        found: list[Piece] = []
        while text:
            size = next((n for n in range(min(len(text), self._longest), 0, -1) if text[:n] in self._ids), 0)
            if size == 0 and self._tokenizer.unk_token_id is None:
                raise ModelError(
                    f"the tokenizer of {self._known.name} has no token for the byte {text[0]:#04x}"
                )
            found.append((self._ids[text[:size]], size) if size else (int(self._tokenizer.unk_token_id), 1))
            text = text[max(size, 1) :]
        return found

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {own: int(i) for i, own in zip(self.order[::-1], self._sorted[::-1], strict=True)}

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._sorted), default=0)
