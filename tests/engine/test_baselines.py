"""Optional baselines: solved questions before each, and labels that are wrong at random."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.data.samples import Sample
from ensemw2s.engine.baselines import noisy_labels, random_noise_labels
from ensemw2s.engine.context import FEW_SHOT, RunContext
from ensemw2s.engine.encoded import few_shot_prefix
from ensemw2s.engine.votes import read_scores
from ensemw2s.errors import ConfigError
from ensemw2s.models.loading import load_model
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import absolute_paths

MakeConfig = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def finished(
    make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunContext, dict[str, Any]]:
    settings = {
        "weak__training__epochs": 2,
        "weak__training__learning_rate": 2e-2,
        "boosting": {"rounds": 2, "method": "seeds"},
        "vote__rounds": "all",
        "strong__training__epochs": 1,
        "evaluation__baselines": ["few_shot", "random_noise"],
        "evaluation__shots": 2,
        "data__max_length": 60,
    }
    made = make_tiny(tmp_path_factory.mktemp("baselines"), **settings)
    config = api.as_config(ExperimentConfig.model_validate(made))
    result = api.run(config)
    ctx = RunContext(absolute_paths(config), RunStore(result.run_dir), lambda event: None)
    return ctx, result.results


def test_few_shot_is_the_text_with_solved_questions_before_it(
    finished: tuple[RunContext, dict[str, Any]],
) -> None:
    ctx, _ = finished
    prefix = few_shot_prefix(ctx.config, ctx.strong_splits["easy_train"].samples)
    solved = prefix.split("\n\n")
    assert len(solved) == 3
    assert solved[2] == ""
    easy = {s.question: s.answer_text for s in ctx.strong_splits["easy_train"].samples}
    for text in solved[:2]:
        question = text.removeprefix("Question: ").split("\n")[0]
        assert text.endswith(f"Answer: {easy[question]}")
    tokenizer, sample = ctx.strong_splits.tokenizer, ctx.strong_splits["test"].samples[3]
    context = prefix + ctx.config.data.prompt.replace("{question}", sample.question)
    model = load_model(ctx.config.strong.model, device="cpu", dtype=torch.float32)
    expected = []
    for choice in sample.choices or ():
        whole = tokenizer(f"{context} {choice}", add_special_tokens=False)["input_ids"]
        n = len(tokenizer(context, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            logs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected += [float(logs[j - 1, whole[j]]) for j in range(n, len(whole))]
    data = ctx.side_splits(FEW_SHOT)["test"]
    begin = data.choice_token_offsets[data.choice_offsets[3]]
    end = data.choice_token_offsets[data.choice_offsets[4]]
    np.testing.assert_allclose(read_scores(ctx, FEW_SHOT, "test")[begin:end], expected, atol=1e-4)


def test_random_noise_has_the_ensembles_accuracy(finished: tuple[RunContext, dict[str, Any]]) -> None:
    ctx, results = finished
    truth = [s.answer for s in ctx.splits["hard_train"].samples]
    labels = random_noise_labels(ctx)
    assert labels == random_noise_labels(ctx)
    right = np.mean([a == b for a, b in zip(labels, truth, strict=True)])
    assert right == pytest.approx(results["label_accuracy"]["ensemble"]["value"])
    voted = pq.read_table(ctx.run_dir / "labels" / "ensemble.parquet").column("label").to_pylist()
    assert list(labels) != voted


def test_both_are_in_the_results_and_the_report(finished: tuple[RunContext, dict[str, Any]]) -> None:
    ctx, results = finished
    n = results["splits"]["test"]["n"]
    for system in ("strong_few_shot", "student_noise"):
        assert results[system]["test"]["n"] == n
        assert any(c["b"] == system for c in results["comparisons"]["test"])
    text = (ctx.run_dir / "report.md").read_text()
    assert "Strong model, few-shot" in text
    assert "Student of random noise" in text
    assert "strong_few_shot" in pq.read_schema(ctx.run_dir / "predictions" / "test.parquet").names


@pytest.mark.parametrize("choices", [("a", "b", "c"), None])
def test_as_many_labels_are_wrong_as_asked(choices: tuple[str, ...] | None) -> None:
    answers: list[Any] = [i % 3 for i in range(60)] if choices else [f"answer {i % 5}" for i in range(60)]
    samples = [Sample(str(i), f"q{i}", choices, a) for i, a in enumerate(answers)]
    taught = np.arange(60) % 4 != 0
    labels = noisy_labels(samples, taught, 20, np.random.default_rng(0))
    assert [label is None for label in labels] == (~taught).tolist()
    wrong = [i for i in range(60) if taught[i] and labels[i] != answers[i]]
    assert len(wrong) == 20
    assert {labels[i] for i in wrong} <= set(answers)
    # Both other choices occur: the wrong ones are not all the same.
    assert len({(int(str(labels[i])[-1]) - int(str(answers[i])[-1])) % 3 for i in wrong}) >= 2
    assert noisy_labels(samples, taught, 0, np.random.default_rng(0)) == tuple(
        a if t else None for a, t in zip(answers, taught, strict=True)
    )


def test_too_many_shots_are_refused(make_tiny: MakeConfig, tmp_path: Path) -> None:
    changes = {"evaluation__baselines": ["few_shot"], "evaluation__shots": 50}
    config = ExperimentConfig.model_validate(make_tiny(tmp_path, **changes))
    with pytest.raises(
        ConfigError, match=r"evaluation.shots 50 makes prompts of up to \d+ tokens, and .* positions"
    ):
        api.run(config)
    assert not (tmp_path / "runs").exists()
