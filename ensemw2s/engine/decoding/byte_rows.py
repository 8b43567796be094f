"""One member's side of a vote on bytes: texts that grow by a byte a step, and what the member expects next.

The bytes of an answer so far are read as the tokenizer itself cuts them. What may come next are all ways to go on: behind the
last token, or with a token that began earlier and reaches further. With w_1 .. w_k the tokens of the answer so far, r_j the
bytes from the end of w_j on, and P the member's next-token distribution,

    P(b | answer)  ~  sum over j of  P(w_1 .. w_j)  *  sum over tokens v that begin with r_j b of  P(v | w_1 .. w_j)

This is the sum over covers of Phan et al. 2024 (arXiv 2410.09303, section 3) and Vieira et al. 2024 (arXiv 2412.03719), with those
covers alone whose tokens but the last are the tokenizer's for the text so far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import numpy as np

from ensemw2s.core.utf8 import END, SYMBOLS, may_follow, unfinished
from ensemw2s.engine.decoding.byte_reader import ByteReader, Piece
from ensemw2s.errors import ModelError
from ensemw2s.models.decoding import StepDecoder

#: Stands for a probability that float32 rounds to 0.
LEAST = 1e-45


@dataclass(frozen=True, eq=False)
class BytePrompt:
    """A text to go on from.

    Attributes:
        ids: (p,) the member's own token ids of the prompt.
        context: its text.
        answer: bytes that follow it already.
    """

    ids: np.ndarray
    context: str
    answer: bytes = b""


@dataclass(frozen=True, eq=False)
class ByteStep:
    """What a member is to do in one step.

    Attributes:
        session: name of the batch.
        prompts: the texts of a new batch; none goes on with the one that is there.
        keep: rows that go on, in their new order, (B,); None where all do.
        symbols: (B,) the byte that each of them is longer by.
    """

    session: str
    prompts: tuple[BytePrompt, ...]
    keep: np.ndarray | None
    symbols: np.ndarray


@dataclass(frozen=True, eq=False)
class ByteReply:
    """What a member expects next: (B, 257) float32 probabilities of bytes and the end; and the tokens that it read for it."""

    probs: np.ndarray
    forwarded: int


@dataclass(frozen=True, eq=False)
class Heard:
    """A next-token distribution: (n,) float32 of the reader's tokens in their order, and the probability of the end."""

    spoken: np.ndarray
    end: float


@dataclass
class _Row:
    """One text: its tokens w_1 .. w_k; what was heard at the positions 0..k (None where no token reaches on), and the
    log-probability of each token."""

    context: str
    answer: bytes
    tokens: list[Piece] = field(default_factory=list)
    heard: list[Heard | None] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class ByteRows:
    """Texts that a member goes on from together, each of as many bytes as the others.

    Args:
        decoder: of the member's model, without rows.
        reader: of its tokenizer.
        prompts: the texts.

    Raises:
        ModelError: a text that is longer than the context, or a model whose cache cannot take tokens back.
    """

    def __init__(self, decoder: StepDecoder, reader: ByteReader, prompts: Sequence[BytePrompt]) -> None:
        if not decoder.can_enter:
            raise ModelError(
                "vote.alignment bytes takes tokens back as the text grows, and the cache of a member (a recurrent state, or one that "
                "layers share) cannot: choose another model, or ask for choices"
            )
        self._decoder, self._reader = decoder, reader
        self._rows = [_Row(p.context, p.answer) for p in prompts]
        self.forwarded = sum(len(p.ids) for p in prompts)
        """tokens read so far"""
        decoder.start([p.ids for p in prompts])
        for row, probs in zip(self._rows, decoder.full(np.arange(len(prompts))), strict=True):
            row.heard.append(self._hear(probs))
        if prompts[0].answer:
            self._follow()

    def step(self, keep: np.ndarray | None, symbols: np.ndarray) -> None:
        """Go on with these rows, in this order (None: all), each longer by a byte, (B,)."""
        self._decoder.settle()
        if keep is not None:
            self._decoder.keep(keep)
            self._rows = [self._rows[int(i)] for i in keep]
        for row, symbol in zip(self._rows, symbols, strict=True):
            row.answer += bytes([int(symbol)])
        self._follow()

    def next_symbols(self) -> np.ndarray:
        """(B, 257) float64: the probability of each byte and, last, of the end, among those that keep the text UTF-8."""
        return np.stack([self._next(row) for row in self._rows])

    def _follow(self) -> None:
        """Read what the tokens of the longer texts have changed."""
        tails, taken = [], []
        for row in self._rows:
            new = self._reader.tokens(row.context, row.answer)
            pairs = zip(row.tokens, new, strict=False)
            kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            # Something is read in every row; where nothing was kept of a distribution, the token before it is read again.
            kept = min(kept, len(new) - 1)
            while row.heard[kept] is None:
                kept -= 1
            taken.append(len(row.tokens) - kept)
            tails.append(new[kept:])
            del row.tokens[kept:], row.logprobs[kept:], row.heard[kept + 1 :]
        self._decoder.take_back(np.array(taken, dtype=np.int64))
        fed = np.full((len(tails), max(map(len, tails))), -1, dtype=np.int64)
        for i, tail in enumerate(tails):
            fed[i, : len(tail)] = [token for token, _ in tail]
        self._decoder.advance(fed[:, 0], fed[:, 1:])
        self.forwarded += sum(map(len, tails))
        heard = iter(self._decoder.full(np.arange(int(self._decoder.counts.sum()))))
        for row, tail in zip(self._rows, tails, strict=True):
            for token, probs in zip(tail, heard, strict=False):
                row.logprobs.append(self._logprob(row.heard[-1], token[0]))
                row.tokens.append(token)
                row.heard.append(self._hear(probs))

    def _hear(self, probs: np.ndarray) -> Heard:
        return Heard(probs[self._reader.order], float(probs[self._reader.ends].sum(dtype=np.float64)))

    def _logprob(self, heard: Heard | None, token: int) -> float:
        place = self._reader.place[token]
        spoken = 0.0 if heard is None or place < 0 else float(heard.spoken[place])
        return float(np.log(max(spoken, LEAST)))

    def _next(self, row: _Row) -> np.ndarray:
        sums: list[tuple[float, np.ndarray, np.ndarray]] = []
        so_far, rest = 0.0, row.answer
        for j, heard in enumerate(row.heard):
            if heard is not None:
                found = self._reader.after(rest)
                if found is not None:
                    stop, starts, symbols = found
                    own = np.add.reduceat(
                        heard.spoken[starts[0] : stop].astype(np.float64), starts - starts[0]
                    )
                    sums.append((so_far, symbols, own))
                if not rest:
                    sums.append((so_far, np.array([END]), np.array([heard.end])))
                elif j > 0 and not self._reader.has(rest):
                    row.heard[j] = None
            if j < len(row.tokens):
                so_far += row.logprobs[j]
                rest = rest[row.tokens[j][1] :]
        allowed = may_follow(unfinished(row.answer))
        # Only ratios count: the largest part is scaled to 1, so that none that matters is rounded to 0.
        with np.errstate(divide="ignore"):
            scale = max(
                (weight + float(np.log(own[allowed[symbols]].sum())) for weight, symbols, own in sums)
            )
        if not np.isfinite(scale):
            raise ModelError("a member gives no probability to any byte that can come next")
        total = np.zeros(SYMBOLS)
        for weight, symbols, own in sums:
            total[symbols] += own * np.exp(np.minimum(weight - scale, 700.0))
        total[~allowed] = 0.0
        total /= total.sum()
        return total
