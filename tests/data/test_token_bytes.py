"""The bytes of tokens: any text comes back from its ids, whatever its characters."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ensemw2s.data.token_bytes import TokenBytes, byte_alphabet
from ensemw2s.errors import ModelError

CORPUS = [
    "the ant in the barn buzzes",
    "naïve cafés — 東京 и Москва",
    "x = {'a': 1}\n\n\treturn x",
    "🙂🙃 emoji",
]


def byte_level(vocab_size: int = 300, decoder: bool = True) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if decoder:
        inner.decoder = decoders.Sequence([decoders.ByteLevel()])
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS * 3, trainer)
    inner.add_tokens([AddedToken("    ", normalized=False), AddedToken("<é>", normalized=False)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def sentencepiece(metaspace: bool) -> PreTrainedTokenizerFast:
    """As of Llama 2: spaces are a character of their own, unknown characters are pieces of a byte."""
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<unk>", "<s>", "</s>", *bytes_], show_progress=False
    )
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.train_from_iterator(CORPUS[:1] * 3, trainer)
    made: Any = Tokenizer(
        models.BPE(
            vocab=inner.get_vocab(),
            merges=[tuple(m) for m in json.loads(inner.to_str())["model"]["merges"]],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    if metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        made.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
        )
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        made.decoder = decoders.Sequence(
            [
                decoders.Replace("▁", " "),
                decoders.ByteFallback(),
                decoders.Fuse(),
                decoders.Strip(content=" ", left=1),
            ]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


BYTE_LEVEL = [byte_level(), byte_level(420, decoder=False)]
KNOWN = [TokenBytes(t, "m") for t in BYTE_LEVEL]
SENTENCEPIECE = [sentencepiece(metaspace=m) for m in (True, False)]


def test_the_alphabet_is_that_of_the_library() -> None:
    assert set(byte_alphabet()) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    for tokenizer, known in zip(BYTE_LEVEL, KNOWN, strict=True):
        found = ids(tokenizer, text)
        assert known.join(found) == text.encode()
        assert sum(known.lengths[found]) == len(text.encode())


@pytest.mark.parametrize("tokenizer", SENTENCEPIECE, ids=["metaspace", "replace"])
def test_any_text_round_trips_in_sentencepiece_but_for_the_space_before_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    known = TokenBytes(tokenizer, "m")

    @given(st.text(min_size=1))
    def check(text: str) -> None:
        # What such a tokenizer writes a space as cannot be told from one.
        expected = text.replace("\u2581", " ").encode()
        assert known.join(ids(tokenizer, text)) in (expected, b" " + expected)

    check()


def test_pieces_of_a_character_by_hand() -> None:
    euro = "€"  # e2 82 ac
    pieces = [KNOWN[0].table[i] for i in ids(BYTE_LEVEL[0], euro)]
    assert b"".join(pieces) == b"\xe2\x82\xac"
    assert len(pieces) == 3  # in no merge of the corpus
    spm = TokenBytes(SENTENCEPIECE[0], "m")
    assert [spm.table[i] for i in ids(SENTENCEPIECE[0], "a" + euro)][-3:] == [b"\xe2", b"\x82", b"\xac"]


def test_added_tokens_are_their_text() -> None:
    found = ids(BYTE_LEVEL[0], "a    b<é><end>")
    assert [KNOWN[0].table[i] for i in found] == [b"a", b"    ", b"b", "<é>".encode(), b"<end>"]


def test_what_does_not_tell_its_bytes_is_refused() -> None:
    inner = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    with pytest.raises(ModelError, match=r"tokenizer of words-1 is neither byte-level BPE nor SentencePiece"):
        TokenBytes(tokenizer, "words-1")
