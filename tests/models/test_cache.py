"""Rows that leave and enter a running batch, against each text alone and without a cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, GPT2Config, JambaConfig, MistralConfig

from ensemw2s.errors import ModelError
from ensemw2s.models.cache import MIN_COLUMNS, SlotCache, takes_slot_cache
from ensemw2s.models.decoding import StepDecoder
from tests.models.tiny_models import VOCAB_SIZE, llama_config, next_logits, random_model

ATOL = 1e-5  # float32, one thread

CONFIGS = {
    "llama": llama_config(num_hidden_layers=2),
    "gpt2": GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    "mistral": MistralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        sliding_window=6,
    ),
    "bloom": BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3),
}
MODELS: dict[str, Any] = {}


def model(name: str) -> Any:
    if name not in MODELS:
        MODELS[name] = random_model(CONFIGS[name])
    return MODELS[name]


def check(decoder: StepDecoder, llm: Any, texts: list[np.ndarray]) -> None:
    """Every row says what its text alone, read without a cache, gives."""
    assert decoder.batch_size == len(texts)
    if texts:
        expected = torch.stack([next_logits(llm, t).softmax(-1) for t in texts]).numpy()
        got = decoder.full(np.arange(len(texts)))
        np.testing.assert_allclose(np.log(got + 1e-30), np.log(expected + 1e-30), atol=20 * ATOL)
        np.testing.assert_allclose(got, expected, atol=ATOL)


@pytest.mark.parametrize("name", sorted(CONFIGS))
@settings(max_examples=6)
@given(seed=st.integers(0, 10_000))
def test_rows_come_and_go_at_random(name: str, seed: int) -> None:
    llm, rng = model(name), np.random.default_rng(seed)
    decoder = StepDecoder(llm, pad_id=0)
    assert decoder.can_enter
    texts: list[np.ndarray] = []
    for _ in range(9):
        if texts and rng.random() < 0.5:
            rows = rng.permutation(len(texts))[: rng.integers(0, len(texts) + 1)]
            decoder.keep(rows)
            texts = [texts[r] for r in rows]
        if texts:
            tokens = rng.integers(0, VOCAB_SIZE, len(texts))
            decoder.advance(tokens)
            texts = [np.append(t, v) for t, v in zip(texts, tokens, strict=True)]
        if rng.random() < 0.6 or not texts:
            new = [rng.integers(0, VOCAB_SIZE, int(n)) for n in rng.integers(1, 20, rng.integers(1, 4))]
            decoder.enter(new)
            texts += new
    check(decoder, llm, texts)


def test_the_window_moves_and_the_buffers_follow() -> None:
    """One short row replaces another for ever: the buffers stay as small as what lives."""
    llm = model("llama")
    decoder = StepDecoder(llm, pad_id=0)
    rng = np.random.default_rng(0)
    texts = [rng.integers(0, VOCAB_SIZE, n) for n in (30, 3)]
    decoder.start(texts)
    for _ in range(45):
        tokens = rng.integers(0, VOCAB_SIZE, 1)
        decoder.keep(np.array([1]))
        decoder.advance(tokens)
        texts = [np.append(texts[1], tokens), rng.integers(0, VOCAB_SIZE, 4)]
        decoder.enter(texts[1:])
    check(decoder, llm, texts)
    layer = decoder._cache.layers[0]
    assert layer.keys.shape[0] <= 4
    assert layer.keys.shape[2] <= max(MIN_COLUMNS, 2 * 20)
    decoder.keep(np.array([], dtype=int))
    assert decoder._cache is None


def test_columns_that_grow_take_no_more_rows() -> None:
    cache = SlotCache()
    for _ in range(3 * MIN_COLUMNS):
        cache.update(torch.zeros(3, 1, 1, 4), torch.zeros(3, 1, 1, 4), 0)
    assert cache.layers[0].keys.shape[0] == 3
    other = SlotCache()
    other.update(torch.zeros(1, 1, 5, 4), torch.zeros(1, 1, 5, 4), 0)
    cache.join(other)
    # Room for newcomers to come.
    assert cache.layers[0].keys.shape[0] == 8


def test_no_column_is_copied_at_every_step() -> None:
    cache, states = SlotCache(), torch.zeros(2, 1, 1, 4)
    moves = 0
    for _ in range(500):
        before = cache.layers[0].keys.data_ptr() if cache.layers else 0
        cache.update(states, states, 0)
        moves += cache.layers[0].keys.data_ptr() != before
    assert moves < 10
    assert cache.get_seq_length() == 500
    cache.crop(-20)
    assert cache.get_seq_length() == 480
    assert cache.get_mask_sizes(3, 0) == (483, 0)
    with pytest.raises(ValueError, match="not positive"):
        cache.crop(3)
    cache.reset()
    assert cache.get_seq_length() == 0


def test_models_with_a_recurrent_state_take_no_newcomers() -> None:
    config = JambaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        mamba_d_state=4,
        pad_token_id=0,
    )
    assert not takes_slot_cache(config)
    llm = random_model(config)
    decoder = StepDecoder(llm, pad_id=0)
    assert not decoder.can_enter
    decoder.start([np.array([5, 6, 7, 11]), np.array([8, 9, 10])])
    decoder.keep(np.array([1]))
    decoder.advance(np.array([4]))
    check(decoder, llm, [np.array([8, 9, 10, 4])])
    with pytest.raises(ModelError, match="takes no new rows"):
        decoder.enter([np.array([1])])
    decoder.keep(np.array([], dtype=int))
    decoder.enter([np.array([1, 2])])
    check(decoder, llm, [np.array([1, 2])])


def test_draw_inverts_the_members_own_distribution() -> None:
    decoder = StepDecoder(model("llama"), pad_id=0)
    decoder.start([np.array([3, 4]), np.array([5])])
    probs = decoder.full(np.array([1]))[0].astype(np.float64)
    u = (np.arange(500) + 0.5) / 500
    drawn = np.concatenate([decoder.draw(np.array([1]), u[i : i + 1]) for i in range(500)])
    expected = np.searchsorted(np.cumsum(probs), u * probs.sum(), side="right")
    assert np.array_equal(drawn, expected)


@pytest.mark.filterwarnings("error")
def test_arrays_that_came_from_another_process_may_be_read_only() -> None:
    def frozen(*values: int) -> np.ndarray:
        array = np.array(values)
        array.flags.writeable = False
        return array

    decoder = StepDecoder(model("llama"), pad_id=0)
    decoder.start([frozen(1, 2), frozen(3), frozen(4, 5)])
    decoder.keep(frozen(2, 1))
    decoder.advance(frozen(6, 7))
    decoder.enter([frozen(8)])
    assert decoder.top_k(3, frozen(2)).ids.shape == (1, 3)
    assert decoder.exact(frozen(0, 1), frozen(1, 2)[:, None]).shape == (2, 1)
    check(decoder, model("llama"), [np.array(t) for t in ([4, 5, 6], [3, 7], [8])])
