"""Voted decoding: batched, cached and sparse, and still the dense vote token by token."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemw2s import api
from ensemw2s.config import ExperimentConfig, ModelConfig
from ensemw2s.core.voting import mixture
from ensemw2s.engine.generation import Generated, VotedDecoder
from ensemw2s.engine.pool import LocalExecutor, SupervisorPool
from ensemw2s.engine.prepare import begin_run, check_directory, prepare
from ensemw2s.engine.supervisor import SessionLost
from ensemw2s.engine.tasks import ModelRef
from ensemw2s.models.loading import load_model, load_tokenizer

MEMBERS = [ModelRef("weak"), ModelRef("strong")]
ALPHAS = np.array([0.7, 1.6])
MAX_NEW = 7


@pytest.fixture(scope="module")
def world(make_tiny: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = api.as_config(ExperimentConfig.model_validate(make_tiny(tmp_path_factory.mktemp("decode"))))
    store = check_directory(config)
    prepared = prepare(config)
    begin_run(prepared, store, 0)
    executor = LocalExecutor(prepared.absolute, store.folder, threads=1, report=lambda event: None)
    tokenizer = load_tokenizer(config.strong.model)
    texts = [
        "the cat",
        "Question: the dog in the barn\nAnswer:",
        "a",
        "hiss low roar far chirp",
        "ee in the ll",
    ]
    prompts = [np.array(tokenizer.encode(t), dtype=np.int32) for t in texts]
    return config, executor.pool(), tokenizer, prompts


def decode(
    pool: SupervisorPool, tokenizer: Any, prompts: list[np.ndarray], **changes: Any
) -> tuple[list[Generated], Any]:
    settings = {
        "max_new_tokens": MAX_NEW,
        "stop": (),
        "top_k": 4,
        "batch_tokens": 64,
        "eos_ids": (tokenizer.eos_token_id,),
        **changes,
    }
    decoder = VotedDecoder(pool, MEMBERS, ALPHAS, tokenizer, **settings)
    return decoder.decode(prompts), decoder.counts


def dense(config: ExperimentConfig, prompt: np.ndarray, eos: int) -> tuple[list[int], float]:
    """One row at a time, no cache, whole distributions."""
    models = [
        load_model(ModelConfig(path=m.path), device="cpu", dtype=torch.float32)
        for m in (config.weak.models[0], config.strong.model)
    ]
    ids, confidence = prompt.tolist(), 1.0
    for _ in range(MAX_NEW):
        with torch.inference_mode():
            probs = [m(torch.tensor([ids])).logits[0, -1].double().softmax(-1).numpy() for m in models]
        voted = mixture(np.stack(probs), ALPHAS)
        token = int(voted.argmax())
        confidence *= float(voted[token])
        if token == eos:
            break
        ids.append(token)
    return ids[len(prompt) :], confidence


@pytest.mark.parametrize("top_k", [1, 3, 100_000])
def test_equals_the_dense_vote(world: Any, top_k: int) -> None:
    """float32, one thread; the confidence to rounding."""
    config, pool, tokenizer, prompts = world
    k = min(top_k, len(tokenizer))
    answers, counts = decode(pool, tokenizer, prompts, top_k=k)
    for prompt, answer in zip(prompts, answers, strict=True):
        tokens, confidence = dense(config, prompt, tokenizer.eos_token_id)
        assert answer.tokens == tokens
        assert answer.confidence == pytest.approx(confidence, rel=1e-4)
        assert len(answer.member_tokens) == len(answer.probabilities) == len(tokens)
    assert counts.certified + counts.asked + counts.full == sum(
        len(a.tokens) + (len(a.tokens) < MAX_NEW) for a in answers
    )
    if k == len(tokenizer):
        assert counts.full == 0


def test_batching_changes_nothing(world: Any) -> None:
    _, pool, tokenizer, prompts = world
    together, _ = decode(pool, tokenizer, prompts, batch_tokens=10_000)
    alone, _ = decode(pool, tokenizer, prompts, batch_tokens=1)
    assert [a.tokens for a in together] == [a.tokens for a in alone]


def test_stop_strings_end_an_answer(world: Any) -> None:
    _, pool, tokenizer, prompts = world
    free, _ = decode(pool, tokenizer, prompts)
    index = max(range(len(free)), key=lambda i: len(free[i].text))
    text = free[index].text
    assert len(text) > 2
    stopped, _ = decode(pool, tokenizer, prompts, stop=(text[1],))
    assert stopped[index].text == text[: text.index(text[1])].strip()
    assert len(stopped[index].tokens) <= len(free[index].tokens)


def test_a_lost_supervisor_means_the_batch_again(world: Any) -> None:
    _, pool, tokenizer, prompts = world
    expected, _ = decode(pool, tokenizer, prompts)

    class Forgetful:
        size = 1
        failures = 0

        def submit(self, slot: int, method: str, *args: Any) -> Any:
            if method in ("decode_step", "decode_steps") and self.failures == 0:
                self.failures += 1
                return Lost()
            return pool.submit(slot, method, *args)

    class Lost:
        def result(self) -> Any:
            raise SessionLost("restarted")

    forgetful = Forgetful()
    answers, _ = decode(forgetful, tokenizer, prompts)
    assert forgetful.failures == 1
    assert [a.tokens for a in answers] == [a.tokens for a in expected]


def test_a_decode_that_was_never_started(world: Any, tmp_path: Path) -> None:
    """A supervisor that was never asked to start a decode says so."""
    _, pool, _, _ = world
    with pytest.raises(SessionLost, match="restarted"):
        pool.submit(0, "decode_full", ModelRef("weak", 0, tmp_path), np.array([0])).result()
