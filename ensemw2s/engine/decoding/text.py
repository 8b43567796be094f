"""Text of an answer while it grows: whole characters only, nothing that may turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

#: What decoders put for bytes that are no character, or not yet one.
REPLACEMENT = "\ufffd"

Decode = Callable[[list[int]], str]


class TextStream:
    """Turns tokens into text as they come.

    A token may hold a part of a character, and a tokenizer may write a token differently at the beginning of a text.
    So each piece is the difference between the text of a short window of tokens with and without the new ones, and
    it is held while it ends in what may be an unfinished character. The pieces joined are the text of all tokens
    (for tokenizers that never take back what they wrote).
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._before_text = ""
        self._held: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The text that has become final with this token, possibly none."""
        self._held.append(token)
        piece = self._piece()
        if not piece.endswith(REPLACEMENT):
            return self._release(piece)
        whole, given = piece.rstrip(REPLACEMENT), self._given
        self._given = max(given, len(whole))
        return whole[given:]

    def flush(self) -> str:
        """What was held, as it is: the text ends here."""
        return self._release(self._piece()) if self._held else ""

    def _piece(self) -> str:
        text = self._decode(self._before + self._held)
        if text.startswith(self._before_text):
            return text[len(self._before_text) :]
        return self._decode(self._held)

    def _release(self, piece: str) -> str:
        # Tokens without text (special ones) say nothing about how the next one is written.
        if piece:
            self._before, self._before_text = self._held, self._decode(self._held)
        given, self._given, self._held = self._given, 0, []
        return piece[given:]


def beginnings(decode: Decode, tokens: Sequence[int]) -> list[int]:
    """Characters before the text of each token; tokens that share a character begin with it."""
    stream, length, begins = TextStream(decode), 0, []
    for token in tokens:
        begins.append(length)
        length += len(stream.push(token))
    return begins


class AnswerText:
    """The answer that can be shown: what a text stream gives, cut at the first stop string.

    Args:
        decode: token ids to text, special tokens left out.
        stop: strings that end the answer.
        after_text: look for them only behind the first visible character.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = (), *, after_text: bool = False) -> None:
        self._stream = TextStream(decode)
        self._stop = tuple(stop)
        self._origin: int | None = None if after_text else 0
        self._text = ""
        self._shown = 0
        self.stopped = False

    @property
    def length(self) -> int:
        """Characters so far, held back ones and a stop string included: where the next token's text begins."""
        return len(self._text)

    def push(self, token: int) -> str:
        """What can be shown with this token; sets `stopped` where a stop string is complete."""
        return self._add(self._stream.push(token))

    def finish(self) -> str:
        """The rest, as the answer ends for another reason than a stop string."""
        piece = self._add(self._stream.flush())
        if self.stopped:
            return piece
        rest, self._shown = self._text[self._shown :], len(self._text)
        return piece + rest

    def _add(self, piece: str) -> str:
        if self.stopped or not piece:
            return ""
        self._text += piece
        begin, self._shown = self._shown, len(self._text) - self._unsure(piece)
        return self._text[begin : self._shown]

    def _unsure(self, piece: str) -> int:
        """Characters at the end that are held back: the stop string and all behind it, or what may become one."""
        if not self._stop:
            return 0
        if self._origin is None:
            blank = len(self._text) - len(self._text.lstrip())
            if blank == len(self._text):
                return 0
            self._origin = blank
        longest = max(len(s) for s in self._stop)
        begin = max(self._origin, self._shown, len(self._text) - len(piece) - longest + 1)
        found = [i for i in (self._text.find(s, begin) for s in self._stop) if i >= 0]
        if found:
            self.stopped = True
            return len(self._text) - min(found)
        for size in range(min(longest - 1, len(self._text) - begin), 0, -1):
            if any(s.startswith(self._text[-size:]) for s in self._stop):
                return size
        return 0
