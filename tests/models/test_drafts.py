"""Drafted tokens: read together, and those that do not stand leave no trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import BloomConfig, GPT2Config, MistralConfig

from ensemw2s.errors import ModelError
from ensemw2s.models.decoding import StepDecoder
from tests.models.tiny_models import VOCAB_SIZE, llama_config, random_model

ENDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "vocab_size": VOCAB_SIZE}
MISTRAL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize(
    "config",
    [
        llama_config(num_hidden_layers=2),
        GPT2Config(n_embd=32, n_layer=2, n_head=4, initializer_range=0.3, n_positions=64, **ENDS),
        MistralConfig(sliding_window=8, **MISTRAL, **ENDS),
        BloomConfig(hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, **ENDS),
    ],
    ids=lambda c: type(c).__name__,
)
def test_what_stands_is_what_was_stepped_to(config: Any) -> None:
    """Ragged drafts, any number of them standing, rows that leave and enter in between: as one token a step."""
    model = random_model(config)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        decoder = StepDecoder(model, pad_id=0)
        texts = [rng.integers(0, VOCAB_SIZE, n).astype(np.int32) for n in (4, 11, 1)]
        decoder.start(texts)
        for _ in range(5):
            if rng.random() < 0.5 and len(texts) > 1:
                kept = rng.permutation(len(texts))[:-1]
                decoder.keep(kept)
                texts = [texts[row] for row in kept]
            drafts = np.full((len(texts), int(rng.integers(0, 5))), -1)
            counts = rng.integers(0, drafts.shape[1] + 1, len(texts))
            for row, count in enumerate(counts):
                drafts[row, :count] = rng.integers(0, VOCAB_SIZE, count)
            tokens = rng.integers(0, VOCAB_SIZE, len(texts))
            decoder.advance(tokens, drafts)
            entering = [rng.integers(0, VOCAB_SIZE, 2).astype(np.int32)] if rng.random() < 0.5 else []
            if entering:
                decoder.enter(entering)
            assert decoder.counts.tolist() == [*(1 + counts), *(1 for _ in entering)]
            read = [
                np.concatenate([text, [token], draft[:count]])
                for text, token, draft, count in zip(texts, tokens, drafts, counts, strict=True)
            ]
            expected = []
            for text, count in zip([*read, *entering], decoder.counts, strict=True):
                for n in range(len(text) - count + 1, len(text) + 1):
                    single = StepDecoder(model, pad_id=0)
                    single.start([text[:n]])
                    expected.append(single.full(np.array([0]))[0])
            places = decoder.places(np.arange(decoder.batch_size))
            np.testing.assert_allclose(decoder.full(places), np.stack(expected), atol=1e-5)
            stand = np.array([int(rng.integers(1, 2 + count)) for count in counts] + [1] * len(entering))
            if rng.random() < 0.2:
                stand[: len(counts)] = 1 + counts
            decoder.settle(None if (stand == decoder.counts).all() else stand)
            texts = [
                np.concatenate([t, [v], d[: s - 1]])
                for t, v, d, s in zip(texts, tokens, drafts, stand, strict=False)
            ] + entering
            alone = []
            for text in texts:
                single = StepDecoder(model, pad_id=0)
                single.start([text])
                alone.append(single.full(np.array([0]))[0])
            np.testing.assert_allclose(decoder.full(np.arange(len(texts))), np.stack(alone), atol=1e-5)


def test_drafts_may_reach_the_end_of_the_context() -> None:
    model = random_model(
        GPT2Config(n_embd=32, n_layer=1, n_head=4, initializer_range=0.3, n_positions=8, **ENDS)
    )
    decoder = StepDecoder(model, pad_id=0)
    decoder.start([np.array([1, 2, 3, 4, 5]), np.array([6])])
    decoder.advance(np.array([7, 7]), np.array([[8, 9, -1, -1], [1, 2, 3, 4]]))
    assert np.isfinite(decoder.full(np.arange(8))).all()
    with pytest.raises(ModelError, match="9 tokens, the model's context holds 8"):
        decoder.advance(np.array([7, 7]))


def test_drafts_that_are_refused() -> None:
    decoder = StepDecoder(random_model(llama_config(num_hidden_layers=1)), pad_id=0)
    decoder.start([np.array([1]), np.array([2])])
    for drafts in ([[1, -1]], [[-1, 1], [1, 1]], [[VOCAB_SIZE], [1]]):
        with pytest.raises(ValueError, match="drafts are ids"):
            decoder.advance(np.array([1, 2]), np.array(drafts))
    decoder.advance(np.array([1, 2]), np.array([[3], [-1]]))
    for stand in ([0, 1], [1, 2], [1]):
        with pytest.raises(ValueError, match="cannot stand"):
            decoder.settle(np.array(stand))


def test_what_is_taken_back_leaves_no_trace() -> None:
    """float32: another number of tokens of each row, none of some, and other tokens in their place."""
    model = random_model(llama_config(num_hidden_layers=2))
    rng = np.random.default_rng(5)
    texts = [rng.integers(0, VOCAB_SIZE, n).astype(np.int32) for n in (4, 11, 7)]
    decoder, fresh = StepDecoder(model, pad_id=0), StepDecoder(model, pad_id=0)
    decoder.start(texts)
    for taken in ([1, 0, 3], [0, 0, 0], [2, 4, 1]):
        decoder.take_back(np.array(taken))
        tokens = rng.integers(0, VOCAB_SIZE, 3)
        drafts = np.array([[5, 6], [7, -1], [-1, -1]])
        decoder.advance(tokens, drafts)
        texts = [
            np.concatenate([text[: len(text) - n], [token], draft[draft >= 0]]).astype(np.int32)
            for text, n, token, draft in zip(texts, taken, tokens, drafts, strict=True)
        ]
        fresh.start(texts)
        last = np.cumsum(decoder.counts) - 1
        np.testing.assert_allclose(decoder.full(last), fresh.full(np.arange(3)), atol=1e-5)
