from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BloomConfig,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    Lfm2Config,
    Llama4TextConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from ensemw2s.config import LoraConfig
from ensemw2s.errors import ModelError
from ensemw2s.models.loading import load_model
from ensemw2s.models.scoring import ScoreRequest, longest_tree_row, score
from tests.models.tiny_models import (
    GROUPED,
    SMALL,
    VOCAB_SIZE,
    llama_config,
    next_logits,
    random_model,
    random_requests,
)

ATOL = 1e-5  # float32, one thread


def naive(model: Any, requests: list[ScoreRequest]) -> tuple[np.ndarray, np.ndarray]:
    """One unpadded forward pass for every scored token."""
    logprobs, hits = [], []
    for request in requests:
        for text in request.continuations:
            for j, token in enumerate(text):
                logits = next_logits(model, np.concatenate([request.prompt, text[:j]]))
                logprobs.append(float(logits.log_softmax(-1)[int(token)]))
                hits.append(int(logits.argmax()) == int(token))
    return np.array(logprobs), np.array(hits)


@pytest.fixture(scope="module")
def expected(llama: Any, requests: list[ScoreRequest]) -> tuple[np.ndarray, np.ndarray]:
    return naive(llama, requests)


@pytest.mark.parametrize("method", ["tree", "rows", "auto"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 4096])
def test_equals_one_sequence_at_a_time(
    llama: Any,
    requests: list[ScoreRequest],
    expected: tuple[np.ndarray, np.ndarray],
    method: Any,
    batch_tokens: int,
) -> None:
    result = score(llama, requests, batch_tokens=batch_tokens, method=method)
    np.testing.assert_allclose(result.logprobs, expected[0], atol=ATOL)
    assert result.hits.tolist() == expected[1].tolist()
    assert result.logprobs.dtype == np.float32
    assert result.hits.dtype == np.bool_


def test_hits_are_true_for_the_greedy_continuation(llama: Any) -> None:
    prompt = np.array([5, 6, 7])
    text: list[int] = []
    for _ in range(6):
        text.append(int(next_logits(llama, np.concatenate([prompt, text])).argmax()))
    wrong = [(t + 1) % VOCAB_SIZE for t in text]
    result = score(llama, [ScoreRequest(prompt, (np.array(text), np.array(wrong[:1])))])
    assert result.hits.tolist() == [True] * 6 + [False]


def test_a_tie_counts_for_the_lowest_id() -> None:
    model = random_model(llama_config(num_hidden_layers=1, tie_word_embeddings=False))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    texts = tuple(np.array([t]) for t in (0, 1, VOCAB_SIZE - 1))
    result = score(model, [ScoreRequest(np.array([3]), texts)])
    assert result.hits.tolist() == [True, False, False]
    np.testing.assert_allclose(result.logprobs, -np.log(VOCAB_SIZE), atol=1e-6)


def test_offsets_are_flat_in_request_order(llama: Any) -> None:
    a, b, c = np.array([4, 5]), np.array([6]), np.array([7, 8, 9])
    both = [ScoreRequest(np.arange(1, 20), (a, b)), ScoreRequest(np.array([2]), (c,))]
    result = score(llama, both)
    assert result.offsets.tolist() == [0, 2, 3, 6]
    turned = score(llama, both[::-1])
    assert turned.offsets.tolist() == [0, 3, 5, 6]
    np.testing.assert_allclose(turned.logprobs, np.roll(result.logprobs, 3), atol=ATOL)


def test_tokens_forwarded_counts_a_prompt_once_per_tree(llama: Any) -> None:
    request = ScoreRequest(np.arange(10), (np.arange(3), np.arange(1), np.arange(4)))
    assert score(llama, [request], method="tree").tokens_forwarded == 10 + 2 + 0 + 3
    assert score(llama, [request], method="rows").tokens_forwarded == 3 * 10 + 2 + 0 + 3
    # Cut into two rows, as few tokens as 14 fit into one.
    assert score(llama, [request], method="tree", batch_tokens=14).tokens_forwarded == 2 * 10 + 2 + 0 + 3


def test_the_same_call_gives_the_same_bits(llama: Any, requests: list[ScoreRequest]) -> None:
    first, second = (score(llama, requests, batch_tokens=200) for _ in range(2))
    assert np.array_equal(first.logprobs, second.logprobs)


def test_progress_reaches_the_end(llama: Any, requests: list[ScoreRequest]) -> None:
    calls: list[tuple[int, int]] = []
    score(llama, requests, batch_tokens=100, progress=lambda done, total: calls.append((done, total)))
    assert [d for d, _ in calls] == sorted({d for d, _ in calls})
    assert calls[-1][0] == calls[-1][1] == len(requests)


def test_training_mode_is_put_aside_and_restored() -> None:
    model = random_model(llama_config(attention_dropout=0.5))
    requests = random_requests(2, 3)
    quiet_result = score(model, requests)
    model.train()
    assert np.array_equal(score(model, requests).logprobs, quiet_result.logprobs)
    assert model.training


def test_eager_attention_takes_the_tree_too(
    requests: list[ScoreRequest], expected: tuple[np.ndarray, np.ndarray]
) -> None:
    model = random_model(llama_config())
    model.set_attn_implementation("eager")
    result = score(model, requests, method="tree")
    np.testing.assert_allclose(result.logprobs, expected[0], atol=ATOL)


def test_a_model_with_adapters(tiny: Any, requests: list[ScoreRequest]) -> None:
    model = load_model(tiny(lora=LoraConfig(rank=4)), device="cpu", for_training=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    assert longest_tree_row(model) is None
    apart = score(model, requests)
    assert model.training
    merged = model.merge_and_unload().eval()
    np.testing.assert_allclose(apart.logprobs, naive(merged, requests)[0], atol=5e-5)


def test_half_precision_agrees_with_itself() -> None:
    model = random_model(llama_config()).to(torch.bfloat16)
    requests = random_requests(3, 6)
    tree, rows = (score(model, requests, method=m).logprobs for m in ("tree", "rows"))
    np.testing.assert_allclose(
        tree, rows, atol=0.25
    )  # bfloat16 keeps 8 bits; logits here are of the order of 10


@pytest.mark.parametrize(
    ("config", "tree_rows"),
    [
        (GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=3, n_head=4, n_positions=128), None),
        (GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=128), None),
        (
            OPTConfig(
                vocab_size=VOCAB_SIZE, hidden_size=32, ffn_dim=48, num_hidden_layers=3, num_attention_heads=4
            ),
            None,
        ),
        (PhiConfig(**GROUPED), None),
        (Qwen2Config(**GROUPED), None),
        (Qwen3Config(**GROUPED, head_dim=8), None),
        (MixtralConfig(**GROUPED, sliding_window=None, num_local_experts=3), None),
        (MistralConfig(**GROUPED, sliding_window=200), 200),
        (Gemma2Config(**GROUPED, head_dim=8, sliding_window=60), 60),
        (Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=60), 60),
        (MistralConfig(**GROUPED, sliding_window=16), 16),
        (Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=16), 16),
        (BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=3, n_head=4), 0),
        (FalconConfig(**SMALL, alibi=True), 0),
        (Lfm2Config(**GROUPED, layer_types=["conv", "full_attention", "conv"]), 0),
        (
            Llama4TextConfig(
                **GROUPED, head_dim=8, attention_chunk_size=8, num_local_experts=2, intermediate_size_mlp=48
            ),
            0,
        ),
        (
            GPTNeoConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                num_layers=2,
                num_heads=4,
                attention_types=[[["global", "local"], 1]],
            ),
            0,
        ),
        (MambaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, state_size=8), 0),
    ],
    ids=lambda v: type(v).__name__ if not isinstance(v, int | None) else str(v),
)
def test_architectures(config: Any, tree_rows: int | None) -> None:
    config.pad_token_id, config.eos_token_id, config.bos_token_id = None, 0, 0
    model = random_model(config)
    assert longest_tree_row(model) == tree_rows
    requests = random_requests(4, 5)
    logprobs, hits = naive(model, requests)
    result = score(model, requests)
    np.testing.assert_allclose(result.logprobs, logprobs, atol=2e-5)
    assert result.hits.tolist() == hits.tolist()
    longest = max(len(r.prompt) + max(map(len, r.continuations)) - 1 for r in requests)
    if tree_rows is not None and tree_rows < longest:
        with pytest.raises(ValueError, match="use auto or rows"):
            score(model, requests, method="tree")


def test_a_long_request_leaves_the_prompts_of_the_others_shared() -> None:
    """A window of 32 places: trees up to there, and beside them a text that is longer, in batches of its own."""
    config = MistralConfig(**GROUPED, sliding_window=32)
    config.pad_token_id, config.eos_token_id, config.bos_token_id = None, 0, 0
    model = random_model(config)
    rng = np.random.default_rng(0)

    def request(n: int) -> ScoreRequest:
        ids = rng.integers(1, VOCAB_SIZE, n + 12)
        return ScoreRequest(ids[:n], tuple(ids[n + 3 * i : n + 3 * i + 3] for i in range(4)))

    short, long = [request(12) for _ in range(6)], request(60)
    alone = score(model, short).tokens_forwarded
    mixed = score(model, [*short[:3], long, *short[3:]], batch_tokens=10_000)
    assert mixed.tokens_forwarded == alone + score(model, [long]).tokens_forwarded
    logprobs, hits = naive(model, [*short[:3], long, *short[3:]])
    np.testing.assert_allclose(mixed.logprobs, logprobs, atol=2e-5)
    assert mixed.hits.tolist() == hits.tolist()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ScoreRequest(np.array([], dtype=int), (np.array([1]),)), "empty prompt"),
        (ScoreRequest(np.array([1]), ()), "no continuations"),
        (
            ScoreRequest(np.array([1]), (np.array([1]), np.array([], dtype=int))),
            "continuation 1 of request 0 is empty",
        ),
        (ScoreRequest(np.array([1]), (np.array([VOCAB_SIZE]),)), "outside 0..119"),
        (ScoreRequest(np.array([-1]), (np.array([1]),)), "outside 0..119"),
        (ScoreRequest(np.array([1.5]), (np.array([1]),)), "outside 0..119"),
    ],
)
def test_what_cannot_be_scored(llama: Any, request_: ScoreRequest, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score(llama, [request_])


def test_unknown_method(llama: Any) -> None:
    with pytest.raises(ValueError, match="not one of auto, tree, rows"):
        score(llama, random_requests(0, 1), method="fast")  # type: ignore[arg-type]


def test_a_text_longer_than_the_context(llama: Any) -> None:
    fits = ScoreRequest(np.zeros(120, dtype=int), (np.zeros(9, dtype=int), np.zeros(9, dtype=int)))
    assert len(score(llama, [fits]).logprobs) == 18
    with pytest.raises(ModelError, match="130 tokens, the model's context holds 128"):
        score(llama, [ScoreRequest(np.zeros(120, dtype=int), (np.zeros(10, dtype=int),))])


def test_a_diverged_model() -> None:
    model = random_model(llama_config(num_hidden_layers=1))
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="training diverged"):
        score(model, random_requests(0, 1))


def test_no_requests(llama: Any) -> None:
    result = score(llama, [])
    assert (len(result.logprobs), result.offsets.tolist(), result.tokens_forwarded) == (0, [0], 0)
