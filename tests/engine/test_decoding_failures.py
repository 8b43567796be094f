"""Members that are restarted, or gone, in the middle of a vote."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemw2s.core.sampling import SamplingParams
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeRequest
from ensemw2s.engine.decoding.round import NoVoter
from ensemw2s.engine.decoding.worker import ModelPool, SessionLost
from ensemw2s.errors import WorkerFailure
from tests.engine.voting_models import ALPHAS, reference, run, tokens_of, voters

PLAIN = SamplingParams(1.0, seed=11)


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return voters()


class Failing:
    """A pool whose members fail where told: (method, slot) -> errors to raise before it works again."""

    def __init__(self, pool: ModelPool, failures: dict[tuple[str, int], list[Exception]]) -> None:
        self.pool, self.failures, self.size = pool, failures, pool.size
        self.steps = 0

    def submit(self, slot: int, method: str, *args: Any) -> Any:
        self.steps += method == "decode_step"
        pending = self.failures.get((method, slot), [])
        if pending and self.steps > 6:
            if isinstance(pending[0], SessionLost):
                self.pool._worker.end(str(slot))
            raise pending.pop(0)
        return self.pool.submit(slot, method, *args)


@pytest.mark.parametrize("method", ["decode_step", "decode_exact", "decode_more", "decode_full"])
def test_a_restarted_member_reads_the_texts_again(models: list[Any], method: str) -> None:
    requests = [
        DecodeRequest(np.array([i, 2], dtype=np.int32), 7, sampling=s)
        for i, s in enumerate((SamplingParams(), PLAIN, SamplingParams(2.0, 0.9, 4)))
    ]
    expected = [reference(models, r)[0] for r in requests]
    failures: Any = {(method, 1): [SessionLost("restarted"), SessionLost("again")]}
    failures[method, 3] = [SessionLost("restarted")]
    pool = Failing(ModelPool(models), failures)
    voting = VotingEngine(pool, pool.pool.refs, ALPHAS, eos_ids=(5, 17), top_k=1)
    for request in requests:
        voting.add(request)
    outputs = run(voting)
    assert not any(failures.values())
    assert voting.counts.losses in (2, 3)  # two at once count once
    assert [tokens_of(o) for _, o in sorted(outputs.items())] == expected


def test_a_member_that_is_gone(models: list[Any]) -> None:
    """Without a quorum the error is raised and the requests are kept; with one the others go on, and say so."""
    prompt = np.array([4, 4], dtype=np.int32)
    dead = {("decode_step", 0): [WorkerFailure("gone")]}
    pool = Failing(ModelPool(models), dead)
    voting = VotingEngine(pool, pool.pool.refs, ALPHAS, top_k=8)
    voting.add(DecodeRequest(prompt, 6))
    seen = [*voting.step(), *voting.step()]
    with pytest.raises(WorkerFailure, match="gone"):
        voting.step()
    assert voting.pending == 1
    seen += [o for outputs in run(voting).values() for o in outputs]
    assert [o.decision.token for o in seen] == reference(models, DecodeRequest(prompt, 6))[0]

    pool = Failing(ModelPool(models), {("decode_step", 0): [WorkerFailure("gone")]})
    voting = VotingEngine(pool, pool.pool.refs, ALPHAS, top_k=8, quorum=2)
    voting.add(DecodeRequest(prompt, 6))
    seen = [o for _ in range(4) for o in voting.step()]
    assert voting.absent == (0,)
    assert [o.decision.members[0] is None for o in seen] == [False, False, True, True]
    voting.restore(0)
    pool.failures["decode_end", 1] = [WorkerFailure("gone, too")]
    (back,) = voting.step()
    assert back.decision.members[0] is not None
    assert voting.absent == ()
    (last,) = voting.step()  # a member that fails when its rows are freed takes no answer away
    assert last.finish == "length"
    assert not pool.failures["decode_end", 1]


def test_a_request_all_of_whose_voters_are_gone_holds_up_nobody(models: list[Any]) -> None:
    """It is named, and once it is given up the others go on."""
    prompt = np.array([4, 4], dtype=np.int32)
    pool = Failing(ModelPool(models), {("decode_step", 0): [WorkerFailure("gone")]})
    voting = VotingEngine(pool, pool.pool.refs, ALPHAS, top_k=8, quorum=2)
    other = DecodeRequest(prompt, 6, weights=(0.0, 1.0, 0.0, 1.0))
    kept, alone = voting.add(other), voting.add(DecodeRequest(prompt, 6, weights=(1.0, 0.0, 0.0, 0.0)))
    seen = [o for _ in range(2) for o in voting.step()]
    for _ in range(2):
        with pytest.raises(NoVoter) as caught:
            voting.step()
        assert caught.value.requests == (alone,)
    voting.cancel(alone)
    outputs = [o for o in seen if o.request == kept] + run(voting)[kept]
    assert [o.decision.token for o in outputs] == reference(models, other)[0]
