"""Texts that several tokenizers cut in their own ways, cut where all of them do: into segments.

A segment's log-probability is the sum of its tokens': by the chain rule that of its bytes, given that the text before and in
it is cut as the tokenizer cuts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ensemw2s.core._checks import BoolArray, FloatArray, IntArray, as_flags, as_offsets
from ensemw2s.core._parts import row_sums
from ensemw2s.core.draws import RoundDraw


@dataclass(frozen=True, eq=False)
class Segments:
    """The segments of n texts for R readers (tokenizers). Make it with `Segments.build`.

    Attributes:
        offsets: (n + 1,) int64, where each text's segments start.
        ends: (n_segments,) int64, where each segment ends, in bytes from the start of the first text.
        starts: by reader, (n_segments + 1,) int64: the first of its tokens in each segment.
    """

    offsets: IntArray
    ends: IntArray
    starts: tuple[IntArray, ...]

    @classmethod
    def build(cls, lengths: Sequence[ArrayLike], token_offsets: Sequence[ArrayLike]) -> Segments:
        """Cut every text where the tokens of all readers end.

        Args:
            lengths: by reader, (n_tokens,) bytes of each of its tokens, at least 1, text after text.
            token_offsets: by reader, (n + 1,) where each text's tokens start.

        Raises:
            ValueError: no reader, empty texts or tokens, or readers whose tokens of a text have different lengths in all.
        """
        if len(lengths) == 0 or len(lengths) != len(token_offsets):
            raise ValueError(f"got lengths of {len(lengths)} readers and offsets of {len(token_offsets)}")
        token_ends, text_ends = [], []
        for own, offsets in zip(lengths, token_offsets, strict=True):
            sizes = np.asarray(own)
            bounds = as_offsets(offsets, sizes.size, "token_offsets")
            if sizes.dtype.kind not in "iu" or sizes.min() < 1:
                raise ValueError("lengths must be integers of at least 1: every token has a byte")
            token_ends.append(np.cumsum(sizes, dtype=np.int64))
            text_ends.append(token_ends[-1][bounds[1:] - 1])
        if any(not np.array_equal(other, text_ends[0]) for other in text_ends[1:]):
            raise ValueError("the readers' tokens must have the same bytes in every text")
        ends = reduce(lambda a, b: np.intersect1d(a, b, assume_unique=True), token_ends)
        return cls(
            _from_zero(np.searchsorted(ends, text_ends[0], side="right")),
            ends,
            tuple(_from_zero(np.searchsorted(own, ends, side="right")) for own in token_ends),
        )

    def sums(self, reader: int, values: ArrayLike) -> NDArray[np.float32]:
        """(n_segments,) float32: sums of a reader's (n_tokens,) values, in float64."""
        tokens = np.asarray(values, dtype=np.float64)
        self._check(reader, tokens.shape)
        sums: FloatArray = np.add.reduceat(tokens, self.starts[reader][:-1])
        return sums.astype(np.float32)

    def all_of(self, reader: int, flags: ArrayLike) -> BoolArray:
        """(n_segments,) bool: whether all of a reader's (n_tokens,) flags in a segment are set."""
        tokens = as_flags(flags, int(self.starts[reader][-1]), "flags")
        every: BoolArray = np.logical_and.reduceat(tokens, self.starts[reader][:-1])
        return every

    def draw_of(self, reader: int, draw: RoundDraw) -> RoundDraw:
        """A draw over segments as one over a reader's tokens: each has the whole weight of its segment.

        The denominators grow as the weights of their rows do, so that the loss stays a weighted mean over tokens.

        Args:
            reader: which.
            draw: rows are texts, tokens are segments.
        """
        n_tokens = np.diff(self.starts[reader])
        bounds = draw.row_offsets
        drawn = _ranges(self.offsets[draw.rows], np.diff(bounds))
        counts = n_tokens[drawn]
        weights = np.repeat(draw.loss_weights, counts)
        row_offsets = _from_zero(np.add.reduceat(counts, bounds[:-1]).cumsum())
        before = row_sums(draw.loss_weights, bounds)
        after = row_sums(weights, row_offsets)
        grown = np.divide(after, before, out=np.ones_like(before), where=before > 0.0)
        return RoundDraw(
            draw.rows,
            row_offsets,
            weights,
            draw.denominators * grown,
            int(n_tokens.sum()),
            None if draw.outside is None else np.packbits(np.repeat(draw.out_of_bag, n_tokens)),
        )

    def _check(self, reader: int, shape: tuple[int, ...]) -> None:
        if shape != (int(self.starts[reader][-1]),):
            raise ValueError(
                f"reader {reader} has {int(self.starts[reader][-1])} tokens, got values of shape {shape}"
            )


def _from_zero(values: ArrayLike) -> IntArray:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.asarray(values, dtype=np.int64)))


def _ranges(begins: IntArray, lengths: IntArray) -> IntArray:
    """``begins[i], begins[i] + 1, ...``, ``lengths[i]`` of them, one range after another."""
    shifts = begins - (np.cumsum(lengths) - lengths)
    places: IntArray = np.repeat(shifts, lengths) + np.arange(int(lengths.sum()), dtype=np.int64)
    return places
