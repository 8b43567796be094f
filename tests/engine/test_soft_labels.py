"""Soft labels: what they hold, what students make of them, and what does not go together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from ensemw2s import api
from ensemw2s.config import ExperimentConfig, ModelConfig, TrainingConfig
from ensemw2s.engine.context import RunContext
from ensemw2s.engine.estimate import estimate
from ensemw2s.engine.labeling import selected_ensemble
from ensemw2s.engine.prepare import Prepared, prepare
from ensemw2s.engine.soft_labels import best_of, candidate_ids, read_token_labels, tokens_path
from ensemw2s.engine.students import student_training_set
from ensemw2s.engine.tasks import StudentTask
from ensemw2s.engine.teaching import check_teaching
from ensemw2s.errors import ConfigError
from ensemw2s.models.loading import load_model
from ensemw2s.models.storage import load_saved
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import absolute_paths
from ensemw2s.training.backends import TorchBackend
from ensemw2s.training.collate import collate
from ensemw2s.training.loop import fit, weighted_loss_sum
from ensemw2s.training.losses import make_loss
from ensemw2s.training.plan import MicroBatch, TrainingSet

MakeConfig = Callable[..., dict[str, Any]]
SETTINGS: dict[str, Any] = {
    "weak__training__epochs": 2,
    "weak__training__learning_rate": 2e-2,
    "boosting": {"rounds": 2, "method": "seeds"},
    "vote__rounds": "all",
    "strong__training__epochs": 1,
}


def finished(settings: dict[str, Any]) -> RunContext:
    config = api.as_config(ExperimentConfig.model_validate(settings))
    result = api.run(config)
    return RunContext(absolute_paths(config), RunStore(result.run_dir), lambda event: None)


def test_candidates_are_each_once() -> None:
    tops = np.array([[[5, 2, 9], [1, 2, 3]], [[2, 5, 9], [7, 8, 3]]], dtype=np.int32)
    np.testing.assert_array_equal(candidate_ids(tops), [[2, 5, 9, -1, -1], [1, 2, 3, 7, 8]])


def test_the_best_of_the_candidates_come_first() -> None:
    ids, probs = (
        np.array([[2, 5, 9, -1], [1, 2, 3, 7]]),
        np.array([[0.1, 0.6, 0.2, 0.0], [0.1, 0.0, 0.3, 0.1]]),
    )
    best, values = best_of(ids, probs, 3)
    np.testing.assert_array_equal(best, [[5, 9, 2], [3, 1, 7]])
    np.testing.assert_array_equal(values, [[0.6, 0.2, 0.1], [0.3, 0.1, 0.1]])
    assert best_of(ids, probs, 4)[0][0].tolist() == [5, 9, 2, -1]
    # Padding is no candidate, whatever stands beside it.
    assert best_of(np.array([[2, -1]]), np.array([[0.1, 0.9]]), 1)[0].tolist() == [[2]]


@pytest.fixture(scope="module")
def by_tokens(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    settings = {
        **SETTINGS,
        "labels": {"targets": "tokens", "top_k": 6},
        "strong__training__loss": "soft_cross_entropy",
        "strong__training__loss_options": {"remainder": "spread"},
    }
    folder = tmp_path_factory.mktemp("tokens")
    return finished(make_tiny(folder, **settings))


def test_a_tokens_label_is_the_mixture_of_the_members(by_tokens: RunContext) -> None:
    ctx = by_tokens
    voters = selected_ensemble(ctx)
    models = [load_saved(r.folder, device="cpu", dtype=torch.float32) for r in voters.refs if r.folder]
    soft = read_token_labels(by_tokens.run_dir / tokens_path("ensemble"))
    rows = pq.read_table(by_tokens.run_dir / "labels" / "ensemble.parquet").to_pylist()
    data = ctx.splits["hard_train"]
    alphas = voters.alphas / voters.alphas.sum()
    for i in (0, 17, len(rows) - 1):
        encoded = data.encoded[i]
        answer = [*encoded.continuations[rows[i]["label"]].tolist(), int(ctx.splits.tokenizer.eos_token_id)]
        ids = torch.tensor([*encoded.prompt.tolist(), *answer])[None]
        with torch.no_grad():
            each = [
                m(ids).logits[0, len(encoded.prompt) - 1 : -1].double().softmax(-1).numpy() for m in models
            ]
        dense = sum(a * p for a, p in zip(alphas, each, strict=True))
        own, probs = soft.ids[rows[i]["id"]], soft.probs[rows[i]["id"]]
        assert own.shape == (len(answer), 6)
        np.testing.assert_allclose(probs, np.take_along_axis(dense, own.astype(np.int64), axis=1), atol=1e-5)
        assert (own[:, 0] == dense.argmax(axis=1)).all()


def test_students_learn_them_and_the_ceiling_learns_the_truth(by_tokens: RunContext) -> None:
    ctx = by_tokens

    def lesson(name: str, teacher: str | None) -> TrainingSet:
        labels = pq.read_table(by_tokens.run_dir / "labels" / "ensemble.parquet").column("label").to_pylist()
        task = StudentTask(name, "hard_train", tuple(labels), 0, Path("out"), Path("scratch"), teacher)
        return student_training_set(ctx.config, ctx.run_dir, ctx.strong_splits, task)

    taught, true = lesson("ensemble", "ensemble"), lesson("ceiling", None)
    assert taught.soft is not None
    assert true.soft is not None
    soft = read_token_labels(by_tokens.run_dir / tokens_path("ensemble"))
    first = ctx.strong_splits["hard_train"].samples[0].id
    np.testing.assert_array_equal(taught.soft[0][0], soft.ids[first])
    assert taught.uncertainty is not None
    assert taught.uncertainty.max() > 0
    assert true.uncertainty is not None
    assert not true.uncertainty.any()
    np.testing.assert_array_equal(true.soft[0][0][:, 0], true.targets[0])
    np.testing.assert_array_equal(true.soft[0][1], np.ones((len(true.targets[0]), 1)))
    store = ctx.store
    assert "same_as" not in store.require("student-ensemble").info
    losses = {n: store.require(f"student-{n}").info["losses"] for n in ("single", "ensemble", "ceiling")}
    assert losses["single"][0] != losses["ensemble"][0] != losses["ceiling"][0]


def test_certain_soft_labels_are_hard_labels(tiny_strong: Path) -> None:
    """A distribution with all on the label: training with it is training with cross-entropy, rounding aside."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 300, size=4).astype(np.int32) for _ in range(6)]
    targets = [rng.integers(1, 300, size=2).astype(np.int32) for _ in range(6)]
    hard = TrainingSet.uniform(prompts, targets)
    soft = TrainingSet(
        prompts,
        targets,
        hard.weights,
        hard.denominators,
        soft=[(t[:, None], np.ones((2, 1), dtype=np.float32)) for t in targets],
    )

    def trained(data: TrainingSet, loss: str) -> torch.Tensor:
        config = TrainingConfig(epochs=1, batch_size=3, micro_batch_size=2, learning_rate=1e-3, loss=loss)
        model = load_model(
            ModelConfig(path=str(tiny_strong)), device="cpu", dtype=torch.float32, for_training=True
        )
        fit(TorchBackend(model, config), data, config, seed=1, pad_id=0)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    torch.testing.assert_close(
        trained(soft, "soft_cross_entropy"), trained(hard, "cross_entropy"), rtol=0, atol=5e-5
    )


@pytest.fixture(scope="module")
def by_choices(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    config = make_tiny(tmp_path_factory.mktemp("choices"), **SETTINGS, labels={"targets": "choices"})
    return finished(config)


def test_the_loss_of_a_soft_answer_is_its_shares_of_the_choices(by_choices: RunContext) -> None:
    ctx = by_choices
    rows = pq.read_table(by_choices.run_dir / "labels" / "ensemble.parquet").to_pylist()
    labels = tuple(r["label"] for r in rows)
    task = StudentTask("ensemble", "hard_train", labels, 0, Path("out"), Path("scratch"), "ensemble")
    data = student_training_set(ctx.config, ctx.run_dir, ctx.strong_splits, task)
    shares = np.array(rows[0]["shares"])
    assert shares.sum() == pytest.approx(1.0)
    assert shares.argmax() == labels[0]
    kept = np.where(shares >= 0.01, shares, 0.0)
    kept /= kept.sum()
    own = data.samples[0]
    assert len(own) == np.count_nonzero(kept)
    model = load_model(ctx.config.strong.model, device="cpu", dtype=torch.float32)
    encoded = ctx.strong_splits["hard_train"].encoded[0]
    end, expected, tokens = int(ctx.strong_splits.tokenizer.eos_token_id), 0.0, 0.0
    for choice, share in enumerate(kept):
        answer = [*encoded.continuations[choice].tolist(), end]
        ids = torch.tensor([*encoded.prompt.tolist(), *answer])[None]
        with torch.no_grad():
            logs = model(ids).logits[0].log_softmax(-1)
        at = len(encoded.prompt) - 1
        expected -= share * float(sum(logs[at + j, t] for j, t in enumerate(answer)))
        tokens += share * len(answer)
    with torch.no_grad():
        ours = weighted_loss_sum(model, collate(data, MicroBatch(tuple(own.tolist())), 0))
    assert float(ours) == pytest.approx(expected, rel=1e-4)
    assert data.denominators[own].sum() == pytest.approx(tokens)
    # As many steps as with hard labels: a batch counts questions.
    assert (
        ctx.store.require("student-ensemble").info["steps"]
        == ctx.store.require("student-ceiling").info["steps"]
    )


def test_a_loss_by_name_reaches_the_student(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """Full smoothing makes labels say nothing: the student's loss is then the one of the uniform distribution."""
    changes = {
        "strong__training__loss": "uncertainty_smoothing",
        "strong__training__loss_options": {"low": 1.0, "high": 1.0},
    }
    ctx = finished(make_tiny(tmp_path, **{**SETTINGS, "boosting": {"rounds": 1}, **changes}))
    data = ctx.strong_splits["hard_train"]
    model = load_model(ctx.config.strong.model, device="cpu", dtype=torch.float32)
    batch = collate(TrainingSet.uniform([data.encoded[0].prompt], [data.targets[0]]), MicroBatch((0,)), 0)
    batch["uncertainty"] = torch.zeros_like(batch["weights"])
    with torch.no_grad():
        value = weighted_loss_sum(model, batch, make_loss("uncertainty_smoothing", {"low": 1.0, "high": 1.0}))
        logits = model(batch["input_ids"]).logits[0]
    uniform = -logits.log_softmax(-1).mean(-1)[len(data.encoded[0].prompt) - 1 : -1].sum()
    assert float(value) == pytest.approx(float(uniform), rel=1e-4)
    first = ctx.store.require("student-ceiling").info["losses"][0]
    assert first == pytest.approx(float(uniform) / len(data.targets[0]), rel=0.1)


def test_the_confidence_loss_is_for_students_of_doubtful_labels(
    make_tiny: MakeConfig, tmp_path: Path
) -> None:
    """The ceiling and the student of the easy labels are those of a run with cross-entropy."""
    losses = []
    for name, changes in (("plain", {}), ("confident", confidence("strong", warmup=0.0))):
        folder = tmp_path / name
        folder.mkdir()
        ctx = finished(make_tiny(folder, **{**SETTINGS, "boosting": {"rounds": 1}, **changes}))
        found = {
            who: ctx.store.require(f"student-{who}").info["losses"]
            for who in ("single", "ceiling", "on_easy")
        }
        losses.append(found)
    plain, confident = losses
    assert confident["ceiling"] == plain["ceiling"]
    assert confident["on_easy"] == plain["on_easy"]
    assert confident["single"] != plain["single"]


def confidence(side: str, **options: Any) -> dict[str, Any]:
    return {f"{side}__training__loss": "confidence", f"{side}__training__loss_options": options}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"strong__training__loss": "soft_cross_entropy"},
            "needs distributions over tokens: set labels.targets tokens",
        ),
        (
            {"strong__training__loss": "product_of_experts", "strong__model__head": "classifier"},
            r"needs distributions over classes: set labels.targets choices \(now hard\)",
        ),
        ({"labels": {"targets": "tokens"}}, "goes with a loss that uses distributions"),
        ({"weak__training__loss": "product_of_experts"}, "members are taught the truth"),
        ({"strong__training__loss": "focal"}, "loss must be one of cross_entropy"),
        ({"strong__training__loss_options": {"gamma": 2}}, "loss cross_entropy has no option 'gamma'"),
        ({"strong__training__loss": "no_such_module:loss"}, "cannot import no_such_module"),
        (
            confidence("strong", classes=[False, True]),
            r"strong.training: loss confidence: classes must be .* not words",
        ),
        (
            {**confidence("strong", classes=[5, 6]), "labels": {"targets": "choices"}},
            "meets the labels' frequencies, .* use labels.targets hard, or leave classes out",
        ),
        (confidence("strong", classes=[1.5, 2.5]), r"got \[1.5, 2.5\]"),
        (
            confidence("weak", warmup="x"),
            r"weak.training: loss confidence: warmup must be a number in \[0, 1\], got 'x'",
        ),
        (
            confidence("strong", classes=[5, 999999]),
            r"strong.training: loss confidence: classes \[999999\] are outside of the vocabulary of tiny-strong, which has 0 to \d+",
        ),
        (confidence("weak", classes=[5, 999999]), "weak.training: .* the vocabulary of tiny-weak"),
        (
            {
                **confidence("strong", classes=[1, 4]),
                "strong__model__head": "classifier",
            },
            r"classes \[4\] are outside of the classes of tiny-strong, which has 0 to 3",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    make_tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    config = ExperimentConfig.model_validate(make_tiny(tmp_path, **changes))
    with pytest.raises(ConfigError, match=message) as caught:
        api.run(config)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("vote", [{"label_model": "glad"}, {"calibrate": True}])
def test_token_labels_are_of_the_weighted_vote(
    make_tiny: MakeConfig, tmp_path: Path, vote: dict[str, Any]
) -> None:
    changes = {"labels": {"targets": "tokens"}, "strong__training__loss": "soft_cross_entropy", "vote": vote}
    with pytest.raises(
        ValidationError, match=r"vote.label_model (glad|weighted) with calibrate .* whole choices"
    ):
        ExperimentConfig.model_validate(make_tiny(tmp_path, **changes))


def test_choices_need_choices_and_tokens_one_tokenizer(make_tiny: MakeConfig, tmp_path: Path) -> None:
    choices = ExperimentConfig.model_validate(make_tiny(tmp_path, labels={"targets": "choices"}))
    with pytest.raises(ConfigError, match="needs multiple-choice data"):
        check_teaching(choices, multiple_choice=False, one_tokenizer=True)
    tokens = {"labels": {"targets": "tokens"}, "strong__training__loss": "soft_cross_entropy"}
    with pytest.raises(ConfigError, match="weak models' tokenizer"):
        check_teaching(
            ExperimentConfig.model_validate(make_tiny(tmp_path, **tokens)),
            multiple_choice=True,
            one_tokenizer=False,
        )


def test_a_forecast_counts_what_soft_labels_cost(make_tiny: MakeConfig, tmp_path: Path) -> None:
    def forecast(**changes: Any) -> tuple[dict[str, int], Prepared]:
        config = ExperimentConfig.model_validate(make_tiny(tmp_path, **{**SETTINGS, **changes}))
        prepared = prepare(api.as_config(config))
        return {line.stage: line.tokens for line in estimate(prepared, 1e12)}, prepared

    hard, prepared = forecast()
    assert "soft labels" not in hard
    data = prepared.encoded["hard_train"]
    read = sum(len(e.prompt) + len(t) for e, t in zip(data.encoded, data.targets, strict=True))
    by_token, _ = forecast(labels={"targets": "tokens"}, strong__training__loss="soft_cross_entropy")
    # One member alone and both of them read the labels, each twice.
    assert by_token["soft labels"] == 6 * read
    assert by_token["student single"] == hard["student single"]
    by_choice, _ = forecast(labels={"targets": "choices"})
    every = sum(len(e.prompt) + len(c) + 1 for e in data.encoded for c in e.continuations)
    assert by_choice["student ensemble"] - hard["student ensemble"] == every - read
    assert by_choice["student ceiling"] == hard["student ceiling"]
