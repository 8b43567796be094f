"""The output head: on as many positions as are scored, at most as many at a time, and on its own only where a model lets it."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    Gemma2Config,
    GraniteConfig,
    MambaConfig,
)

from ensemw2s.models import heads, scoring
from ensemw2s.models.heads import divided
from ensemw2s.models.scoring import ScoreRequest, score
from tests.models.tiny_models import (
    GROUPED,
    VOCAB_SIZE,
    llama_config,
    random_model,
)

ATOL = 1e-5  # float32, one thread


def test_the_head_is_bounded(
    llama: Any, requests: list[ScoreRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    hook = llama.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.numel()))
    whole = score(llama, requests)
    unbounded = max(seen)
    monkeypatch.setattr(scoring, "MAX_HEAD_VALUES", 12 * VOCAB_SIZE)
    seen.clear()
    bounded = score(llama, requests)
    hook.remove()
    assert max(seen) <= 12 * VOCAB_SIZE < unbounded
    np.testing.assert_allclose(bounded.logprobs, whole.logprobs, atol=ATOL)


def test_the_head_runs_once_a_place(llama: Any) -> None:
    """Four choices behind one prompt: its last token, and all tokens of the choices but their last."""
    choices = tuple(np.arange(n) for n in (1, 2, 3, 1))
    seen: list[int] = []
    hook = llama.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[0]))
    divided(llama)
    seen.clear()
    score(llama, [ScoreRequest(np.arange(10), choices), ScoreRequest(np.arange(3), choices)], method="tree")
    hook.remove()
    assert seen == [2 * (1 + 0 + 1 + 2 + 0)]


@pytest.mark.parametrize(
    ("config", "may"),
    [
        (llama_config(), True),
        (Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=5.0), False),
        (GraniteConfig(**GROUPED, logits_scaling=3.0), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_model_that_changes_its_logits_is_not_divided(
    config: Any, may: bool, requests: list[ScoreRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(config)
    assert (divided(model) is not None) == may
    own = score(model, requests)
    monkeypatch.setattr(scoring, "divided", lambda model: None)
    whole = score(model, requests)
    np.testing.assert_allclose(own.logprobs, whole.logprobs, atol=ATOL)
    np.testing.assert_array_equal(own.hits, whole.hits)


def test_a_head_that_is_elsewhere_is_tried_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed holds weights in parts (ZeRO-3): here they are empty, and they are gathered where they are used."""
    model = random_model(llama_config())
    seen: list[int] = []
    monkeypatch.setattr(
        heads, "_says_the_same", lambda model, body, head: seen.append(head.weight.numel()) or True
    )
    model.lm_head.weight = torch.nn.Parameter(torch.empty(0))
    assert divided(model) is not None
    assert seen == [0]


@pytest.mark.parametrize(
    ("config", "may"),
    [(llama_config(), True), (Gemma2Config(**GROUPED, head_dim=8, final_logit_softcapping=5.0), False)],
    ids=lambda value: type(value).__name__,
)
def test_a_new_head_does_not_hide_what_a_model_does_with_its_logits(config: Any, may: bool) -> None:
    """Its zeros are zeros however they are scaled; they are there again when that has been tried."""
    model = random_model(config)
    model.set_output_embeddings(torch.nn.Linear(model.config.hidden_size, 3, bias=False))
    head = model.get_output_embeddings()
    torch.nn.init.zeros_(head.weight)
    state = torch.get_rng_state()
    assert (divided(model) is not None) == may
    assert not head.weight.any()
    assert torch.equal(torch.get_rng_state(), state)


def test_the_head_is_bounded_where_a_text_cannot_be_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent layers have no cache of slots: the text is read at once, and the head runs on a part of it at a time."""
    config = MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=8)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = None, 0, 0
    model = random_model(config)
    ids = np.random.default_rng(3).integers(0, VOCAB_SIZE, 80)
    long = [ScoreRequest(ids[:5], (ids[5:40], ids[40:43])), ScoreRequest(ids[:3], (ids[40:],))]
    whole = score(model, long)
    monkeypatch.setattr(scoring, "MAX_HEAD_VALUES", 6 * VOCAB_SIZE)
    seen: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.numel()))
    bounded = score(model, long)
    hook.remove()
    assert max(seen) <= 6 * VOCAB_SIZE
    np.testing.assert_allclose(bounded.logprobs, whole.logprobs, atol=ATOL)
    np.testing.assert_array_equal(bounded.hits, whole.hits)


@pytest.mark.parametrize("method", ["tree", "rows"])
def test_a_text_longer_than_the_head_takes_is_read_in_parts(
    llama: Any, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    """Whatever the vocabulary: no forward makes more logits than allowed, and every token is read once."""
    rng = np.random.default_rng(3)

    def tokens(n: int) -> np.ndarray:
        return rng.integers(0, VOCAB_SIZE, n).astype(np.int32)

    long = [
        ScoreRequest(tokens(5), (tokens(40), tokens(3))),
        ScoreRequest(tokens(1), (tokens(21),)),
        ScoreRequest(tokens(60), (tokens(10), tokens(11))),
    ]
    whole = score(llama, long, method=method)
    monkeypatch.setattr(scoring, "MAX_HEAD_VALUES", 10 * VOCAB_SIZE)
    seen: list[int] = []

    def spy(module: Any, args: Any, output: Any) -> None:
        seen.append(output.numel())

    hook = llama.lm_head.register_forward_hook(spy)
    parts = score(llama, long, method=method)
    hook.remove()
    assert max(seen) <= 10 * VOCAB_SIZE
    assert len(seen) > 8
    np.testing.assert_allclose(parts.logprobs, whole.logprobs, atol=ATOL)
    np.testing.assert_array_equal(parts.hits, whole.hits)
    assert parts.tokens_forwarded >= whole.tokens_forwarded
