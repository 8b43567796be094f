"""The bytes that the tokens of a tokenizer stand for.

A fast tokenizer's offsets count characters, and several tokens of one character have the same ones; its ``decode`` turns
bytes that are no whole character into a replacement. Here every id has its bytes, from the tokenizer's own vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ensemw2s.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_PIECE = "\u2581"


def byte_alphabet() -> dict[str, int]:
    """The characters that byte-level BPE writes bytes as (Radford et al. 2019, GPT-2): visible ones stand for themselves, the
    others for characters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + n): b for n, b in enumerate(others)}


class TokenBytes:
    """Bytes by token id.

    Args:
        tokenizer: a fast one, byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM) or SentencePiece (Llama 2, Mistral, Gemma).
        name: of its model, for messages.

    Raises:
        ModelError: it is of another kind, whose tokens do not tell their bytes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self.name = name
        self._backend: Any = tokenizer.backend_tokenizer
        parts = json.loads(self._backend.to_str())
        kinds = {part.get("type") for part in _parts(parts.get("decoder") or parts.get("pre_tokenizer"))}
        spaces = {
            part.get("content")
            for part in _parts(parts.get("decoder"))
            if part.get("type") == "Replace" and part.get("pattern") == {"String": _SPACE_PIECE}
        }
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and "Metaspace" not in kinds and spaces != {" "}:
            raise ModelError(
                f"the tokenizer of {name} is neither byte-level BPE nor SentencePiece, so that the bytes of its tokens are not known: "
                "vote.alignment bytes needs one of these; choose another model, or members of one tokenizer and vote.alignment tokens"
            )
        self._alphabet = byte_alphabet()

    @cached_property
    def table(self) -> list[bytes]:
        """The bytes of every id; none for ids without a token."""
        added = {i: token.content for i, token in self._backend.get_added_tokens_decoder().items()}
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        table = [b""] * (max([*vocabulary.values(), *added], default=-1) + 1)
        for piece, i in vocabulary.items():
            table[i] = self._bytes(piece)
        for i, content in added.items():
            # An added token is found in the text as it is.
            table[i] = content.encode() if self._byte_level else content.replace(_SPACE_PIECE, " ").encode()
        return table

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(V,) how many bytes each has."""
        return np.array([len(own) for own in self.table], dtype=np.int64)

    def join(self, ids: Sequence[int] | npt.NDArray[np.int32]) -> bytes:
        """The bytes of some tokens, one after another."""
        return b"".join([self.table[i] for i in ids])

    def _bytes(self, piece: str) -> bytes:
        if self._byte_level:
            known = [self._alphabet.get(c) for c in piece]
            # A piece that the alphabet cannot write is a word of its own, as for the tokenizer's decoder.
            return piece.encode() if None in known else bytes(b for b in known if b is not None)
        match = _BYTE_PIECE.fullmatch(piece)
        return bytes.fromhex(match[1]) if match else piece.replace(_SPACE_PIECE, " ").encode()


def _parts(described: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """A decoder or pre-tokenizer and, where it is a sequence, what it is made of."""
    if described is None:
        return
    yield described
    for inner in described.get("decoders", described.get("pretokenizers", ())):
        yield from _parts(inner)
