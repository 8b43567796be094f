"""What a request may bring of its own: weights, and a part of the answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.core.sampling import SamplingParams
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeRequest, StepOutput
from ensemw2s.engine.decoding.worker import ModelPool
from tests.engine.voting_models import ALPHAS, VOCAB, engine, run, text, voters


@pytest.fixture(scope="module")
def models() -> list[Any]:
    return voters()


def answer(voting: VotingEngine, request: DecodeRequest) -> list[StepOutput]:
    voting.add(request)
    (outputs,) = run(voting).values()
    return outputs


class TestWeights:
    PROMPT = np.array([7, 2, 30], dtype=np.int32)

    @pytest.mark.parametrize("weights", [(0.3, 0.1, 0.0, 2.0), (0.0, 0.0, 1.0, 0.0), (1.0, 1.0, 1.0, 1.0)])
    @pytest.mark.parametrize(
        "sampling", [SamplingParams(), SamplingParams(0.7, 0.9, 5), SamplingParams(1.0, seed=3)]
    )
    def test_they_are_the_alphas(
        self, models: list[Any], weights: tuple[float, ...], sampling: SamplingParams
    ) -> None:
        """Token by token and bit by bit what an ensemble with these alphas says."""
        request = DecodeRequest(self.PROMPT, 9, sampling=sampling, top_logprobs=3)
        pool = ModelPool(models)
        other = VotingEngine(pool, pool.refs, weights, decode=text, eos_ids=(5, 17), top_k=4)
        expected = [o.decision for o in answer(other, request)]
        assert [o.decision for o in answer(engine(models), replace(request, weights=weights))] == expected
        assert [s is not None for s in expected[0].members] == [w > 0 for w in weights]

    def test_the_ensembles_own_are_the_default(self, models: list[Any]) -> None:
        request = DecodeRequest(self.PROMPT, 9, top_logprobs=3)
        own = [o.decision for o in answer(engine(models), request)]
        assert [o.decision for o in answer(engine(models), replace(request, weights=ALPHAS))] == own


@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), plain=st.booleans(), stop=st.booleans())
def test_an_answer_given_in_part_goes_on_as_it_would_have(
    models: list[Any], seed: int, plain: bool, stop: bool
) -> None:
    rng = np.random.default_rng(seed)
    sampling = SamplingParams(1.0 if plain else 1.7, 1.0, seed)
    prompt = rng.integers(0, VOCAB, rng.integers(1, 9)).astype(np.int32)
    request = DecodeRequest(prompt, 10, stop=("\n", "ab") if stop else (), sampling=sampling)
    whole = answer(engine(models), request)
    tokens = tuple(o.decision.token for o in whole)
    told = "".join(o.text for o in whole)
    for n in range(len(tokens)):
        rest = answer(engine(models), replace(request, given=tokens[:n]))
        assert [o.index for o in rest] == list(range(n, len(tokens)))
        assert tuple(o.decision.token for o in rest) == tokens[n:]
        assert "".join(o.text for o in rest) == told
        assert [(o.finish, o.begins) for o in rest] == [(o.finish, o.begins) for o in whole[n:]]
        expected = [o.decision.probability for o in whole[n:]]
        np.testing.assert_allclose([o.decision.probability for o in rest], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"given": (1, 2, 3)}, "none is left"),
        ({"given": (1, VOCAB)}, "token ids"),
        ({"given": (-1,)}, "token ids"),
        ({"given": (1, 5)}, "has ended"),
        ({"given": (2, 26), "stop": ("\n", text([2, 26]))}, "has ended"),
    ],
)
def test_given_tokens_that_are_refused(models: list[Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine(models).add(DecodeRequest(np.array([1]), 3, **changes))
