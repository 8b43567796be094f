"""The rounds with every unit and every way of reweighting, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ensemw2s import api
from ensemw2s.config import BoostingConfig, ExperimentConfig
from ensemw2s.core.boosting import BoostingState, Units, draw_round, member_weight, reweight
from ensemw2s.engine import checks
from ensemw2s.engine.boosting import Boosting, MemberRecord, unit_weights
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.pool import LocalExecutor
from ensemw2s.engine.prepare import begin_run, check_directory, prepare
from ensemw2s.engine.unit_errors import UnitErrors, build_units
from ensemw2s.errors import ConfigError, UserError
from ensemw2s.models.loading import load_model
from ensemw2s.models.storage import load_saved
from tests.conftest import SOUNDS

MakeConfig = Callable[..., dict[str, Any]]


def boost(config: dict[str, Any]) -> tuple[RunContext, list[Any]]:
    parsed = api.as_config(ExperimentConfig.model_validate(config))
    store = check_directory(parsed)
    prepared = prepare(parsed)
    begin_run(prepared, store, 0)
    ctx = RunContext(prepared.absolute, store, lambda event: None)
    executor = LocalExecutor(prepared.absolute, store.folder, threads=1, report=ctx.report)
    return ctx, Boosting(ctx, executor.pool()).run()


@pytest.mark.parametrize(
    "boosting",
    [
        {"unit": "token", "reweight": "loss", "prior": "unigram", "error_on": "easy_val"},
        {
            "unit": "window",
            "window": 2,
            "reweight": "token_bootstrap",
            "prior": "warmup",
            "error_on": "out_of_bag",
        },
        {"unit": "sample", "wrong_share": 0.5, "reweight": "sample_bootstrap", "prior": "pretrained"},
        {"unit": "choice", "reweight": "sample_bootstrap", "prior": "chance", "sample_weight": "sum"},
        {"unit": "token", "reweight": "token_bootstrap", "prior": "classes", "learning_rate": 0.3},
    ],
    ids=lambda b: f"{b['unit']}-{b['reweight']}-{b['prior']}",
)
def test_units_and_reweighting(make_tiny: MakeConfig, tmp_path: Path, boosting: dict[str, Any]) -> None:
    config = make_tiny(
        tmp_path,
        boosting={"rounds": 2, **boosting},
        weak__training__epochs=4,
        weak__training__learning_rate=2e-2,
    )
    ctx, records = boost(config)
    kept = [r for r in records if r.kept]
    assert 1 <= len(kept) <= 2
    uniform = None
    for record in kept:
        chosen = record.errors[boosting.get("error_on", "train")]
        assert record.error == (record.errors["train"] if chosen is None else chosen)
        alpha = member_weight(
            record.error, prior_error=record.prior_error, learning_rate=boosting.get("learning_rate", 1.0)
        )
        assert record.alpha == pytest.approx(alpha)
        weights = unit_weights(ctx, record.attempt).dense()
        if uniform is None:
            # After the first round there are two levels of weight, exp(alpha) apart.
            levels = np.unique(weights.round(15))
            assert len(levels) == 2
            assert levels[1] / levels[0] == pytest.approx(np.exp(record.alpha), rel=1e-6)
            uniform = np.full(len(weights), 1 / len(weights))
            wrong = weights > weights.mean()
            np.testing.assert_allclose(weights, reweight(uniform, wrong, record.alpha), rtol=1e-9)
    for record in records:
        check_errors(ctx, record, records)


@pytest.mark.parametrize("prior", ["pretrained", "warmup", "unigram", "classes", "chance"])
def test_the_prior_error_is_what_its_name_says(make_tiny: MakeConfig, tmp_path: Path, prior: str) -> None:
    """Of whole answers where a model is asked, else of tokens; by a plain forward of the model itself."""
    unit = {"pretrained": "sample", "warmup": "sample", "chance": "choice"}.get(prior, "token")
    boosting = {"rounds": 1, "unit": unit, "prior": prior, "prior_warmup_steps": 5}
    config = api.as_config(
        ExperimentConfig.model_validate(
            make_tiny(tmp_path, boosting=boosting, weak__training__learning_rate=3e-2)
        )
    )
    store = check_directory(config)
    prepared = prepare(config)
    begin_run(prepared, store, 0)
    ctx = RunContext(prepared.absolute, store, lambda event: None)
    executor = LocalExecutor(prepared.absolute, store.folder, threads=1, report=ctx.report)
    split = ctx.splits["easy_train"]
    warmed: list[Any] = []

    class Watched:
        """The pool, with what the warm-up trained."""

        def __init__(self, pool: Any) -> None:
            self.pool = pool

        def submit(self, slot: int, method: str, *args: Any) -> Any:
            pending = self.pool.submit(slot, method, *args)
            if method == "train_member":
                pending.result()
                warmed.append(load_saved(args[0].output, device="cpu", dtype=torch.float32))
            return pending

    found = UnitErrors(ctx, Watched(executor.pool())).prior(0)  # type: ignore[arg-type]
    if prior == "unigram":
        tokens = np.concatenate(split.targets)
        expected = 1 - np.bincount(tokens).max() / len(tokens)
    elif prior == "classes":
        expected = 1 - 1 / len(ctx.splits.tokenizer)
    elif prior == "chance":
        expected = 1 - 1 / len(SOUNDS)
    else:
        model = warmed[0] if prior == "warmup" else None
        assert (model is None) == (prior == "pretrained")
        model = model or load_model(prepared.absolute.weak.models[0], device="cpu", dtype=torch.float32)
        wrong = []
        for encoded, target in zip(split.encoded, split.targets, strict=True):
            ids = torch.tensor(np.concatenate([encoded.prompt, target]))[None].long()
            with torch.inference_mode():
                said = model(ids).logits[0, len(encoded.prompt) - 1 : -1].argmax(-1).numpy()
            # An answer is missed where any of its tokens is.
            wrong.append(bool((said != target).any()))
        expected = np.mean(wrong)
        assert 0 < expected <= 1
    assert found == pytest.approx(expected, abs=1e-12)


def check_errors(ctx: RunContext, record: MemberRecord, records: list[MemberRecord]) -> None:
    """By the weights that the round began with, of all units and of those not drawn; plain on easy_val."""
    data, config = ctx.splits["easy_train"], ctx.config.boosting
    units = build_units(config, data)
    before = np.full(units.n_units, 1 / units.n_units)
    if record.attempt > 0:
        before = unit_weights(ctx, record.attempt - 1).dense()
    with np.load(ctx.run_dir / "boosting" / f"state-{record.attempt:02d}.npz") as stored:
        wrong = np.unpackbits(stored["wrong"], count=units.n_units).astype(bool)
    assert record.errors["train"] == pytest.approx(before[wrong].sum())
    kept = sum(r.kept for r in records[: record.attempt])
    rng = np.random.default_rng([ctx.config.seed, 101, record.attempt])
    offsets, how = data.target_offsets, config.sample_weight
    draw = draw_round(kept, config.reweight, units.spread(before), offsets, rng, how)
    outside = units.whole(draw.out_of_bag)
    out_of_bag = None
    levels = [before == weight for weight in np.unique(before)]
    seen = [own for own in levels if outside[own].sum() >= 10]
    if sum(before[own].sum() for own in seen) >= 0.9:
        missed = [wrong[own & outside].mean() for own in seen]
        out_of_bag = pytest.approx(np.average(missed, weights=[before[own].sum() for own in seen]))
    assert record.errors["out_of_bag"] == out_of_bag
    pool = LocalExecutor(ctx.config, ctx.run_dir, threads=1, report=ctx.report).pool()
    mistakes, _ = UnitErrors(ctx, pool).wrong(0, record.ref(ctx.run_dir), "easy_val")
    assert record.errors["easy_val"] == pytest.approx(mistakes.mean())


def test_weak_models_take_turns(make_tiny: MakeConfig, tmp_path: Path, tiny_strong: Path) -> None:
    models = [
        {"path": str(tiny_strong), "drop_layers": "1"},
        {"path": str(tiny_strong), "keep_layers": "0,1"},
    ]
    config = make_tiny(
        tmp_path, weak__models=models, boosting={"rounds": 3, "prior": "unigram"}, weak__training__epochs=4
    )
    _, records = boost(config)
    bases = [r.base for r in records]
    assert bases[0] != bases[1]
    assert bases[2:3] == bases[:1]


def test_members_differ(make_tiny: MakeConfig, tmp_path: Path) -> None:
    config = make_tiny(
        tmp_path,
        boosting={"rounds": 2, "prior": "unigram"},
        weak__training__epochs=4,
        weak__training__learning_rate=2e-2,
    )
    ctx, records = boost(config)
    files = [(ctx.run_dir / r.folder / "model.safetensors").read_bytes() for r in records]
    assert len(records) == 2
    assert files[0] != files[1]


def test_a_state_of_another_version_is_one_line(make_tiny: MakeConfig, tmp_path: Path) -> None:
    ctx, records = boost(make_tiny(tmp_path, boosting={"rounds": 1, "prior": "unigram"}))
    path = ctx.run_dir / "boosting" / f"state-{records[-1].attempt:02d}.npz"
    np.savez(path, weights=np.ones(3), alphas=np.ones(1), errors=np.ones(1), drops=np.int64(0))
    with pytest.raises(UserError, match=r"lacks level, values.*another version"):
        unit_weights(ctx, records[-1].attempt)


def rounds_of(**options: Any) -> Boosting:
    """The loop of these settings, without a run."""
    loop = object.__new__(Boosting)
    loop._config = BoostingConfig(**options)
    return loop


class TestSettings:
    """Four units with equal weights, of which a member gets the first wrong; the prior's error is 3/4."""

    STATE = BoostingState.start(Units.build([0, 4]))
    WRONG = np.array([True, False, False, False])

    def test_max_weight(self) -> None:
        alpha, decision, after = rounds_of(max_weight=1.5)._judge(self.WRONG, 0.25, 0.75, self.STATE)
        # Right with odds of 3, where the prior is wrong with odds of 3.
        assert (alpha, decision) == (pytest.approx(np.log(9)), "keep")
        # Nine times the weight of the others would be 9/12 of all; it may have 1.5 times a quarter.
        np.testing.assert_allclose(after.weights, [0.375] + [0.625 / 3] * 3)

    @pytest.mark.parametrize("policy", ["drop", "stop"])
    def test_on_useless(self, policy: str) -> None:
        assert rounds_of(on_useless=policy)._judge(self.WRONG, 0.8, 0.75, self.STATE)[1] == policy

    def test_epsilon_and_learning_rate(self) -> None:
        # An error of 0 counts as 0.1: odds of 9, times the prior's 3.
        assert rounds_of(epsilon=0.1, learning_rate=0.5)._alpha(0.0, 0.75) == pytest.approx(np.log(27) / 2)

    def test_sample_weight(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[tuple[Any, ...]] = []
        monkeypatch.setattr("ensemw2s.engine.boosting.draw_round", lambda *given: calls.append(given))
        loop = rounds_of(reweight="sample_bootstrap", sample_weight="sum")
        loop._ctx = SimpleNamespace(config=SimpleNamespace(seed=3))
        loop._units = Units.build([0, 1, 4])
        loop._train = SimpleNamespace(target_offsets=np.array([0, 1, 4]))
        loop._draw(1, 1, BoostingState.start(loop._units))
        ((kept, method, _, _, _, sample_weight),) = calls
        assert (kept, method, sample_weight) == (1, "sample_bootstrap", "sum")


class Noting:
    """A pool of two that notes what is asked, and what is waited for."""

    size = 2

    def __init__(self, pool: Any) -> None:
        self.pool, self.notes = pool, []

    def submit(self, slot: int, method: str, *args: Any) -> Any:
        of = args[0].name if method == "train_member" else getattr(args[0].folder, "name", "base")
        name = f"{method} {of}"
        self.notes.append((f"ask {name}", slot))
        pending = self.pool.submit(slot, method, *args)
        notes = self.notes

        class Waiting:
            def result(self) -> Any:
                notes.append((f"wait for {name}", slot))
                return pending.result()

        return Waiting()


def test_a_member_scores_what_nobody_waits_for_while_the_next_one_trains(
    make_tiny: MakeConfig, tmp_path: Path
) -> None:
    parsed = api.as_config(
        ExperimentConfig.model_validate(make_tiny(tmp_path, boosting={"rounds": 2, "method": "bagging"}))
    )
    store, prepared = check_directory(parsed), prepare(parsed)
    begin_run(prepared, store, 0)
    ctx = RunContext(prepared.absolute, store, lambda event: None)
    executor = LocalExecutor(prepared.absolute, store.folder, threads=1, report=ctx.report)
    pool = Noting(executor.pool())
    Boosting(ctx, pool).run()
    order = [what for what, _ in pool.notes]
    votes, training = "choice_scores 00", "train_member round 2 of 2: training"
    asked = [order.index(f"ask {votes}"), order.index(f"ask {training}")]
    waited = [order.index(f"wait for {votes}"), order.index(f"wait for {training}")]
    assert asked[0] < asked[1] < waited[0] < waited[1]
    # On different supervisors, so that the one does not wait for the other.
    assert pool.notes[asked[0]][1] != pool.notes[asked[1]][1]


@pytest.mark.parametrize(("steps", "n_rows"), [(2, 6), (8, 10)])
def test_the_warm_up_of_the_prior_is_so_many_steps(steps: int, n_rows: int, tmp_path: Path) -> None:
    """On random samples, each once, others for another model; on all where there are fewer."""
    errors = object.__new__(UnitErrors)
    errors._config = BoostingConfig(prior="warmup", prior_warmup_steps=steps)
    offsets = np.arange(0, 22, 2)
    errors._train = SimpleNamespace(
        samples=list(range(10)), of_member=lambda index: SimpleNamespace(target_offsets=offsets)
    )
    training = SimpleNamespace(batch_size=3)
    config = SimpleNamespace(seed=5, weak=SimpleNamespace(training=training))
    errors._ctx = SimpleNamespace(config=config, store=SimpleNamespace(scratch=lambda name: tmp_path / name))
    tasks: list[Any] = []
    outcome = SimpleNamespace(result=lambda: SimpleNamespace(seconds=1.0, tokens=2, flops=3.0, device="cpu"))
    errors._pool = SimpleNamespace(submit=lambda slot, method, task: tasks.append(task) or outcome)
    for index in (0, 1):
        errors._warm_up(index)
    for task in tasks:
        assert len(np.unique(task.rows)) == len(task.rows) == n_rows
        assert task.epochs == 1
        np.testing.assert_array_equal(task.weights, np.ones(2 * n_rows))
        np.testing.assert_array_equal(task.denominators, np.full(n_rows, 2.0))
    assert (tasks[0].rows.tolist() == tasks[1].rows.tolist()) is (n_rows == 10)


def test_an_error_out_of_bag_needs_a_bag(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """Refused for new runs; members of other ensembles vote equally, whatever their errors."""
    asked = {"error_on": "out_of_bag", "reweight": "loss"}
    config = ExperimentConfig.model_validate(make_tiny(tmp_path, boosting=asked))
    with pytest.raises(ConfigError, match="out_of_bag needs members that are not shown all samples"):
        prepare(config)
    prepare(ExperimentConfig.model_validate(make_tiny(tmp_path, boosting={**asked, "method": "seeds"})))


def test_members_whose_error_could_not_be_measured_as_asked_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sample of twenty tokens has none of them left out in no bootstrap of tokens."""
    errors = [None, 0.4, None]
    records = [SimpleNamespace(round=i + 1, errors={"out_of_bag": e}) for i, e in enumerate(errors)]
    monkeypatch.setattr(checks, "load_records", lambda ctx: records)
    boosting = BoostingConfig(error_on="out_of_bag", unit="sample")
    ctx: Any = SimpleNamespace(config=SimpleNamespace(boosting=boosting))
    (warning,) = checks.check_errors(ctx)
    assert warning.startswith(
        "boosting.error_on out_of_bag: 1 of 2 later members left too few heavy samples undrawn"
    )
    ctx.config.boosting = boosting.model_copy(update={"method": "bagging"})
    assert checks.check_errors(ctx) == []
    ctx.config.boosting = boosting
    records[2].errors["out_of_bag"] = 0.3
    assert checks.check_errors(ctx) == []
