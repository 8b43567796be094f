"""Tiny models that vote, and the vote on them written out: one row, no cache, whole distributions."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ensemw2s.core.sampling import draw_dense, draw_member, draw_token, uniforms
from ensemw2s.core.voting import mixture
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeRequest, StepOutput
from ensemw2s.engine.decoding.worker import ModelPool

VOCAB = 90
ALPHAS = (0.7, 1.6, 0.0, 1.1)
VOTING = (0, 1, 3)


def make(config: Any, seed: int) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config).eval()


def llama(seed: int, **changes: Any) -> Any:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1 + seed % 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 48,
        "initializer_range": 0.6,
    }
    return make(LlamaConfig(**{**settings, **changes}), seed)


@functools.cache
def voters() -> list[Any]:
    """Four models, one of which has no weight."""
    torch.set_num_threads(1)
    return [llama(seed) for seed in range(4)]


def text(tokens: list[int]) -> str:
    """Letters, a newline now and then."""
    return "".join("\n" if t % 13 == 0 else chr(97 + t % 26) for t in tokens)


def engine(models: list[Any], **changes: Any) -> VotingEngine:
    pool = ModelPool(models)
    settings = {"decode": text, "eos_ids": (5, 17), "top_k": 4, "max_rows": 4}
    return VotingEngine(pool, pool.refs, ALPHAS[: len(models)], **{**settings, **changes})


def run(voting: VotingEngine) -> dict[int, list[StepOutput]]:
    """Until nothing is pending: the outputs of each request."""
    outputs: dict[int, list[StepOutput]] = {}
    while voting.pending:
        for output in voting.step():
            outputs.setdefault(output.request, []).append(output)
    return outputs


def tokens_of(outputs: list[StepOutput]) -> list[int]:
    assert [o.index for o in outputs] == list(range(len(outputs)))
    assert [o.finish is None for o in outputs] == [True] * (len(outputs) - 1) + [False]
    return [o.decision.token for o in outputs]


def reference(models: list[Any], request: DecodeRequest) -> tuple[list[int], list[float]]:
    """One row, no cache, whole distributions, the definitions written out."""
    weights = np.array(request.weights or ALPHAS)
    params, ids, probabilities = request.sampling, request.prompt.tolist(), []
    for step in range(request.max_new_tokens):
        with torch.inference_mode():
            rows = [
                m(torch.tensor([ids])).logits[0, -1].float().softmax(-1).numpy() if w else np.zeros(VOCAB)
                for m, w in zip(models, weights, strict=True)
            ]
        voted = mixture(np.stack(rows), weights)
        first, second = uniforms(params.seed, step)
        if params.greedy:
            token = int(voted.argmax())
        elif params.plain:
            token = draw_token(rows[draw_member(weights, first)], second)
        else:
            token = draw_dense(voted, params, second)
        ids.append(token)
        probabilities.append(float(voted[token]))
        if token in (5, 17):
            break
    return ids[len(request.prompt) :], probabilities


class Knowing:
    """Drafts what the answers are, for some tokens, with mistakes."""

    def __init__(self, answers: Mapping[tuple[int, ...], list[int]], seed: int, right: float) -> None:
        self.answers, self.right = answers, right
        self.rng = np.random.default_rng(seed)

    def propose(
        self, texts: Mapping[int, tuple[np.ndarray, Sequence[int]]], most: Mapping[int, int], rows: int
    ) -> dict[int, list[int]]:
        drafts = {}
        for i, limit in most.items():
            prompt, answer = texts[i]
            known = self.answers[tuple(prompt.tolist())]
            # Behind the end of an answer anything may be drafted.
            future = known[len(answer) :] + self.rng.integers(0, VOCAB, 4).tolist()
            draft = future[: min(limit, int(self.rng.integers(0, 7)))]
            drafts[i] = [
                t if self.rng.random() < self.right else int(self.rng.integers(VOCAB)) for t in draft
            ]
        return drafts

    def learn(self, request: int, tokens: Sequence[int]) -> None:
        pass
