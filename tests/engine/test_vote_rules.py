"""Label models inside a run, and ensembles that are not boosted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.core._ragged import row_log_softmax
from ensemw2s.core.calibration import fit_temperature
from ensemw2s.core.choices import choice_scores
from ensemw2s.core.label_models import ChoiceVotes, fit_mixture_weights
from ensemw2s.engine.answers import Answers
from ensemw2s.engine.boosting import load_records, unit_weights
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.pipeline import Pipeline
from ensemw2s.engine.votes import Known, read_scores, system_choices, vote, vote_choices
from ensemw2s.errors import ConfigError
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import absolute_paths

MakeConfig = Callable[..., dict[str, Any]]
LEARNS = {"weak__training__epochs": 4, "weak__training__learning_rate": 2e-2}


def boosted(make: MakeConfig, folder: Path, **replace: Any) -> RunContext:
    config = api.as_config(ExperimentConfig.model_validate(make(folder, **LEARNS, **replace)))
    result = api.run(config, until="labels")
    return RunContext(absolute_paths(config), RunStore(result.run_dir), lambda event: None)


@pytest.fixture(scope="module")
def bagged(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    boosting = {"rounds": 3, "method": "bagging"}
    return boosted(make_tiny, tmp_path_factory.mktemp("bagged"), boosting=boosting, vote__rounds="all")


def under(ctx: RunContext, **rule: Any) -> RunContext:
    """The same run with another rule of the vote."""
    config = ctx.config.model_copy(update={"vote": ctx.config.vote.model_copy(update=rule)})
    return RunContext(config, ctx.store, ctx.report)


def systems(ctx: RunContext) -> list[str]:
    return [f"member-{r.attempt:02d}" for r in load_records(ctx)]


def test_bagged_members_vote_equally_and_nothing_is_reweighted(bagged: RunContext) -> None:
    records = load_records(bagged)
    assert [r.alpha for r in records] == [1.0, 1.0, 1.0]
    assert all(r.kept for r in records)
    for record in records:
        weights = unit_weights(bagged, record.attempt)
        assert weights.effective_sample_size() == pytest.approx(len(weights))
    # Each saw its own bootstrap: a bootstrap of n samples leaves some out, so the members differ.
    assert len({r.errors["train"] for r in records}) > 1
    assert all(r.errors["out_of_bag"] is not None for r in records)


def test_seeds_see_all_samples(make_tiny: MakeConfig, tmp_path: Path) -> None:
    ctx = boosted(make_tiny, tmp_path, boosting={"rounds": 2, "method": "seeds"})
    first, second = load_records(ctx)
    assert first.errors["out_of_bag"] is second.errors["out_of_bag"] is None
    assert first.train_tokens == second.train_tokens
    assert not np.array_equal(read_scores(ctx, "member-00", "test"), read_scores(ctx, "member-01", "test"))


def test_rules_against_their_definitions(bagged: RunContext) -> None:
    names = systems(bagged)
    alphas = np.array([3.0, 1.0, 1.0])
    own = np.stack([system_choices(bagged, s, "test").index for s in names])

    def chosen(**rule: Any) -> np.ndarray:
        return vote_choices(under(bagged, **rule), names, alphas, "test").index

    equal = vote_choices(bagged, names, np.ones(3), "test")
    np.testing.assert_array_equal(chosen(label_model="uniform"), equal.index)
    for question, picked in zip(own.T, chosen(label_model="plurality"), strict=True):
        counts = np.bincount(question, minlength=4)
        assert counts[picked] == counts.max()
    truth = bagged.splits["easy_val"].answers
    right = [float((system_choices(bagged, s, "easy_val").index == truth).mean()) for s in names]
    np.testing.assert_array_equal(chosen(label_model="best_single"), own[int(np.argmax(right))])


@pytest.mark.parametrize("model", ["weighted", "geometric", "em_weights", "dawid_skene", "glad"])
@pytest.mark.parametrize("calibrate", [False, True])
def test_every_rule_labels_every_question(bagged: RunContext, model: str, calibrate: bool) -> None:
    """And the same members on the same questions, given as new ones, get the same labels."""
    ctx, names = under(bagged, label_model=model, calibrate=calibrate), systems(bagged)
    stored = vote_choices(ctx, names, np.ones(3), "hard_train")
    assert len(stored.index) == len(bagged.splits["hard_train"].samples)
    assert ((stored.confidence > 0) & (stored.confidence <= 1)).all()
    logprobs = np.stack([read_scores(bagged, s, "hard_train") for s in names])
    fresh = vote(ctx, names, np.ones(3), bagged.splits["hard_train"], logprobs)
    np.testing.assert_array_equal(stored.index, fresh.index)


@pytest.mark.parametrize("model", ["weighted", "em_weights"])
def test_each_member_is_calibrated_by_its_own_temperature(bagged: RunContext, model: str) -> None:
    """Fitted to its scores of easy_val, to which weights are then fitted by the calibrated scores, too."""
    names, alphas = systems(bagged), np.array([3.0, 1.0, 1.0])
    easy, test = bagged.splits["easy_val"], bagged.splits["test"]
    of_truth, of_choices = [], []
    for name in names:
        known = choice_scores(read_scores(bagged, name, "easy_val"), easy.choice_token_offsets, "mean")
        asked = choice_scores(read_scores(bagged, name, "test"), test.choice_token_offsets, "mean")
        temperature = fit_temperature(known, easy.choice_offsets, easy.answers).temperature
        calibrated = row_log_softmax(known / temperature, easy.choice_offsets)
        of_truth.append(calibrated[easy.choice_offsets[:-1] + easy.answers])
        of_choices.append(np.exp(row_log_softmax(asked / temperature, test.choice_offsets)))
    weights = alphas / 5 if model == "weighted" else fit_mixture_weights(np.array(of_truth)).weights
    found = vote_choices(under(bagged, label_model=model, calibrate=True), names, alphas, "test")
    np.testing.assert_allclose(found.soft, weights @ np.array(of_choices), rtol=1e-5)


@pytest.mark.parametrize("model", ["weighted", "geometric", "dawid_skene"])
def test_a_single_teacher_is_calibrated_as_a_member_is(bagged: RunContext, model: str) -> None:
    """Its answers stay; how sure it is must be told in the same way as of the ensemble that it is compared with."""
    name, test, easy = systems(bagged)[0], bagged.splits["test"], bagged.splits["easy_val"]
    known = choice_scores(read_scores(bagged, name, "easy_val"), easy.choice_token_offsets, "mean")
    asked = choice_scores(read_scores(bagged, name, "test"), test.choice_token_offsets, "mean")
    temperature = fit_temperature(known, easy.choice_offsets, easy.answers).temperature
    raw = vote_choices(bagged, [name], np.ones(1), "test")
    found = vote_choices(under(bagged, label_model=model, calibrate=True), [name], np.ones(1), "test")
    np.testing.assert_array_equal(found.index, raw.index)
    np.testing.assert_allclose(
        found.soft, np.exp(row_log_softmax(asked / temperature, test.choice_offsets)), rtol=1e-5
    )
    assert not np.allclose(found.soft, raw.soft)


def test_a_member_that_is_always_right_is_left_as_it_is(bagged: RunContext) -> None:
    """Its likelihood grows as the temperature falls, without end; the bound would make it all of the vote."""
    names, ctx = systems(bagged)[:2], under(bagged, label_model="geometric", calibrate=True)
    known = Known.of(ctx, names, np.ones(2), "mean")
    scores = known.votes.logprobs.copy()
    scores[0, known.votes.offsets[:-1] + known.truth] += 50.0
    votes = ChoiceVotes.from_scores(scores, known.votes.offsets, np.ones(2))
    sure = Known(votes, known.truth)
    assert sure.temperatures == [1.0, known.temperatures[1]]
    logprobs = np.stack([read_scores(bagged, s, "test") for s in names])
    for _ in range(2):
        vote(ctx, names, np.ones(2), bagged.splits["test"], logprobs, known=sure)
    (warning,) = ctx.warnings
    assert warning.startswith(
        f"vote.calibrate: {names[0]} has all of easy_val's {len(known.truth)} questions right"
    )


def test_scores_by_token_have_temperatures_below_a_twentieth() -> None:
    """A member that is right about how sure it is by sums of 40 tokens, and scored by their mean; it is wrong in some questions."""
    rng = np.random.default_rng(0)
    sums = rng.normal(0.0, 2.0, (400, 4))
    shares = np.exp(sums) / np.exp(sums).sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(4, p=row) for row in shares])
    votes = ChoiceVotes.from_scores((sums / 40).reshape(1, -1), np.arange(0, 1601, 4), np.ones(1))
    known = Known(votes, truth)
    assert known.all_right == [False]
    assert known.warnings(["member-00"]) == []
    assert known.temperatures[0] == pytest.approx(1 / 40, rel=0.25)


def test_a_label_model_needs_choices(make_tiny: MakeConfig, free_questions: Path, tmp_path: Path) -> None:
    config = make_tiny(
        tmp_path, data__pool={"kind": "file", "path": str(free_questions)}, vote__label_model="plurality"
    )
    with pytest.raises(ConfigError, match=r"vote.label_model plurality .* needs multiple-choice data"):
        api.run(ExperimentConfig.model_validate(config))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("rule", ["confidence", "agreement"])
def test_students_are_taught_what_is_kept(
    bagged: RunContext, make_tiny: MakeConfig, tmp_path: Path, rule: str
) -> None:
    """Half of the labels, the surest ones; the accuracy of the taught labels is reported beside that of all."""
    import pyarrow.parquet as pq

    boosting = {"rounds": 3, "method": "bagging"}
    config = make_tiny(
        tmp_path,
        **LEARNS,
        boosting=boosting,
        vote__rounds="all",
        labels={"keep_by": rule, "keep": 0.5},
        strong__training__epochs=1,
    )
    result = api.run(ExperimentConfig.model_validate(config))
    rows = pq.read_table(result.run_dir / "labels" / "ensemble.parquet").to_pylist()
    truth = {s.id: s.answer for s in bagged.splits["hard_train"].samples}
    taught = [r for r in rows if r["taught"]]
    assert len(taught) == -(-len(rows) // 2)

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        agreed = float(np.mean([v == row["label"] for v in row["votes"]])) if rule == "agreement" else 0.0
        return agreed, row["confidence"]

    assert min(rank(r) for r in taught) >= max(rank(r) for r in rows if not r["taught"])
    store = RunStore(result.run_dir)
    assert store.require("student-ensemble").info["samples"] == len(taught)
    assert store.require("student-ceiling").info["samples"] == len(rows)
    right = np.mean([truth[r["id"]] == r["label"] for r in taught])
    assert result.results["taught_label_accuracy"]["ensemble"]["value"] == pytest.approx(right)
    assert result.results["taught_label_accuracy"]["ensemble"]["n"] == len(taught)


def test_labels_that_tie_are_taught_by_a_hash_of_their_ids() -> None:
    """Of two alike in agreement and confidence, not the first: their order may be one of difficulty."""
    pipeline = object.__new__(Pipeline)
    pipeline._ctx = SimpleNamespace(
        config=SimpleNamespace(labels=SimpleNamespace(keep_by="agreement", keep=0.5))
    )
    votes = [(0, 0), (1, 1)]
    taught = pipeline._taught(["a", "b"], Answers((0, 0), np.array([0.7, 0.7])), votes)
    assert taught.tolist() == [False, True]


def test_empty_answers_are_not_among_those_that_are_kept() -> None:
    """Half of the answers, not of the questions: an empty one is short, and so looks sure."""
    pipeline = object.__new__(Pipeline)
    for rule, expected in (
        ({"keep_by": "confidence", "keep": 0.5}, [False, True, False]),
        ({"keep_by": "all", "keep": 1.0}, [False, True, True]),
    ):
        pipeline._ctx = SimpleNamespace(config=SimpleNamespace(labels=SimpleNamespace(**rule)))
        answers = Answers(("", "yes", "no"), np.array([0.99, 0.6, 0.4]))
        assert pipeline._taught(["a", "b", "c"], answers, None).tolist() == expected
        nothing = Answers(("", ""), np.array([0.9, 0.8]))
        assert pipeline._taught(["a", "b"], nothing, None).tolist() == [False, False]
