"""Ratings: out of fold in truth, by id and not by position, the same after an interruption, and usable as a split."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.core.difficulty import fit_irt
from ensemw2s.data.samples import Sample
from ensemw2s.data.sources import load_source
from ensemw2s.data.splits import make_splits
from ensemw2s.engine.encoded import EncodedSplit
from ensemw2s.engine.rating import folds
from ensemw2s.engine.rating.folds import answer_folds, judge
from ensemw2s.engine.rating.members import differing_pairs
from ensemw2s.engine.rating.options import RatingOptions
from ensemw2s.engine.rating.output import read_provenance
from ensemw2s.engine.rating.plan import (
    FoldJob,
    FoldPlan,
    begin_work,
    plan_folds,
    question_groups,
    work_folder,
)
from ensemw2s.engine.tasks import ProgressEvent, TokenScores
from ensemw2s.errors import ConfigError
from ensemw2s.opening import locked_run, supervisors
from ensemw2s.settings import absolute_paths

from ..conftest import MakeConfig, questions, write_jsonl

FOLDS = 3


@pytest.fixture
def config(make_tiny: MakeConfig, tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig.model_validate(make_tiny(tmp_path, weak__training__epochs=2))


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    """48 questions, their difficulty unknown."""
    kept = questions()[::3][:48]
    return [{k: v for k, v in row.items() if k != "difficulty"} for row in kept]


def rate(config: ExperimentConfig, data: Path, **options: Any) -> dict[str, dict[str, Any]]:
    """The rated rows by id."""
    output = data.with_suffix(".rated.parquet")
    api.rate(config, output=output, input=data, **{"folds": FOLDS, **options})
    return {row["id"]: row for row in pq.read_table(output).to_pylist()}


def test_a_sample_is_rated_by_models_that_did_not_see_its_answer(
    config: ExperimentConfig, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    before = rate(config, write_jsonl(tmp_path / "before.jsonl", rows))
    assert sorted(row["rated_fold"] for row in before.values()) == [0] * 16 + [1] * 16 + [2] * 16
    rows[7]["answer"] = (rows[7]["answer"] + 1) % 4
    changed = before[rows[7]["id"]]
    after = rate(config, write_jsonl(tmp_path / "after.jsonl", rows))
    same = {i for i in before if before[i]["difficulty"] == after[i]["difficulty"]}
    fellows = {i for i, row in before.items() if row["rated_fold"] == changed["rated_fold"]}
    # Its own fold's models never saw it: they rate the others as before. The other folds' models did.
    assert fellows - {changed["id"]} <= same
    assert len(same) < 32
    assert changed["id"] not in same


def test_the_order_of_the_file_does_not_matter(
    config: ExperimentConfig, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    first = rate(config, write_jsonl(tmp_path / "first.jsonl", rows))
    second = rate(config, write_jsonl(tmp_path / "second.jsonl", rows[::-1]))
    assert list(second) == list(first)[::-1]
    assert second == first


def test_an_interrupted_rating_ends_like_an_uninterrupted_one(
    config: ExperimentConfig, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data, output = write_jsonl(tmp_path / "data.jsonl", rows), tmp_path / "rated.parquet"

    class Stopped(Exception):
        pass

    def interrupt(event: ProgressEvent) -> None:
        if "fold 2 of 3" in event.task and "training" in event.task:
            raise Stopped

    with pytest.raises(Stopped):
        api.rate(config, output=output, input=data, folds=FOLDS, progress=interrupt)
    assert not output.exists()
    seen: list[str] = []
    rated = api.rate(
        config, output=output, input=data, folds=FOLDS, progress=lambda event: seen.append(event.task)
    )
    assert not any(task.startswith("fold 1 of 3") for task in seen)
    assert not work_folder(output).exists()
    whole = api.rate(config, output=tmp_path / "whole.parquet", input=data, folds=FOLDS)
    assert pq.read_table(output).equals(pq.read_table(whole.path))
    assert rated.difficulty.tolist() == whole.difficulty.tolist()
    assert read_provenance(output) == read_provenance(whole.path) == rated.provenance
    assert rated.provenance["method"] == "folds"
    assert rated.provenance["folds"] == FOLDS


def answers(plan: FoldPlan, config: ExperimentConfig, output: Path) -> Any:
    with locked_run(plan.config, work_folder(output), lambda event: None) as ctx:
        begin_work(plan, ctx.store)
        with supervisors(ctx, 1) as pool:
            return answer_folds(ctx, pool, plan)


def test_a_leak_is_refused(config: ExperimentConfig, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    # The same question with other choices: a twin, which stays in its fold.
    rows.append({**rows[0], "id": "twin", "choices": rows[0]["choices"][::-1], "answer": 3})
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"pool": _file(tmp_path / "a.jsonl", rows)})}
    )
    samples = load_source(absolute_paths(config).data.pool)  # type: ignore[arg-type]
    plan = plan_folds(config, RatingOptions(folds=2), samples)
    assert plan.fold[0] == plan.fold[-1]
    parts = answers(plan, config, tmp_path / "rated.parquet").parts
    for part in parts:
        assert part.trained_on.isdisjoint(part.ids)
        assert len(part.trained_on) + len(part.ids) == 49
    torn = plan.fold.copy()
    torn[-1] = 1 - torn[-1]
    with pytest.raises(ValueError, match="leak"):
        answers(replace(plan, fold=torn), config, tmp_path / "torn.parquet")


def test_the_same_question_in_other_letters_is_one_group() -> None:
    choices = ("x", "y")
    samples = [
        Sample("b", "What is it?", choices, 0),
        Sample("a", "what  is it", choices[::-1], 0),
        Sample("c", "Which one?", choices, 0),
    ]
    assert question_groups(samples) == ("a", "a", "c")


def test_what_the_models_of_the_folds_said_is_put_together(tmp_path: Path) -> None:
    """Two folds, two models each, of which the second was trained on one sample more."""
    jobs = [FoldJob(fold, index, 0) for fold in (0, 1) for index in (0, 1)]
    held_out = {0: ["b", "a"], 1: ["c", "d"]}
    confidence = {(0, 0): [0.2, 0.4], (0, 1): [0.6, 0.8], (1, 0): [0.1, 0.3], (1, 1): [0.5, 0.9]}
    (tmp_path / "folds").mkdir()
    for job in jobs:
        # The second model answers the first of each fold right, the first model none.
        scores = {
            "id": held_out[job.fold],
            "confidence": confidence[job.fold, job.index],
            "right": [job.index == 1, False],
        }
        pq.write_table(pa.table(scores), tmp_path / folds._scores_path(job))
        trained_on = held_out[1 - job.fold][: 1 + job.index]
        pq.write_table(pa.table({"id": trained_on}), tmp_path / folds._trained_path(job))
    plan: Any = SimpleNamespace(ids=list("abcd"), jobs=jobs, options=SimpleNamespace(n_folds=2))
    found = folds._read(SimpleNamespace(run_dir=tmp_path), plan)
    assert found.right.tolist() == [[False] * 4, [False, True, True, False]]
    first, second = found.parts
    assert (first.ids, first.trained_on) == (("b", "a"), frozenset("cd"))
    assert (second.ids, second.trained_on) == (("c", "d"), frozenset("ab"))
    np.testing.assert_allclose(first.confidence, [[0.2, 0.4], [0.6, 0.8]])
    np.testing.assert_allclose(second.confidence, [[0.1, 0.3], [0.5, 0.9]])


def test_repeats_have_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seeds: list[int] = []

    def submit(slot: int, method: str, *given: Any) -> None:
        if method == "train_member":
            seeds.append(given[0].seed)

    nothing = SimpleNamespace(encoded=[], targets=[], multiple_choice=False)
    monkeypatch.setattr(folds, "_held_out", lambda *_: SimpleNamespace(of_member=lambda index: nothing))
    data = SimpleNamespace(of_member=lambda index: SimpleNamespace(target_offsets=np.array([0, 1, 2])))
    ctx: Any = SimpleNamespace(
        splits={folds.SPLIT: data}, store=SimpleNamespace(scratch=lambda stage: tmp_path)
    )
    weak = SimpleNamespace(models=[SimpleNamespace(display_name="tiny")])
    plan: Any = SimpleNamespace(
        fold=np.array([0, 1]),
        config=SimpleNamespace(seed=3, weak=weak),
        options=SimpleNamespace(n_folds=2, n_repeats=2),
    )
    for repeat in (0, 1):
        folds._submit(ctx, SimpleNamespace(submit=submit), plan, FoldJob(0, 0, repeat), 0)
    assert seeds == [3001, 3002]


def _file(path: Path, rows: list[dict[str, Any]]) -> Any:
    from ensemw2s.config import FileSource

    return FileSource(path=str(write_jsonl(path, rows)))


class _Words:
    """One token a character."""

    eos_token_id, bos_token_id = 0, None

    def __call__(self, texts: list[str], **options: Any) -> dict[str, Any]:
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


def _split(samples: list[Sample]) -> EncodedSplit:
    from ensemw2s.data.encoding import Encoder

    return EncodedSplit(samples, Encoder(_Words(), prompt="{question}", max_length=99), 0)  # type: ignore[arg-type]


def test_a_loss_over_tokens_that_the_model_lacks_is_refused(
    make_tiny: MakeConfig, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    loss = {"loss": "confidence", "loss_options": {"classes": [5, 999999]}}
    config = ExperimentConfig.model_validate(make_tiny(tmp_path, weak__training=loss))
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ConfigError, match=r"^weak.training: .* outside of the vocabulary of tiny-weak"):
        rate(config, source)
    assert sorted(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("loss", ["uncertainty_smoothing", "soft_cross_entropy", "product_of_experts"])
def test_a_loss_that_needs_doubt_is_refused(
    make_tiny: MakeConfig, rows: list[dict[str, Any]], tmp_path: Path, loss: str
) -> None:
    config = ExperimentConfig.model_validate(make_tiny(tmp_path, weak__training={"loss": loss}))
    source = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ConfigError, match=rf"^weak.training.loss {loss} needs labels with doubt"):
        rate(config, source)
    assert sorted(tmp_path.iterdir()) == [source]


def test_confidence_by_hand() -> None:
    choices = _split([Sample("a", "q", ("x", "y"), 0), Sample("b", "q", ("x", "yz"), 1)])
    # " x" and " y": sums of logs 0.2 and 0.6; " x" and " yz": 0.3 and 0.1.
    logs = np.log([0.4, 0.5, 0.6, 1.0, 0.3, 1.0, 0.1, 1.0, 1.0])
    confidence, right = judge(choices, TokenScores(logs, np.zeros(9, bool), {}), "sum")
    assert confidence == pytest.approx([0.25, 0.25])
    assert right.tolist() == [False, False]
    free = _split([Sample("a", "q", None, "x"), Sample("b", "q", None, "yz")])
    # " x" and its end; " yz" and its end: the end takes part in right, not in confidence.
    logs = np.log([0.25, 0.25, 0.01, 0.5, 0.5, 1.0, 1.0])
    hits = np.array([True, True, False, True, True, True, True])
    confidence, right = judge(free, TokenScores(logs, hits, {}), "sum")
    assert confidence == pytest.approx([0.25, 0.25 ** (1 / 3)])
    assert right.tolist() == [False, True]


def test_differing_answers_by_hand() -> None:
    assert differing_pairs([["a", "b"], ["a", "c"], ["d", "e"]]) == pytest.approx([2 / 3, 1.0])


def test_irt_over_a_table(config: ExperimentConfig, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "three.jsonl", rows[:3])
    ids = [row["id"] for row in rows[:3]]
    table = tmp_path / "answers.csv"
    # Rows in another order, one for a sample that is not there, a model that was not asked everything.
    table.write_text(f"id,a,b,c\n{ids[2]},0,0,\nother,1,1,1\n{ids[0]},1,true,1\n{ids[1]},1,0,1\n")
    rated = rate(config, data, method="irt", responses=table, folds=None)
    fit = fit_irt(np.array([[1, 1, 0], [1, 0, 0], [1, 1, np.nan]]), "rasch")
    assert [rated[i]["difficulty"] for i in ids] == pytest.approx(fit.difficulty.tolist())
    assert rated[ids[0]]["difficulty"] < rated[ids[1]]["difficulty"] < rated[ids[2]]["difficulty"]
    assert read_provenance(data.with_suffix(".rated.parquet"))["irt"] == "rasch"  # type: ignore[index]


def test_irt_over_the_folds_and_a_split_from_it(
    config: ExperimentConfig, rows: list[dict[str, Any]], tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", rows)
    rated = rate(config, data, method="irt", repeats=2)
    values = np.array([row["difficulty"] for row in rated.values()])
    assert np.isfinite(values).all()
    assert len(set(values)) > 1
    # Few models answer alike to many questions: a quantile may meet ties, a threshold between two values does not.
    middle = float(values.min() + values.max()) / 2
    split = {"method": "difficulty", "easy_threshold": middle, "val_fraction": 0.25, "test_fraction": 0.4}
    source = {"kind": "file", "path": str(data.with_suffix(".rated.parquet"))}
    splits = make_splits(config.data.model_validate({"pool": source, "split": split}))
    easy = [s.difficulty for n in ("easy_train", "easy_val") for s in splits.samples[n]]
    hard = [s.difficulty for n in ("hard_train", "test") for s in splits.samples[n]]
    assert max(easy) < min(hard)  # type: ignore[type-var]
    assert len(easy) + len(hard) == 48


def test_members_rate_what_they_were_not_trained_on(
    make_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from ensemw2s.engine.labeling import selected_ensemble
    from ensemw2s.errors import DataError

    seeds = {"rounds": 2, "method": "seeds"}
    config = ExperimentConfig.model_validate(make_tiny(tmp_path, boosting=seeds, vote__rounds="all"))
    run_dir = api.run(config, until="labels").run_dir
    with pytest.raises(DataError, match="leak"):
        api.rate(config, output=tmp_path / "x.parquet", method="members", run=run_dir)
    # One of those questions under another id, in quotation marks, with its choices turned round.
    (row,) = pq.read_table(run_dir / "splits" / "easy_train.parquet").slice(0, 1).to_pylist()
    twin = {"id": "twin", "question": f'"{row["question"]}"', "choices": row["choices"][::-1]}
    source = write_jsonl(tmp_path / "twin.jsonl", [twin])
    with pytest.raises(DataError, match=r"leak: .* 1 of the 1 questions \(first: 'twin'\)"):
        api.rate(config, output=tmp_path / "x.parquet", method="members", run=run_dir, input=source)
    hard = run_dir / "splits" / "hard_train.parquet"
    rated = api.rate(config, output=tmp_path / "x.parquet", method="members", run=run_dir, input=hard)
    ensemble = api.load_ensemble(run_dir)
    assert selected_ensemble(ensemble._ctx).systems == ("member-00", "member-01")
    # The Jensen-Shannon divergence of two distributions over the choices, from each member's votes on disk.
    shares = []
    splits = ensemble._ctx.splits["hard_train"]
    for member in ("member-00", "member-01"):
        votes = pq.read_table(run_dir / "votes" / f"hard_train.{member}.parquet")
        logs = votes.column("logprobs").combine_chunks().flatten().to_numpy().astype(np.float64)
        offsets = splits.choice_token_offsets
        means = (np.add.reduceat(logs, offsets[:-1]) / np.diff(offsets)).reshape(-1, 4)
        shares.append(np.exp(means) / np.exp(means).sum(axis=1, keepdims=True))
    mean = (shares[0] + shares[1]) / 2

    def entropy(p: np.ndarray) -> np.ndarray:
        return np.asarray(-(p * np.log(p)).sum(axis=1))

    expected = entropy(mean) - (entropy(shares[0]) + entropy(shares[1])) / 2
    # In units of the largest divergence of two members, log 2.
    assert rated.difficulty == pytest.approx(expected / np.log(2), rel=1e-3)
    assert json.loads(pq.read_schema(rated.path).metadata[b"ensemw2s.rating"])["members"] == list(
        ensemble.members
    )
