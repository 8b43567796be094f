"""Members of one process are asked as one, and adapters of one base vote as if each had its own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.core.sampling import SamplingParams
from ensemw2s.data.samples import Sample
from ensemw2s.engine import held
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeRequest, StepOutput
from ensemw2s.engine.decoding.worker import ModelPool, SessionLost
from ensemw2s.engine.pool import Done
from ensemw2s.engine.together import TogetherPool, share_bases
from ensemw2s.errors import WorkerFailure
from ensemw2s.models.adapters import SharedBase
from tests.engine.voting_models import Knowing

MakeConfig = Callable[..., dict[str, Any]]
LORA = {"rank": 4, "alpha": 16.0}


@pytest.fixture(scope="module")
def run_dir(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three members that are adapters of one base, labelled so far."""
    config = make_tiny(tmp_path_factory.mktemp("lora"), boosting={"rounds": 3, "method": "bagging"})
    config["weak"]["models"][0]["lora"] = LORA
    config["vote"].update(rounds="all", stop=[])
    config["weak"]["training"]["epochs"] = 1
    result = api.run(api.as_config(ExperimentConfig.model_validate(config)), until="labels")
    return result.run_dir


def opened(run_dir: Path, *, shared: bool) -> api.LoadedEnsemble:
    """The ensemble, with members on one base or not."""
    ensemble = api.load_ensemble(run_dir)
    runtime = ensemble._ctx.config.runtime.model_copy(update={"share_bases": shared})
    ctx_config = ensemble._ctx.config.model_copy(update={"runtime": runtime})
    from ensemw2s.engine.pool import LocalExecutor

    executor = LocalExecutor(ctx_config, ensemble._ctx.run_dir, threads=1, report=lambda event: None)
    return api.LoadedEnsemble(ensemble._ctx, ensemble._ensemble, executor.pool())


def models_of(ensemble: api.LoadedEnsemble) -> list[Any]:
    pool: Any = ensemble._pool
    return list(pool._supervisor._models._held.values())


def test_a_run_labels_and_generates_the_same(run_dir: Path) -> None:
    """From Python as from the command line: one base is loaded, and nothing else changes."""
    together, alone = (opened(run_dir, shared=shared) for shared in (True, False))
    questions = [
        Sample(f"n{i}", f"the {animal} in the barn", ("buzz loud", "hiss low"), None)
        for i, animal in enumerate(("cat", "dog", "hen"))
    ]
    mine, theirs = together.label(questions), alone.label(questions)
    assert mine.column("label").to_pylist() == theirs.column("label").to_pylist()
    assert mine.column("votes").to_pylist() == theirs.column("votes").to_pylist()
    np.testing.assert_allclose(mine.column("confidence"), theirs.column("confidence"), atol=1e-5)
    for question in ("the cat in the barn", "the lynx", "a"):
        a, b = together.generate(question, max_new_tokens=12), alone.generate(question, max_new_tokens=12)
        assert (a.tokens, a.text, a.member_tokens) == (b.tokens, b.text, b.member_tokens)
        np.testing.assert_allclose(a.probabilities, b.probabilities, atol=1e-5)
    (base,) = models_of(together)
    assert isinstance(base, SharedBase)
    assert base.n_members == 3
    assert len(models_of(alone)) == 3


def test_what_a_member_says_by_itself_goes_through_the_base_too(run_dir: Path) -> None:
    together, alone = (opened(run_dir, shared=shared) for shared in (True, False))
    refs = list(together._ensemble.refs)
    texts = [(np.array([3, 4], dtype=np.int32), (np.array([5, 6, 7], dtype=np.int32),))]
    pools = [share_bases(e._pool, refs) for e in (together, alone)]
    for some in (refs[1:2], refs[:2]):
        mine, theirs = (
            [p.result().logprobs for p in [pool.submit(0, "score_texts", ref, texts, "x") for ref in some]]
            for pool in pools
        )
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    (base,) = models_of(together)
    assert isinstance(base, SharedBase)
    ends = [pool.submit(0, "end_of_text", refs[2]).result() for pool in pools]
    assert ends[0] == ends[1]
    # Members that vote by themselves again have whole models again.
    share_bases(together._pool, refs[:1])
    together._pool.submit(0, "share_bases", []).result()
    assert models_of(together) == []


def test_adapters_that_turn_out_odd_are_loaded_one_by_one(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "load_shared", lambda *args, **settings: None)
    odd, alone = opened(run_dir, shared=True), opened(run_dir, shared=False)
    a, b = odd.generate("the cat"), alone.generate("the cat")
    assert (a.tokens, a.probabilities) == (b.tokens, b.probabilities)


def requests(rng: np.random.Generator, n: int) -> list[DecodeRequest]:
    sampling = (SamplingParams(), SamplingParams(), SamplingParams(1.0, seed=3), SamplingParams(0.8, 0.9, 5))
    weights = (None, None, (0.0, 1.0, 2.0), (1.0, 0.0, 0.0))
    return [
        DecodeRequest(
            np.array([i, *rng.integers(0, 300, rng.integers(1, 14))], dtype=np.int32),
            int(rng.integers(1, 9)),
            sampling=sampling[int(rng.integers(4))],
            weights=weights[int(rng.integers(4))],
            eos_ids=(),
        )
        for i in range(n)
    ]


@functools.cache
def voting_models(run_dir: Path) -> tuple[list[Any], list[Any]]:
    together, alone = (opened(run_dir, shared=shared) for shared in (True, False))
    refs = list(together._ensemble.refs)
    own: list[Any] = []
    for ensemble in (together, alone):
        pool: Any = ensemble._pool
        share_bases(pool, refs)
        pool.submit(0, "keep_models", 3)
        own.append([pool._supervisor._models.voting(ref) for ref in refs])
    return own[0], own[1]


@settings(max_examples=8)
@given(seed=st.integers(0, 10_000), lost=st.booleans(), drafting=st.booleans())
def test_the_vote_is_that_of_separate_members(run_dir: Path, seed: int, lost: bool, drafting: bool) -> None:
    """Ragged rows that enter and leave, own weights, sampling, drafts, a member that loses its rows: token by token."""
    rng = np.random.default_rng(seed)
    asked = requests(rng, 6)
    together, alone = voting_models(run_dir)
    shared = ModelPool(together)
    shared.size = 1
    outputs: list[dict[int, list[StepOutput]]] = []
    for pool in (ModelPool(alone), TogetherPool(shared)):
        order = np.random.default_rng(seed)
        voting = VotingEngine(pool, [0, 1, 2], [0.9, 0.5, 0.7], top_k=4, max_rows=3)
        if outputs and drafting:
            tokens = {i: [o.decision.token for o in found] for i, found in outputs[0].items()}
            answers = {tuple(asked[i].prompt.tolist()): answer for i, answer in tokens.items()}
            voting._drafter = Knowing(answers, seed, 0.8)  # type: ignore[assignment]
        found: dict[int, list[StepOutput]] = {}
        added = 0
        while added < len(asked) or voting.pending:
            for _ in range(int(order.integers(0, 3))):
                if added < len(asked):
                    voting.add(asked[added])
                    added += 1
            if lost and voting.counts.steps == 3:
                (pool if isinstance(pool, ModelPool) else shared)._worker.end("1")
            for output in voting.step():
                found.setdefault(output.request, []).append(output)
        outputs.append(found)
    for number, theirs in outputs[0].items():
        mine = outputs[1][number]
        assert [o.decision.token for o in mine] == [o.decision.token for o in theirs]
        np.testing.assert_allclose(
            [o.decision.probability for o in mine], [o.decision.probability for o in theirs], atol=1e-5
        )
        for a, b in zip(mine, theirs, strict=True):
            says = [None if s is None else s.tokens for s in a.decision.members]
            assert says == [None if s is None else s.tokens for s in b.decision.members]


class Recorder:
    """Answers with what it was asked."""

    def __init__(self, size: int) -> None:
        self.size, self.asked = size, []  # type: ignore[var-annotated]

    def submit(self, slot: int, method: str, *args: Any) -> Any:
        self.asked.append((slot, method))
        if method == "decode_steps":
            lost = SessionLost("restarted")
            return Done([lost if step == "lost" else (ref, step) for ref, step in args[0]])
        if method == "score_texts_together":
            return Done([(ref, *args[1:]) for ref in args[0]])
        if args[-1] == "broken":
            raise WorkerFailure("broken")
        return Done(args)


def test_calls_are_joined_by_worker_and_kept_in_order() -> None:
    inner = Recorder(2)
    pool = TogetherPool(inner)
    steps = [pool.submit(m, "decode_step", m, f"s{m}" if m != 3 else "lost") for m in range(5)]
    assert inner.asked == []
    assert pool.submit(0, "decode_end", 0).result() == (0,)
    assert inner.asked == [(0, "decode_steps"), (1, "decode_steps"), (0, "decode_end")]
    assert [steps[m].result() for m in (4, 0, 1, 2)] == [(4, "s4"), (0, "s0"), (1, "s1"), (2, "s2")]
    with pytest.raises(SessionLost):
        steps[3].result()
    texts, others = [("a", "b")], [("c", "d")]
    scores = [pool.submit(0, "score_texts", m, t, "x") for m, t in enumerate((texts, texts, others))]
    assert [s.result() for s in scores] == [(0, texts, "x"), (1, texts, "x"), (2, others, "x")]
    assert inner.asked[3:] == [(0, "score_texts_together"), (0, "score_texts")]
    broken = pool.submit(1, "decode_step", 1, "broken")
    for _ in range(2):
        with pytest.raises(WorkerFailure, match="broken"):
            broken.result()


def test_only_members_of_one_process_are_joined() -> None:
    pool = Recorder(3)
    assert share_bases(pool, ["a", "b", "c"]) is pool  # type: ignore[list-item]
    assert pool.asked == []
    joined = share_bases(pool, ["a", "b", "c", "d"])  # type: ignore[list-item]
    assert isinstance(joined, TogetherPool)
    assert [call for call in pool.asked if call[1] == "share_bases"] == [(s, "share_bases") for s in range(3)]
    assert share_bases(joined, ["a", "b", "c", "d"]) is joined  # type: ignore[list-item]
