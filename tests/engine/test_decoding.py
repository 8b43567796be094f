"""The continuous vote: what a request gives does not depend on who else is there, nor on who comes and goes."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import JambaConfig

from ensemw2s.core.sampling import SamplingParams
from ensemw2s.core.voting import mixture
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeRequest, StepOutput
from ensemw2s.engine.decoding.worker import ModelPool, SessionLost
from ensemw2s.errors import ModelError
from tests.engine.voting_models import (
    ALPHAS,
    VOCAB,
    VOTING,
    engine,
    llama,
    make,
    reference,
    run,
    text,
    tokens_of,
    voters,
)


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return voters()


def some_request(rng: np.random.Generator) -> DecodeRequest:
    sampling = (
        SamplingParams(),
        SamplingParams(1.0, seed=int(rng.integers(99))),
        SamplingParams(0.7, 0.8, seed=int(rng.integers(99))),
        SamplingParams(1.6, seed=int(rng.integers(99))),
    )
    weights = ((0.0, 2.0, 1.0, 0.0), (0.0, 0.0, 0.0, 3.0), None, None, None)
    return DecodeRequest(
        rng.integers(0, VOCAB, rng.integers(1, 14)).astype(np.int32),
        int(rng.integers(1, 9)),
        sampling=sampling[int(rng.integers(len(sampling)))],
        top_logprobs=int(rng.integers(0, 4)),
        weights=weights[int(rng.integers(len(weights)))],
    )


@settings(max_examples=6)
@given(seed=st.integers(0, 10_000), top_k=st.sampled_from([1, 4, VOCAB]))
def test_continuous_is_one_at_a_time_is_the_dense_vote(models: list[Any], seed: int, top_k: int) -> None:
    """Requests of all kinds, added at random steps, in whatever company: token by token as defined."""
    rng = np.random.default_rng(seed)
    requests = [some_request(rng) for _ in range(5)]
    voting = engine(models, top_k=top_k, enter_together=int(rng.integers(1, 3)))
    ids: list[int] = []
    together: dict[int, list[StepOutput]] = {}
    while len(ids) < len(requests) or voting.pending:
        for _ in range(int(rng.integers(0, 3))):
            if len(ids) < len(requests):
                ids.append(voting.add(requests[len(ids)]))
        for output in voting.step():
            together.setdefault(output.request, []).append(output)
    assert voting.running == 0
    for number, request in zip(ids, requests, strict=True):
        tokens, probabilities = reference(models, request)
        assert tokens_of(together[number]) == tokens
        got = [o.decision.logprob for o in together[number]]
        np.testing.assert_allclose(got, np.log(probabilities), atol=5e-5)
        for output in together[number]:
            top = output.decision.top
            assert len(top) == request.top_logprobs
            assert [p for _, p in top] == sorted((p for _, p in top), reverse=True)
            asked = request.weights or ALPHAS
            assert [s is not None for s in output.decision.members] == [w > 0 for w in asked]
    assert voting.counts.decisions == sum(map(len, together.values()))


def test_alone_or_together_the_probabilities_agree_to_rounding(models: list[Any]) -> None:
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, VOCAB, n).astype(np.int32) for n in (2, 11, 7, 1, 5)]
    requests = [DecodeRequest(p, 8, eos_ids=()) for p in prompts]
    crowd = engine(models)
    ids = [crowd.add(r) for r in requests]
    together = run(crowd)
    for number, request in zip(ids, requests, strict=True):
        single = engine(models)
        single.add(request)
        (alone,) = run(single).values()
        assert tokens_of(alone) == tokens_of(together[number])
        a, b = ([o.decision.logprob for o in outputs] for outputs in (alone, together[number]))
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_one_call_to_a_member_for_a_decision(models: list[Any]) -> None:
    """Certified by what was sent: as many calls as steps, and every token is read once."""
    pool = ModelPool(models)
    calls: list[str] = []

    class Counting:
        size = 4

        def submit(self, slot: int, method: str, *args: Any) -> Any:
            calls.append(f"{method}-{slot}")
            return pickle.loads(pickle.dumps(pool.submit(slot, method, *pickle.loads(pickle.dumps(args)))))

    voting = VotingEngine(Counting(), pool.refs, ALPHAS, top_k=VOCAB)
    prompts = [np.arange(1, n, dtype=np.int32) for n in (4, 9)]
    for prompt in prompts:
        voting.add(DecodeRequest(prompt, 6))
    run(voting)
    for m in VOTING:
        assert calls.count(f"decode_step-{m}") == 6
        assert calls.count(f"decode_end-{m}") == 1
    assert not [c for c in calls if c.endswith("-2") and not c.startswith("decode_facts")]
    assert len(calls) == 4 + 3 * 7
    assert voting.counts.forwarded == 3 * (3 + 8 + 2 * 5)
    assert voting.counts.paths["certified"] == 12


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_who_wants_the_tokens_alone_has_the_same_ones_with_fewer_questions(
    models: list[Any], temperature: float
) -> None:
    """Sampled at temperature 1 there is no question at all: one member draws."""
    found, asked, completed = [], [], []
    for exact in (True, False):
        voting = engine(models, top_k=8)
        ids = [
            voting.add(
                DecodeRequest(
                    np.arange(1, 4 + i, dtype=np.int32),
                    8,
                    sampling=SamplingParams(temperature, 1.0, i),
                    exact=exact,
                )
            )
            for i in range(4)
        ]
        outputs = run(voting)
        found.append([tokens_of(outputs[i]) for i in ids])
        asked.append(voting.counts.extra_calls)
        completed.append(voting.counts.completed)
    assert found[0] == found[1]
    assert asked[1] < asked[0]
    assert completed[1] == 0
    if temperature == 1.0:
        assert asked[1] == 0
    else:
        assert completed[0] > 0


def test_a_cancelled_request_frees_its_row(models: list[Any]) -> None:
    pool = ModelPool(models)
    voting = VotingEngine(pool, pool.refs, ALPHAS, top_k=4, max_rows=2)
    prompt = np.array([1, 2, 3], dtype=np.int32)
    a, b, c = (voting.add(DecodeRequest(prompt + i, 10)) for i in range(3))
    assert {o.request for o in voting.step()} == {a, b}
    voting.cancel(a)
    voting.cancel(999)
    assert {o.request for o in voting.step()} == {b, c}
    assert {m: pool._worker._held(str(m))[1].batch_size for m in VOTING} == dict.fromkeys(VOTING, 2)
    outputs = {n: reference(models, DecodeRequest(prompt + n, 10))[0] for n in (1, 2)}
    rest = run(voting)
    assert [o.decision.token for o in rest[b]] == outputs[1][2:]
    assert [o.decision.token for o in rest[c]] == outputs[2][1:]
    d = voting.add(DecodeRequest(prompt, 4))
    e = voting.add(DecodeRequest(prompt, 4))
    voting.step()
    voting.cancel(d)
    voting.cancel(e)
    assert voting.pending == 2
    assert voting.step() == []
    assert voting.pending == 0
    with pytest.raises(SessionLost):
        pool._worker._held("0")


def test_stop_strings_length_and_several_ends_of_text(models: list[Any]) -> None:
    prompt = np.array([3, 1, 4], dtype=np.int32)
    free = reference(models, DecodeRequest(prompt, 12))[0]
    voting = engine(models, eos_ids=())
    whole = text(free)
    stop = whole[2:5]
    assert len(free) >= 6
    stopped = voting.add(DecodeRequest(prompt, 12, stop=(stop, "zzz")))
    long = voting.add(DecodeRequest(prompt, 4))
    ended = voting.add(DecodeRequest(prompt, 12, eos_ids=(777 % VOCAB, free[3])))
    outputs = run(voting)
    at = whole.index(stop)
    assert "".join(o.text for o in outputs[stopped]) == whole[:at]
    assert (outputs[stopped][-1].finish, len(outputs[stopped])) == ("stop", at + 3)
    assert "".join(o.text for o in outputs[long]) == whole[:4]
    assert outputs[long][-1].finish == "length"
    first = free.index(free[3])
    assert "".join(o.text for o in outputs[ended]) == whole[:first]
    assert (outputs[ended][-1].finish, outputs[ended][-1].decision.token) == ("eos", free[3])


def test_sampled_tokens_have_the_frequencies_of_the_mixture(models: list[Any]) -> None:
    """First tokens of 600 requests that differ by their seeds, against the exact distribution: chi-square, 3 cells."""
    prompt = np.array([9, 8], dtype=np.int32)
    with torch.inference_mode():
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        rows = [m(ids).logits[0, -1].float().softmax(-1).numpy() for m in models]
    voted = mixture(np.stack(rows), ALPHAS)
    squared = voted**2 / (voted**2).sum()
    for params, expected in ((SamplingParams(1.0), voted), (SamplingParams(0.5), squared)):
        voting = engine(models, max_rows=600, batch_tokens=10**6, top_k=16)
        for seed in range(600):
            voting.add(DecodeRequest(prompt, 1, sampling=SamplingParams(params.temperature, 1.0, seed)))
        tokens = [o.decision.token for o in voting.step()]
        order = np.argsort(-expected)
        cells = [order[:1], order[1:6], order[6:]]
        counts = np.array([np.isin(tokens, cell).sum() for cell in cells])
        wanted = np.array([600 * expected[cell].sum() for cell in cells])
        assert ((counts - wanted) ** 2 / wanted).sum() < 13.8  # 0.1 % with 2 degrees of freedom


def test_requests_may_come_from_other_threads(models: list[Any]) -> None:
    voting = engine(models)
    prompts = [np.array([i, 1], dtype=np.int32) for i in range(12)]
    threads = [
        threading.Thread(target=lambda p=p: voting.add(DecodeRequest(p, 3, eos_ids=()))) for p in prompts
    ]
    for thread in threads[:6]:
        thread.start()
    outputs: dict[int, int] = {}
    for thread in threads[6:]:
        thread.start()
        for output in voting.step():
            outputs[output.request] = outputs.get(output.request, 0) + 1
    for thread in threads:
        thread.join()
    for number, items in run(voting).items():
        outputs[number] = outputs.get(number, 0) + len(items)
    assert outputs == dict.fromkeys(range(12), 3)


def test_a_model_whose_rows_cannot_be_joined_waits(models: list[Any]) -> None:
    """Newcomers enter when the batch is empty; the tokens are the same."""
    jamba = make(
        JambaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            attn_layer_period=2,
            attn_layer_offset=1,
            num_experts=1,
            mamba_d_state=4,
            initializer_range=0.4,
        ),
        0,
    )
    both = [models[0], jamba]
    voting = engine(both, eos_ids=())
    requests = [DecodeRequest(np.array([1, 2, 3 + i], dtype=np.int32), 3 + i) for i in range(2)]
    first = voting.add(requests[0])
    voting.step()
    second = voting.add(requests[1])
    assert [o.request for _ in range(2) for o in voting.step()] == [first, first]
    outputs = run(voting)
    assert voting.facts().can_enter is False
    single = engine(both, eos_ids=())
    single.add(requests[1])
    (alone,) = run(single).values()
    assert tokens_of(outputs[second]) == tokens_of(alone)


def test_an_answer_ends_where_the_context_does(models: list[Any]) -> None:
    voting = engine(models, eos_ids=())
    voting.add(DecodeRequest(np.arange(45, dtype=np.int32), 20))
    (outputs,) = run(voting).values()
    assert (len(outputs), outputs[-1].finish) == (4, "length")
    with pytest.raises(ModelError, match="49 tokens, the model's context holds 48"):
        voting.add(DecodeRequest(np.arange(49, dtype=np.int32), 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": np.array([], dtype=np.int32)}, "at least one integer"),
        ({"prompt": np.array([0.5])}, "at least one integer"),
        ({"prompt": np.array([VOCAB])}, "token ids"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"stop": ("",)}, "stop"),
        ({"stop": "x"}, "stop"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"weights": (1.0,)}, "one entry a member"),
        ({"weights": (0.0, 0.0, 0.0, 0.0)}, "not all 0"),
        ({"weights": (1.0, -1.0, 0.0, 0.0)}, "not negative"),
    ],
)
def test_requests_that_are_refused(models: list[Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(models).add(DecodeRequest(**{"prompt": np.array([1]), "max_new_tokens": 1, **changes}))


def test_members_that_cannot_vote_together(models: list[Any]) -> None:
    odd = [models[0], llama(1, vocab_size=VOCAB + 1)]
    with pytest.raises(ModelError, match="one tokenizer"):
        engine(odd).add(DecodeRequest(np.array([1]), 1))
    with pytest.raises(ValueError, match="weights"):
        VotingEngine(ModelPool(odd), [0, 1], [1.0])
