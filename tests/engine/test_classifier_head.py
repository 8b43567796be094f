"""Boosting with classification heads: SAMME by hand from what the run stores, and the vote over class probabilities."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.data.encoding import Encoder, target_ids
from ensemw2s.data.samples import Sample
from ensemw2s.errors import ConfigError, DataError, ModelError
from ensemw2s.runs.store import RunStore

MakeConfig = Callable[..., dict[str, Any]]
K = 4
HEAD = {
    "weak__training__epochs": 4,
    "weak__training__learning_rate": 2e-2,
    "boosting": {"rounds": 3, "prior": "classes", "reweight": "loss"},
    "vote__rounds": "all",
}


def config_of(make_tiny: MakeConfig, folder: Path, **changes: Any) -> ExperimentConfig:
    plain = make_tiny(folder, **copy.deepcopy(HEAD), **changes)
    for model in (*plain["weak"]["models"], plain["strong"]["model"]):
        model["head"] = "classifier"
    return ExperimentConfig.model_validate(plain)


@pytest.fixture(scope="module")
def run(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> api.RunResult:
    return api.run(config_of(make_tiny, tmp_path_factory.mktemp("classifier")))


def test_member_weights_are_samme_s(run: api.RunResult) -> None:
    """alpha = log((1 - e)/e) + log(K - 1), w <- w exp(alpha wrong), normalized (Zhu et al. 2009)."""
    weights = None
    for member in run.results["members"]:
        attempt = run.results["members"].index(member)
        with np.load(run.run_dir / "boosting" / f"state-{attempt:02d}.npz") as state:
            after, packed = state["values"][state["level"]], state["wrong"]
        n = len(after)
        wrong = np.unpackbits(packed, count=n).astype(bool)
        weights = np.full(n, 1 / n) if weights is None else weights
        error = float(weights[wrong].sum())
        assert member["error"] == pytest.approx(error)
        assert member["prior_error"] == pytest.approx(1 - 1 / K)
        assert member["alpha"] == pytest.approx(np.log((1 - error) / error) + np.log(K - 1))
        if not member["kept"]:
            continue
        weights = weights * np.exp(member["alpha"] * wrong)
        weights /= weights.sum()
        np.testing.assert_allclose(after, weights, rtol=1e-9)
    # One target a question.
    assert run.results["n_units"] == run.results["splits"]["easy_train"]["n"]
    assert sum(m["kept"] for m in run.results["members"]) >= 2


def test_the_vote_is_over_class_probabilities(run: api.RunResult) -> None:
    members = [i for i, m in enumerate(run.results["members"]) if m["kept"]]
    alphas = np.array([run.results["members"][i]["alpha"] for i in members])
    probs = []
    for i in members:
        table = pq.read_table(run.run_dir / "votes" / f"test.member-{i:02d}.parquet")
        logs = table.column("logprobs").combine_chunks().flatten().to_numpy().astype(np.float64)
        probs.append(np.exp(logs.reshape(-1, K)))
    # A head of its own: the classes' probabilities are all there is.
    np.testing.assert_allclose(np.sum(probs, axis=2), 1.0, atol=1e-5)
    voted = np.tensordot(alphas / alphas.sum(), np.array(probs), axes=1).argmax(axis=1)
    predictions = pq.read_table(run.run_dir / "predictions" / "test.parquet").to_pylist()
    assert [row["weak_ensemble"] for row in predictions] == [
        row["choices"][v] for row, v in zip(predictions, voted, strict=True)
    ]
    # A new head knows nothing: the first class.
    assert {row["strong_zero_shot"] for row in predictions} == {predictions[0]["choices"][0]}


def test_the_heaviest_is_named_by_its_class(run: api.RunResult) -> None:
    split = {
        s["id"]: s["answer"] for s in pq.read_table(run.run_dir / "splits" / "easy_train.parquet").to_pylist()
    }
    for row in run.results["token_weight"]["heaviest"]:
        assert row["token"] == split[row["sample"]]


def test_labels_for_new_questions_of_the_same_classes_only(run: api.RunResult, tmp_path: Path) -> None:
    ensemble = api.load_ensemble(run.run_dir)
    row = {"question": "the fox in the barn", "choices": ["buzz loud", "hiss low", "roar far", "chirp high"]}
    (tmp_path / "new.jsonl").write_text(json.dumps(row) + "\n")
    assert ensemble.label_file(tmp_path / "new.jsonl", tmp_path / "labels.jsonl") == 1
    (label,) = map(json.loads, (tmp_path / "labels.jsonl").read_text().splitlines())
    assert label["label_text"] == row["choices"][label["label"]]
    (tmp_path / "new.jsonl").write_text(json.dumps({**row, "choices": row["choices"][::-1]}) + "\n")
    with pytest.raises(DataError, match="the same choices in every sample, in one order"):
        ensemble.label_file(tmp_path / "new.jsonl", tmp_path / "other.jsonl")
    with pytest.raises(ConfigError, match="writes no text"):
        ensemble.generate("the fox in the barn")
    with pytest.raises(ModelError, match="vote on classes"):
        api.export(run.run_dir, tmp_path / "exported")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"boosting__prior": "pretrained"}, "a new one: use classes"),
        ({"labels": {"targets": "tokens"}}, "a classifier has classes"),
        ({"evaluation__baselines": ["few_shot"]}, "few_shot needs a strong model that reads answers"),
    ],
)
def test_what_does_not_go_with_it(make_tiny: MakeConfig, tmp_path: Path, changes: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        config_of(make_tiny, tmp_path, **changes)


class _Words:
    eos_token_id, bos_token_id = 0, None

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def test_a_class_is_one_target_without_an_end() -> None:
    encoder = Encoder(_Words(), prompt="{question}:", max_length=9, classes=("no", "yes"))  # type: ignore[arg-type]
    (made,) = encoder.encode([Sample("a", "q", ("no", "yes"), 1)])
    assert [c.tolist() for c in made.continuations] == [[0], [1]]
    assert (made.target, made.n_bytes) == (1, (1, 1))
    assert target_ids(made, None).tolist() == [1]
    with pytest.raises(DataError, match="the same choices in every sample"):
        encoder.encode([Sample("a", "q", ("yes", "no"), 1)])


def test_linear_probes_on_both_sides(make_tiny: MakeConfig, tmp_path: Path, tiny_weak: Path) -> None:
    """Members and students whose head of classes alone is trained."""
    plain = make_tiny(tmp_path, **copy.deepcopy(HEAD))
    for model in (*plain["weak"]["models"], plain["strong"]["model"]):
        model |= {"head": "classifier", "trainable": "head"}
    done = api.run(ExperimentConfig.model_validate(plain))
    start = load_file(tiny_weak / "model.safetensors")
    for i, member in enumerate(done.results["members"]):
        if not member["kept"]:
            continue
        saved = load_file(done.run_dir / "members" / f"{i:02d}" / "model.safetensors")
        (head,) = set(saved) - set(start)
        assert saved[head].shape == (K, 16)
        assert saved[head].abs().max() > 0
        for name in set(saved) & set(start):
            assert torch.equal(saved[name], start[name]), name


def losses_of(run: api.RunResult, student: str) -> list[float]:
    losses: list[float] = RunStore(run.run_dir).require(f"student-{student}").info["losses"]
    return losses


def test_a_distribution_over_the_classes_is_a_label(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """One row with the share of each class: its soft cross-entropy is that of a row for each choice, as heavy as its share."""
    runs = {}
    for name, changes in {
        "rows": {},
        "soft": {"strong__training__loss": "soft_cross_entropy"},
        "experts": {"strong__training__loss": "product_of_experts"},
        "weak alone": {
            "strong__training__loss": "product_of_experts",
            "strong__training__loss_options": {"weak": 1.0, "student": 0.0},
        },
        "confident": {
            "strong__training__loss": "confidence",
            "strong__training__loss_options": {"classes": [0, 1, 2, 3], "alpha_max": 0.5, "warmup": 0.0},
        },
    }.items():
        config = config_of(
            make_tiny,
            tmp_path,
            name=name.replace(" ", "-"),
            labels__targets="choices",
            runtime__cache=str(tmp_path / "cache"),
            **changes,
        )
        runs[name] = api.run(config)
    rows = losses_of(runs["rows"], "ensemble")
    assert rows[-1] < rows[0]
    # The smallest shares, of 1 % together, are no rows.
    for name in ("soft", "weak alone"):
        np.testing.assert_allclose(losses_of(runs[name], "ensemble"), rows, rtol=2e-2, err_msg=name)
        assert losses_of(runs[name], "ceiling") == pytest.approx(losses_of(runs["rows"], "ceiling"), rel=1e-5)
    # A product with the student's own opinion, or a share of it, is another target, but at first: all classes are equally likely to a
    # new head, and a product with that is the weak label.
    experts = losses_of(runs["experts"], "ensemble")
    assert experts[0] == pytest.approx(rows[0], rel=2e-2)
    assert experts[-1] != pytest.approx(rows[-1], rel=1e-3)
    assert losses_of(runs["confident"], "ensemble")[-1] != pytest.approx(rows[-1], rel=1e-3)
    assert losses_of(runs["confident"], "ceiling") == pytest.approx(
        losses_of(runs["rows"], "ceiling"), rel=1e-5
    )
