"""Splits of an ensemble whose members have different tokenizers: cut where the tokens of all of them end (``vote.alignment bytes``).

A segment stands where elsewhere a token does: it has a weight, is missed or not, and has a log-probability, the sum of its
tokens'. It is missed when any of its tokens is. End-of-text is a segment of its own, whichever id says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ensemw2s.config import DataConfig
from ensemw2s.core.draws import RoundDraw
from ensemw2s.core.segments import Segments
from ensemw2s.data.encoding import Encoder
from ensemw2s.data.fingerprint import tokenizer_fingerprint
from ensemw2s.data.samples import Sample
from ensemw2s.data.token_bytes import TokenBytes
from ensemw2s.engine.encoded import EncodedSplit, EncodedSplits, Head, make_encoder
from ensemw2s.engine.tasks import TokenScores
from ensemw2s.errors import DataError


class Readers:
    """The tokenizers of some weak models, each once.

    Args:
        data: how texts become tokens.
        models: tokenizer and display name of each weak model.
        classes: of classification heads; their targets are classes, whatever the tokenizer.

    Attributes:
        of: by weak model, the place of its tokenizer among those that differ.
        tokenizers: that differ, the first model's first.
    """

    def __init__(
        self, data: DataConfig, models: Sequence[tuple[Any, str]], classes: tuple[str, ...] | None = None
    ) -> None:
        prints = [tokenizer_fingerprint(tokenizer) for tokenizer, _ in models]
        different = list(dict.fromkeys(prints))
        self.of = [different.index(p) for p in prints]
        first = [models[prints.index(p)] for p in different]
        self.tokenizers = [tokenizer for tokenizer, _ in first]
        self.encoders = [make_encoder(data, t, classes=classes) for t in self.tokenizers]
        self._bytes = None if classes is not None else [TokenBytes(t, name) for t, name in first]

    def encode(self, samples: list[Sample]) -> AlignedSplit:
        """Some samples, cut where all tokenizers cut them.

        Raises:
            DataError: a tokenizer does not give an answer back byte for byte.
        """
        splits = [
            EncodedSplit(samples, encoder, int(tokenizer.eos_token_id))
            for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True)
        ]
        if self._bytes is not None:
            for split, encoder, known in zip(splits, self.encoders, self._bytes, strict=True):
                _check_answers(split, encoder, known)
        contexts = [self.encoders[0].texts(sample)[0] for sample in samples]
        return AlignedSplit(splits, self._bytes, self.of, contexts)


def _check_answers(split: EncodedSplit, encoder: Encoder, known: TokenBytes) -> None:
    """Raise DataError for a continuation whose tokens are not its bytes."""
    for sample, encoded in zip(split.samples, split.encoded, strict=True):
        for text, ids in zip(encoder.texts(sample)[1], encoded.continuations, strict=True):
            found = known.join(ids)
            if found != text.encode():
                raise DataError(
                    f"the tokenizer of {known.name} does not give back the answer {text!r} of sample {sample.id!r} but "
                    f"{found.decode(errors='replace')!r}: it changes texts (case, accents, spaces), or joins the answer's beginning "
                    "with the prompt's end; vote.alignment bytes needs every byte: reword the answer, end data.prompt without a line "
                    "break, or choose another model"
                )


class AlignedSplit(EncodedSplit):
    """One split in segments; ``encoded`` is in the tokens of the first weak model. Made by :class:`Readers`.

    Args:
        splits: the split in the tokens of each tokenizer.
        known: their bytes; None for classes, each of which is a segment.
        of: by weak model, its tokenizer's place.
        contexts: the text of each sample's prompt.
    """

    def __init__(
        self,
        splits: list[EncodedSplit],
        known: list[TokenBytes] | None,
        of: Sequence[int],
        contexts: list[str],
    ) -> None:
        self.samples, self.encoded = splits[0].samples, splits[0].encoded
        self._splits, self._known, self._of, self.contexts = splits, known, of, contexts

    def of_member(self, index: int) -> EncodedSplit:
        return self._splits[self._of[index]]

    def target_scores(self, index: int, scores: TokenScores) -> TokenScores:
        return self._merge(self._target_segments, index, scores)

    def choice_scores(self, index: int, scores: TokenScores) -> TokenScores:
        return self._merge(self._choice_segments, index, scores)

    def draw_of(self, index: int, draw: RoundDraw) -> RoundDraw:
        return self._target_segments.draw_of(self._of[index], draw)

    def first_tokens(self, sample: int, start: int, stop: int) -> tuple[int, int]:
        first = self.target_offsets[sample]
        begin, end = self._target_segments.starts[0][[first + start, first + stop]]
        offset = self._splits[0].target_offsets[sample]
        return int(begin - offset), int(end - offset)

    @cached_property
    def targets(self) -> list[np.ndarray]:
        """Per sample its segments, the last of which is end-of-text, numbered: the same text has the same number; int32 (m_i,)."""
        segments, flat = self._target_segments, np.concatenate(self._splits[0].targets)
        name = tuple if self._known is None else self._known[0].join
        ends = set() if self._known is None else set((segments.offsets[1:] - 1).tolist())
        numbers: dict[Any, int] = {}
        starts = segments.starts[0].tolist()
        named = [
            numbers.setdefault(None if i in ends else name(flat[begin:end]), len(numbers))
            for i, (begin, end) in enumerate(pairwise(starts))
        ]
        return np.split(np.array(named, dtype=np.int32), segments.offsets[1:-1])

    @cached_property
    def choice_token_offsets(self) -> np.ndarray:
        """(total choices + 1,) int64: where each choice's segments start."""
        return self._choice_segments.offsets

    @cached_property
    def _target_segments(self) -> Segments:
        """A text is a sample's right answer; end-of-text, where there is one, is a byte of its own behind it."""
        offsets = [split.target_offsets for split in self._splits]
        lengths = [self._lengths(r, np.concatenate(split.targets)) for r, split in enumerate(self._splits)]
        if self._known is not None:
            for own, bounds in zip(lengths, offsets, strict=True):
                own[bounds[1:] - 1] = 1
        return Segments.build(lengths, offsets)

    @cached_property
    def _choice_segments(self) -> Segments:
        """A text is a choice."""
        flat = [np.concatenate([c for e in split.encoded for c in e.continuations]) for split in self._splits]
        lengths = [self._lengths(r, ids) for r, ids in enumerate(flat)]
        return Segments.build(lengths, [split.choice_token_offsets for split in self._splits])

    def _lengths(self, reader: int, ids: np.ndarray) -> np.ndarray:
        """(n,) int64 bytes of tokens."""
        return np.ones(len(ids), dtype=np.int64) if self._known is None else self._known[reader].lengths[ids]

    def _merge(self, segments: Segments, index: int, scores: TokenScores) -> TokenScores:
        reader = self._of[index]
        return TokenScores(
            segments.sums(reader, scores.logprobs), segments.all_of(reader, scores.hits), scores.cost
        )


class AlignedSplits(EncodedSplits):
    """The splits in ``run_dir/splits`` for weak models of several tokenizers.

    Args:
        run_dir: the run directory.
        data: how texts become tokens.
        models: tokenizer and display name of each weak model.
        head: of all of them.
    """

    def __init__(
        self, run_dir: Path, data: DataConfig, models: Sequence[tuple[Any, str]], head: Head
    ) -> None:
        super().__init__(run_dir, data, models[0][0], head)
        self._readers = Readers(data, models, self.encoder.classes)

    def encode(self, samples: list[Sample]) -> AlignedSplit:
        return self._readers.encode(samples)
