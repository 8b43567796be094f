"""Whole runs with vote.alignment bytes: of one family as with tokens, of two families as their members' scores say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.core.voting import choice_scores, mixture_logprob, pick_choice
from ensemw2s.data.sources import load_unlabeled
from ensemw2s.engine.encoded import EncodedSplits
from ensemw2s.engine.results import comparable
from ensemw2s.errors import ModelError, UserError
from ensemw2s.models.scoring import ScoreRequest, score
from ensemw2s.models.storage import load_saved
from tests.conftest import SOUNDS

MakeConfig = Callable[..., dict[str, Any]]
LEARNS = {"weak__training__epochs": 4, "weak__training__learning_rate": 2e-2, "boosting__prior": "unigram"}
FAST = {"strong__training__epochs": 1, "evaluation__resamples": 100}
BYTES = {"vote__alignment": "bytes", "vote__rounds": "all", **LEARNS}


def run(config: dict[str, Any], until: Any = "results") -> api.RunResult:
    return api.run(ExperimentConfig.model_validate(config), until=until)


def two_families(make: MakeConfig, folder: Path, paths: list[Path], **changes: Any) -> dict[str, Any]:
    config = make(
        folder, **{**BYTES, "boosting": {"rounds": 2, "prior": "unigram", "max_drops": 4}, **changes}
    )
    config["weak"]["models"] = [{"path": str(path)} for path in paths]
    return config


@pytest.fixture(scope="module")
def finished(
    make_tiny: MakeConfig, tiny_weak: Path, tiny_other: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], api.RunResult]:
    folder = tmp_path_factory.mktemp("families")
    config = two_families(make_tiny, folder, [tiny_weak, tiny_other], runtime__cache=str(folder / "cache"))
    return config, run(config)


@pytest.mark.slow
def test_one_family_comes_out_as_with_tokens(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """Bit for bit: all of results.json but times and versions."""
    tokens = run(make_tiny(tmp_path / "tokens", **FAST, **LEARNS))
    aligned = run(make_tiny(tmp_path / "bytes", **FAST, **LEARNS, vote__alignment="bytes"))
    assert len(tokens.results["members"]) >= 2
    assert comparable(aligned.results) == comparable(tokens.results)


def test_one_family_labels_by_choices_as_with_tokens(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """The same for another unit, another draw and another score, as far as the labels."""
    changes = {"boosting": {"rounds": 2, "unit": "choice", "prior": "chance", "reweight": "loss"}}
    changes["vote"] = {"choice_score": "mean", "rounds": "all"}
    runs = []
    for alignment in ("tokens", "bytes"):
        config = make_tiny(tmp_path / alignment, weak__training__epochs=1, **changes)
        config["vote"] = {**changes["vote"], "alignment": alignment}
        config["boosting"]["on_useless"] = "stop"
        runs.append(run(config, until="labels").run_dir)
    for name in ("votes/hard_train.member-00.parquet", "labels/ensemble.parquet"):
        assert pq.read_table(runs[0] / name).equals(pq.read_table(runs[1] / name)), name


def test_two_families_vote(finished: Any, tiny_weak: Path, tiny_other: Path) -> None:
    """The stored votes are sums of what each member says in its own tokens, and the labels follow from them."""
    config, result = finished
    kept = [m for m in result.results["members"] if m["kept"]]
    assert {m["base"] for m in kept} == {"tiny-weak", "tiny-other"}
    data = ExperimentConfig.model_validate(config).data
    voted = []
    for n, member in enumerate(result.results["members"]):
        if not member["kept"]:
            continue
        path = tiny_weak if member["base"] == "tiny-weak" else tiny_other
        model_config = ExperimentConfig.model_validate(config).weak.models[n % 2]
        model = load_saved(result.run_dir / f"members/{n:02d}", device="cpu", base=model_config, dtype=None)
        own = EncodedSplits(result.run_dir, data, AutoTokenizer.from_pretrained(path))["hard_train"]
        found = score(model, [ScoreRequest(e.prompt, e.continuations) for e in own.encoded])
        rows = pq.read_table(result.run_dir / f"votes/hard_train.member-{n:02d}.parquet")
        column = rows.column("logprobs").to_pylist()
        expected = np.add.reduceat(found.logprobs.astype(np.float64), found.offsets[:-1])
        np.testing.assert_allclose([sum(values) for values in column], expected, atol=1e-4)
        # Two words are two segments, whatever the tokens.
        assert {len(values) for values in column} == {2}
        voted.append(np.concatenate([np.array(values) for values in column]))
    alphas = np.array([m["alpha"] for m in kept])
    offsets = np.arange(0, len(voted[0]) + 1, 2)
    scores = choice_scores(mixture_logprob(np.stack(voted), alphas), offsets, "sum")
    picked, _ = pick_choice(scores, np.arange(0, len(scores) + 1, 4))
    assert pq.read_table(result.run_dir / "labels/ensemble.parquet").column("label").to_pylist() == list(
        picked
    )


def test_members_keep_their_own_tokenizer(finished: Any, tiny_weak: Path, tiny_other: Path) -> None:
    _, result = finished
    for n, member in enumerate(result.results["members"]):
        source = tiny_weak if member["base"] == "tiny-weak" else tiny_other
        own = AutoTokenizer.from_pretrained(result.run_dir / f"members/{n:02d}")
        assert own.get_vocab() == AutoTokenizer.from_pretrained(source).get_vocab()


def test_new_questions_get_the_labels_of_the_run(finished: Any) -> None:
    config, result = finished
    ensemble = api.load_ensemble(result.run_dir)
    samples = load_unlabeled(Path(config["data"]["pool"]["path"]))
    fresh = {row["id"]: row for row in ensemble.label(samples).to_pylist()}
    stored = pq.read_table(result.run_dir / "labels/ensemble.parquet").to_pylist()
    assert [fresh[row["id"]]["label"] for row in stored] == [row["label"] for row in stored]
    assert [fresh[row["id"]]["votes"] for row in stored] == [row["votes"] for row in stored]


def test_what_needs_tokens_in_common_says_so(finished: Any, tmp_path: Path) -> None:
    from ensemw2s.serving.opening import open_run

    _, result = finished
    with pytest.raises(ModelError, match="cannot be one causal language model"):
        api.export(result.run_dir, tmp_path / "exported")
    with pytest.raises(UserError, match="serve the student alone with --model student"):
        open_run(result.run_dir)
    assert list(open_run(result.run_dir, ("student",)).ensembles) == ["student"]


def test_a_cache_holds_each_models_own_scores(finished: Any, tmp_path: Path) -> None:
    """Found again by the same run elsewhere: the scores of each model are stored in its own tokens."""
    config, result = finished
    again = json.loads(json.dumps(config))
    again["runs_dir"] = str(tmp_path / "runs")
    second = run(again, until="labels")
    for name in ("votes/hard_train.member-00.parquet", "labels/ensemble.parquet"):
        assert pq.read_table(second.run_dir / name).equals(pq.read_table(result.run_dir / name)), name
    events = [json.loads(line) for line in (second.run_dir / "events.jsonl").read_text().splitlines()]
    assert sum(e["event"] == "found_in_cache" for e in events) > 5


@pytest.fixture(scope="module")
def spoken(
    make_tiny: MakeConfig,
    tiny_weak: Path,
    tiny_other: Path,
    free_questions: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, Any], api.RunResult]:
    """Two families that write their answers, labelled so far."""
    pool = {"kind": "file", "path": str(free_questions)}
    config = two_families(
        make_tiny, tmp_path_factory.mktemp("spoken"), [tiny_weak, tiny_other], data__pool=pool
    )
    return config, run(config, until="labels")


def test_two_families_write_answers(spoken: Any) -> None:
    """They have learned the task, so that what they say together is mostly one of its answers."""
    _, result = spoken
    votes = pq.read_table(result.run_dir / "answers/hard_train.member-ensemble-02.parquet").to_pylist()
    for row in votes:
        written = bytes(row["tokens"])
        assert row["text"] == written.decode(errors="ignore").strip().split("\n")[0].strip()
        assert len(row["probabilities"]) == len(row["member_tokens"]) == len(written) <= 24
        assert all(len(own) == 2 for own in row["member_tokens"])
        assert 0.0 < row["confidence"] <= 1.0
    assert np.mean([row["text"] in SOUNDS for row in votes]) > 0.6
    stage = json.loads((result.run_dir / "manifest.json").read_text())["stages"]
    info = stage["answers-member-ensemble-02-hard_train"]["info"]
    assert (info["certified"], info["asked"]) == (0, 0)
    assert info["full"] >= sum(len(row["tokens"]) for row in votes)


def test_one_answer_and_its_bytes(spoken: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from ensemw2s.cli import main

    _, result = spoken
    labels = pq.read_table(result.run_dir / "labels/ensemble.parquet").to_pylist()
    ensemble = api.load_ensemble(result.run_dir)
    for row in labels[:3]:
        assert ensemble.generate(row["question"]).text == row["label_text"]
    assert main(["generate", str(result.run_dir), "--prompt", labels[0]["question"]]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == labels[0]["label_text"]
    assert shown[5].startswith("' '")
    raw = ensemble.generate(f"Question: {labels[0]['question']}\nAnswer:", raw=True)
    assert raw.text == labels[0]["label_text"]
