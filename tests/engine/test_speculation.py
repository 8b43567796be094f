"""Drafted tokens change how many steps an answer takes, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.core.sampling import SamplingParams
from ensemw2s.engine.decoding.drafts import LONGEST, TOKEN_COST, NgramDraft, NgramDrafter, best_length
from ensemw2s.engine.decoding.engine import LOGIT_SIZE, VotingEngine
from ensemw2s.engine.decoding.messages import DecodeRequest, StepOutput
from ensemw2s.engine.decoding.worker import ModelPool
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.together import TogetherPool
from ensemw2s.errors import WorkerFailure
from tests.engine.voting_models import ALPHAS, VOCAB, Knowing, engine, llama, run, text, tokens_of, voters


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return voters()


def some_requests(rng: np.random.Generator, n: int) -> list[DecodeRequest]:
    sampling = (SamplingParams(), SamplingParams(), SamplingParams(1.0, seed=4), SamplingParams(0.7, 0.8, 9))
    weights = (None, None, (0.0, 2.0, 1.0, 0.0))
    return [
        DecodeRequest(
            np.array([i, *rng.integers(0, VOCAB, rng.integers(0, 12))], dtype=np.int32),
            int(rng.integers(3, 16)),
            stop=("\n",) if rng.random() < 0.3 else (),
            eos_ids=tuple(rng.integers(4, VOCAB, 5).tolist()),
            sampling=sampling[int(rng.integers(4))],
            top_logprobs=int(rng.integers(0, 3)),
            weights=weights[int(rng.integers(3))],
            given=(3, 1) if rng.random() < 0.2 else (),
        )
        if rng.random() < 0.9
        else DecodeRequest(np.array([i, *range(40)], dtype=np.int32), 20, eos_ids=())
        for i in range(n)
    ]


def decode(
    voting: VotingEngine, requests: Sequence[DecodeRequest], seed: int, at_step: Any = None
) -> dict[int, list[StepOutput]]:
    """Requests that come at random times."""
    rng = np.random.default_rng(seed)
    outputs: dict[int, list[StepOutput]] = {}
    added = 0
    while added < len(requests) or voting.pending:
        for _ in range(int(rng.integers(0, 3))):
            if added < len(requests):
                voting.add(requests[added])
                added += 1
        if at_step is not None:
            at_step(voting.counts.steps)
        for output in voting.step():
            outputs.setdefault(output.request, []).append(output)
    return outputs


@settings(max_examples=14)
@given(
    seed=st.integers(0, 10_000),
    top_k=st.sampled_from([1, 4, VOCAB]),
    right=st.sampled_from([0.0, 0.6, 0.9, 1.0]),
    joined=st.booleans(),
    lost=st.sampled_from([None, 1, 3, 5]),
)
def test_the_answers_are_those_of_single_steps(
    models: list[Any], seed: int, top_k: int, right: float, joined: bool, lost: int | None
) -> None:
    """Any drafts, requests of all kinds entering and leaving, a member that loses its rows: text by text the same."""
    requests = some_requests(np.random.default_rng(seed), 6)
    expected = decode(engine(models, top_k=top_k, max_rows=3), requests, seed)
    answers = {
        tuple(r.prompt.tolist()): [*r.given, *(o.decision.token for o in expected[i])]
        for i, r in enumerate(requests)
    }
    inner = ModelPool(models)
    pool: SupervisorPool = inner
    if joined:
        inner.size = 1
        pool = TogetherPool(inner)
    voting = VotingEngine(
        pool, inner.refs if not joined else list(range(4)), ALPHAS, decode=text, top_k=top_k, max_rows=3
    )
    voting._drafter = Knowing(answers, seed, right)  # type: ignore[assignment]

    def lose(step: int) -> None:
        if step == lost:
            inner._worker.end("1")

    got = decode(voting, requests, seed, lose)
    assert got.keys() == expected.keys()
    for i, theirs in expected.items():
        mine = got[i]
        assert [o.decision.token for o in mine] == [o.decision.token for o in theirs]
        assert [(o.index, o.text, o.finish, o.begins) for o in mine] == [
            (o.index, o.text, o.finish, o.begins) for o in theirs
        ]
        for a, b in zip(mine, theirs, strict=True):
            assert a.decision.probability == pytest.approx(b.decision.probability, rel=1e-4, abs=1e-6)
            assert [t for t, _ in a.decision.top] == [t for t, _ in b.decision.top]
            assert [s and s.tokens for s in a.decision.members] == [
                s and s.tokens for s in b.decision.members
            ]
    assert voting.counts.decisions == sum(map(len, expected.values()))
    if right == 0.0:
        assert voting.counts.stood <= voting.counts.drafted / 4


def test_right_drafts_save_steps_and_wrong_ones_none(models: list[Any]) -> None:
    prompt = np.array([3, 1, 4], dtype=np.int32)
    request = DecodeRequest(prompt, 12, eos_ids=())
    plain = engine(models, eos_ids=())
    plain.add(request)
    answer = tokens_of(run(plain)[0])
    assert plain.counts.steps == 12

    class All(Knowing):
        def propose(self, texts: Any, most: Any, rows: int) -> dict[int, list[int]]:
            return {i: self.answers[3, 1, 4][11 - n :][: min(4, n)] for i, n in most.items()}

    for known, steps, drafted, stood in ((answer, 4, 8, 8), ([(t + 1) % VOCAB for t in answer], 12, 34, 0)):
        voting = engine(models, eos_ids=())
        voting._drafter = All({(3, 1, 4): known}, 0, 1.0)  # type: ignore[assignment]
        voting.add(request)
        assert tokens_of(run(voting)[0]) == answer
        # One step reads the prompt; 1 + 4, 1 + 4 and 1 + 0 tokens follow, or one each.
        assert (voting.counts.steps, voting.counts.drafted, voting.counts.stood) == (steps, drafted, stood)


@pytest.mark.parametrize("end", ["eos", "stop", "length"])
def test_an_answer_ends_inside_of_a_draft(models: list[Any], end: str) -> None:
    prompt = np.array([3, 1, 4], dtype=np.int32)
    free = engine(models, eos_ids=())
    free.add(DecodeRequest(prompt, 12))
    answer = tokens_of(run(free)[0])
    at = answer.index(answer[4])
    request = {
        "eos": DecodeRequest(prompt, 12, eos_ids=(answer[4],)),
        "stop": DecodeRequest(prompt, 12, stop=(text(answer)[at],), eos_ids=()),
        "length": DecodeRequest(prompt, at + 1, eos_ids=()),
    }[end]
    voting = engine(models)
    voting._drafter = Knowing({(3, 1, 4): answer}, 0, 1.0)  # type: ignore[assignment]
    voting._drafter.propose = (
        lambda texts, most, rows: {  # type: ignore[method-assign, union-attr, assignment]
            i: answer[len(texts[i][1]) :][: 7 if end != "length" else limit] for i, limit in most.items()
        }
    )
    voting.add(request)
    first = voting.step()
    rest = voting.step()
    assert [o.decision.token for o in (*first, *rest)] == answer[: at + 1]
    assert rest[-1].finish == end
    assert (voting.pending, voting.running) == (0, 0)


class Dying(ModelPool):
    """The first member is gone when four tokens are there."""

    voting: VotingEngine

    def submit(self, slot: int, method: str, *args: Any) -> Any:
        if slot == 0 and method == "decode_step" and self.voting.counts.decisions >= 4:
            raise WorkerFailure("gone")
        return super().submit(slot, method, *args)


def test_a_member_is_lost_for_good_in_the_middle(models: list[Any]) -> None:
    """The others go on, from the same text, with drafts and without."""
    prompt = np.array([4, 4], dtype=np.int32)
    found = []
    for drafting in (False, True):
        pool = Dying(models)
        voting = VotingEngine(pool, pool.refs, ALPHAS, top_k=4, quorum=2)
        pool.voting = voting
        if drafting:
            voting._drafter = Knowing({(4, 4): found[0]}, 1, 1.0)  # type: ignore[assignment]
            voting._drafter.propose = (
                lambda texts, most, rows: {  # type: ignore[method-assign, union-attr, assignment]
                    i: found[0][len(texts[i][1]) :][: 3 - len(texts[i][1]) if len(texts[i][1]) < 4 else 3]
                    for i in most
                }
            )
        voting.add(DecodeRequest(prompt, 12, eos_ids=()))
        outputs = run(voting)[0]
        assert voting.absent == (0,)
        assert [o.decision.members[0] is None for o in outputs] == [False] * 4 + [True] * 8
        found.append(tokens_of(outputs))
    assert found[0] == found[1]


def test_the_text_itself_drafts(models: list[Any]) -> None:
    """A model that repeats itself is drafted from what it said before; nothing changes but the number of steps."""
    ids = np.tile(np.array([7, 8, 9, 10], dtype=np.int32), 6)
    for prompts in ([ids], [ids, ids[:9], np.array([1, 2])]):
        answers, counts = [], []
        for speculate in ("off", "ngram", "auto"):
            voting = engine(models, speculate=speculate, eos_ids=())
            numbers = [voting.add(DecodeRequest(p, 20, eos_ids=())) for p in prompts]
            outputs = run(voting)
            answers.append([tokens_of(outputs[n]) for n in numbers])
            counts.append(voting.counts)
        assert answers[0] == answers[1] == answers[2]
        assert counts[0].drafted == 0
        assert counts[1].drafted == counts[2].drafted > 0
    with pytest.raises(ValueError, match="off or ngram"):
        engine(models, speculate="always")


@pytest.mark.parametrize(("speculate", "drafts"), [("auto", False), ("ngram", True)])
def test_half_precision_drafts_only_when_it_is_told_to(speculate: str, drafts: bool) -> None:
    voting = engine([copy.deepcopy(model).bfloat16() for model in voters()], speculate=speculate, eos_ids=())
    voting.add(DecodeRequest(np.tile(np.array([7, 8, 9, 10], dtype=np.int32), 6), 20, eos_ids=()))
    run(voting)
    assert (voting.counts.drafted > 0) is drafts


def test_what_followed_before_is_proposed() -> None:
    draft = NgramDraft(np.array([1, 2, 3, 4, 1, 2]))
    assert draft.propose(9) == [3, 4, 1, 2, 3, 4, 1, 2, 3]  # as if it went on like that
    assert draft.propose(2) == [3, 4]
    draft.extend([5, 1, 2])
    assert draft.propose(3) == [5, 1, 2]  # the latest time counts
    draft.extend([3])
    assert draft.propose(1) == [4]  # 1 2 3 and 2 3: the longer match
    draft.extend([9])
    assert draft.propose(3) == []
    assert NgramDraft(np.array([6])).propose(3) == []


def test_chances_are_learnt_from_what_came() -> None:
    """Judged up to the first token that did not stand, whether it was drafted or not; a new text begins with what others taught."""
    again = np.tile([1, 2, 3], 4)
    drafter = NgramDrafter()
    drafter.propose({0: (again, [1])}, {0: 5}, 1)
    assert drafter._drafts[0].chance.value == 0.5
    drafter.learn(0, [2, 3])
    # (0.5 * 0.9 + 1) * 0.9 + 1 of (1 * 0.9 + 1) * 0.9 + 1
    assert drafter._drafts[0].chance.value == pytest.approx(2.305 / 2.71)
    drafter.propose({0: (again, [1, 2, 3])}, {0: 5}, 1)
    drafter.learn(0, [5, 2, 3])
    assert drafter._drafts[0].chance.value == pytest.approx(2.305 * 0.9 / (2.71 * 0.9 + 1))
    drafter.learn(7, [1])
    for i in range(1, 40):
        drafter.propose({i: (again, [1])}, {i: 5}, 1)
        drafter.learn(i, [9])
    assert drafter.propose({50: (again, [1])}, {50: 5}, 1) == {}
    for i in range(51, 300):
        drafter.propose({i: (again, [1])}, {i: 5}, 1)
        drafter.learn(i, [2, 3, 1, 2, 3])
    assert drafter.propose({400: (again, [1])}, {400: 5}, 1) == {400: [2, 3, 1, 2, 3]}


def test_the_best_length() -> None:
    assert best_length({}, 3) == 0
    assert best_length({0: (3, 0.99)}, 1) == 3
    assert best_length({0: (LONGEST, 0.99)}, 1) == LONGEST
    assert best_length({0: (3, TOKEN_COST / 2)}, 1) == 0
    # A draft of one text among many costs all of them.
    assert best_length({0: (3, 0.9)}, 20) == 0
    chance = 0.5
    gains = [(1 + sum(chance**j for j in range(1, d + 1))) / (1 + TOKEN_COST * (1 + d)) for d in range(5)]
    assert best_length({0: (4, chance)}, 1) == int(np.argmax(gains))


def test_a_drafter_forgets_texts_that_are_gone() -> None:
    drafter = NgramDrafter()
    again = np.tile([1, 2, 3], 4)
    assert drafter.propose({0: (again, [1]), 1: (again, [9])}, {0: 5, 1: 5}, 2) == {0: [2]}
    drafter.learn(0, [2, 3])
    drafter.learn(1, [4])
    assert drafter.propose({1: (again, [9, 4])}, {}, 1) == {}
    assert list(drafter._drafts) == [1]
    # The text goes on where it was.
    assert drafter.propose({1: (again, [9, 4, 2, 3, 1])}, {1: 1}, 1) == {1: [2]}


def test_leads_within_rounding_are_counted() -> None:
    """In bfloat16 a lead of an eighth in the logarithm may be rounding; a runner-up's bound is never below its value."""
    half = [llama(seed, initializer_range=0.2).to(torch.bfloat16) for seed in range(3)]
    for top, k in ((2, 4), (0, 1), (0, VOCAB)):
        pool = ModelPool(half)
        voting = VotingEngine(pool, pool.refs, [1.0, 2.0, 1.5], top_k=k)
        for i in range(6):
            voting.add(DecodeRequest(np.array([i, 3]), 6, eos_ids=(), top_logprobs=top))
        outputs = [o.decision for found in run(voting).values() for o in found]
        assert voting.facts().rounding == 2.0**-7
        leads = np.array([np.log(d.probability / d.runner_up) for d in outputs])
        assert voting.counts.close == (leads <= LOGIT_SIZE * 2.0**-7).sum()
        if top:
            second = [d.top[1][1] for d in outputs]
            assert all(d.runner_up >= p for d, p in zip(outputs, second, strict=True))
            exact = leads <= np.log([d.probability / p for d, p in zip(outputs, second, strict=True)]) + 1e-9
            assert exact.all()
            assert 0 < voting.counts.close < len(outputs)
    plain = engine(voters())
    plain.add(DecodeRequest(np.array([1]), 4, eos_ids=()))
    run(plain)
    assert plain.counts.close == 0
