"""The whole pipeline in one process on tiny models: what it writes, and that it continues where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.core.voting import mixture
from ensemw2s.engine import supervisor
from ensemw2s.engine.pool import LocalExecutor
from ensemw2s.engine.results import SYSTEMS, comparable
from ensemw2s.errors import ArtifactError, RunDirectoryError, UserError
from ensemw2s.runs.store import RunStore

MakeConfig = Callable[..., dict[str, Any]]
# Enough training for the tiny weak model to learn the task.
LEARNS = {"weak__training__epochs": 10, "weak__training__learning_rate": 2e-2, "boosting__prior": "unigram"}


def run(config: dict[str, Any]) -> api.RunResult:
    return api.run(ExperimentConfig.model_validate(config))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """One finished run, shared by the tests that only look at it."""
    folder = tmp_path_factory.mktemp("finished")
    make = request.getfixturevalue("make_tiny")
    config = make(folder, **LEARNS)
    return config, run(config)


def test_results_hold_every_promised_key(finished: Any) -> None:
    _, result = finished
    results = json.loads((result.run_dir / "results.json").read_text())
    assert results == json.loads(json.dumps(result.results))
    for key in (
        "members",
        "staged",
        "pgr",
        "label_accuracy",
        "effective_sample_size",
        "cost",
        "versions",
        "seed",
        *SYSTEMS,
    ):
        assert key in results
    for member in results["members"]:
        assert {"round", "error", "prior_error", "alpha", "kept", "train_seconds", "train_tokens"} <= set(
            member
        )
    for system in SYSTEMS:
        for split in ("easy_val", "test"):
            interval = results[system][split]
            assert interval["low"] <= interval["value"] <= interval["high"]
            assert interval["n"] == results["splits"][split]["n"]
    assert all(set(c) == {"seconds", "tokens", "flops", "device"} for c in results["cost"].values())
    assert len(results["staged"]["test"]) == 2
    for path in (
        "report.md",
        "report.html",
        "config.yaml",
        "manifest.json",
        "members/00/member.json",
        "predictions/test.parquet",
    ):
        assert (result.run_dir / path).is_file(), path


def test_the_weak_member_learned_something(finished: Any) -> None:
    results = finished[1].results
    assert results["weak_single"]["test"]["value"] > results["splits"]["test"]["chance"] + 0.2
    assert results["label_accuracy"]["ensemble"]["low"] > 0.3


def test_stored_votes_give_the_labels_without_a_model(finished: Any) -> None:
    """Labels re-derived here from the stored probabilities, by the formula of the paper."""
    _, result = finished
    alphas = [m["alpha"] for m in result.results["members"] if m["kept"]][: result.results["selected_rounds"]]
    votes = [
        pq.read_table(result.run_dir / f"votes/hard_train.member-{t:02d}.parquet") for t in range(len(alphas))
    ]
    labels = pq.read_table(result.run_dir / "labels/ensemble.parquet")
    probs = [
        np.exp(np.array(v.column("logprobs").combine_chunks().flatten(), dtype=np.float64)) for v in votes
    ]
    voted = np.log(mixture(np.stack(probs)[:, :, None], np.array(alphas))[:, 0])
    counts = [len(x) for x in votes[0].column("logprobs").to_pylist()]
    sums = np.add.reduceat(voted, np.concatenate([[0], np.cumsum(counts)[:-1]]))
    scores = (sums / counts).reshape(-1, 4)
    assert labels.column("label").to_pylist() == scores.argmax(axis=1).tolist()
    softmax = np.exp(scores - scores.max(axis=1, keepdims=True))
    softmax /= softmax.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(labels.column("confidence").to_numpy(), softmax.max(axis=1), rtol=1e-6)


def test_a_finished_run_does_nothing(finished: Any) -> None:
    config, result = finished
    before = {p: p.stat().st_mtime_ns for p in result.run_dir.rglob("*") if p.is_file()}
    again = run(config)
    assert not again.ran
    assert again.results == json.loads(json.dumps(result.results))
    assert {p: p.stat().st_mtime_ns for p in result.run_dir.rglob("*") if p.is_file()} == before


def test_another_configuration_is_refused_and_named(finished: Any) -> None:
    config, _ = finished
    other = json.loads(json.dumps(config))
    other["boosting"]["rounds"] = 5
    with pytest.raises(RunDirectoryError, match=r"boosting.rounds: 2 -> 5"):
        run(other)
    other = json.loads(json.dumps(config))
    other["runtime"]["batch_tokens"] = 512
    assert not run(other).ran


def test_the_ensemble_loads_again(finished: Any) -> None:
    from ensemw2s.data.sources import load_unlabeled

    _, result = finished
    ensemble = api.load_ensemble(result.run_dir)
    source = Path(finished[0]["data"]["pool"]["path"])
    samples = load_unlabeled(source)
    table = ensemble.label(samples)
    stored = pq.read_table(result.run_dir / "labels/ensemble.parquet").to_pylist()
    fresh = {row["id"]: row for row in table.to_pylist()}
    assert [fresh[row["id"]]["label"] for row in stored] == [row["label"] for row in stored]
    answer = ensemble.generate(samples[0].question, max_new_tokens=4)
    assert len(answer.tokens) <= 4
    assert 0.0 <= answer.confidence <= 1.0


@pytest.mark.parametrize("stop_after", [3, 5, 12])
def test_stopped_and_continued_is_uninterrupted(
    finished: Any, make_tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Bit for bit on one machine with one thread: all of results.json but times and versions."""
    config = make_tiny(tmp_path, **LEARNS)
    commit = RunStore.commit
    count = 0

    def stopping(self: RunStore, name: str, info: dict[str, Any] | None = None) -> Any:
        nonlocal count
        count += 1
        if count > stop_after:
            raise KeyboardInterrupt
        return commit(self, name, info)

    monkeypatch.setattr(RunStore, "commit", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(RunStore, "commit", commit)
    again = run(config)
    assert again.ran
    assert comparable(again.results) == comparable(finished[1].results)


def test_kill_9_in_round_2_and_the_same_command(finished: Any, make_tiny: MakeConfig, tmp_path: Path) -> None:
    config = make_tiny(tmp_path, **LEARNS)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    script = (
        "import sys\n"
        "from ensemw2s import api\n"
        "api.run(sys.argv[1], progress=lambda e: print(e.task, e.done, flush=True))\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round 2 of 2: training 5"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    run_dir = Path(config["runs_dir"]) / "tiny"
    stages = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert "member-00" in stages
    assert "member-01" not in stages
    again = run(config)
    assert comparable(again.results) == comparable(finished[1].results)


def test_a_damaged_member_is_made_anew(make_tiny: MakeConfig, tmp_path: Path, finished: Any) -> None:
    config = make_tiny(tmp_path, **LEARNS)
    first = run(config)
    weights = first.run_dir / "members/01/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    # The others would vote otherwise without it, so nothing is labelled; and looking changes nothing.
    manifest = (first.run_dir / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError, match=r"damaged file members/01/model\.safetensors"):
        api.load_ensemble(first.run_dir)
    assert (first.run_dir / "manifest.json").read_bytes() == manifest
    again = run(config)
    assert again.ran
    assert comparable(again.results) == comparable(finished[1].results)
    events = [json.loads(line) for line in (first.run_dir / "events.jsonl").read_text().splitlines()]
    assert any(e["event"] == "artifact_damaged" and e["stage"] == "member-01" for e in events)


def test_free_generation(make_tiny: MakeConfig, tmp_path: Path, free_questions: Path) -> None:
    config = make_tiny(tmp_path, **LEARNS, data__pool={"kind": "file", "path": str(free_questions)})
    result = run(config)
    results = result.results
    assert results["task"] == "generation"
    assert len(results["staged"]["test"]) == 2
    assert results["weak_single"]["test"]["value"] > results["weak_zero_shot"]["test"]["value"]
    labels = pq.read_table(result.run_dir / "labels/ensemble.parquet")
    assert all(0.0 <= c <= 1.0 for c in labels.column("confidence").to_pylist())
    single = pq.read_table(result.run_dir / "answers/test.member-00.parquet").column("text").to_pylist()
    truth = pq.read_table(result.run_dir / "predictions/test.parquet").column("truth").to_pylist()
    share = np.mean([a == b for a, b in zip(single, truth, strict=True)])
    assert results["staged"]["test"][0] == pytest.approx(share)


def test_free_answers_by_a_uniform_vote(make_tiny: MakeConfig, tmp_path: Path, free_questions: Path) -> None:
    """Token by token with equal weights, wherever the ensemble speaks."""
    free = {"data__pool": {"kind": "file", "path": str(free_questions)}, **LEARNS}
    weighted, uniform = (
        run(make_tiny(tmp_path / rule, **free, vote__rounds="all", vote__label_model=rule))
        for rule in ("weighted", "uniform")
    )
    alphas = [m["alpha"] for m in uniform.results["members"] if m["kept"]]
    assert [m["alpha"] for m in weighted.results["members"] if m["kept"]] == alphas
    np.testing.assert_allclose(api.load_ensemble(weighted.run_dir).alphas, alphas)
    np.testing.assert_array_equal(api.load_ensemble(uniform.run_dir).alphas, np.ones(len(alphas)))
    first, second = (
        pq.read_table(r.run_dir / "labels/ensemble.parquet").column("confidence") for r in (weighted, uniform)
    )
    assert first != second


def test_no_member_better_than_the_prior_ends_plainly(make_tiny: MakeConfig, tmp_path: Path) -> None:
    config = make_tiny(
        tmp_path,
        boosting__prior="unigram",
        weak__training__learning_rate=1e-9,
        boosting__max_drops=1,
        weak__training__epochs=1,
    )
    with pytest.raises(UserError, match="no weak supervisor is better than the prior"):
        run(config)
    events = (tmp_path / "runs/tiny/events.jsonl").read_text().splitlines()
    assert [json.loads(e)["event"] for e in events] == ["member_dropped", "member_dropped"]


def test_the_supervisor_is_let_go_before_students_are_trained(tmp_path: Path) -> None:
    """Whoever still holds the pool does not hold the weak models, whose memory the strong one needs."""
    import weakref

    executor = LocalExecutor(None, tmp_path, threads=1, report=lambda event: None)  # type: ignore[arg-type]

    class Supervisor:
        def device(self) -> str:
            return "cpu"

    made: list[Any] = []

    def make() -> Supervisor:
        supervisor = Supervisor()
        made.append(weakref.ref(supervisor))
        return supervisor

    executor._supervisor = make  # type: ignore[method-assign]
    with executor.supervisors() as pool:
        assert pool.submit(0, "device").result() == "cpu"
        assert made[0]() is not None
    assert made[0]() is None
    assert pool.size == 1


@pytest.mark.parametrize(
    ("dtype", "computes"), [("float32", None), ("float16", None), ("bfloat16", torch.bfloat16)]
)
def test_only_bfloat16_is_trained_in_half_precision(
    make_tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, computes: Any
) -> None:
    """Without scaling, small gradients are 0 in float16; its members are trained in float32 and kept in float16."""
    from safetensors.torch import load_file

    seen: list[Any] = []
    fit = supervisor.fit

    def noting(*args: Any, **options: Any) -> Any:
        seen.append(options["autocast"])
        return fit(*args, **options)

    monkeypatch.setattr(supervisor, "fit", noting)
    config = make_tiny(tmp_path, boosting={"rounds": 1, "prior": "unigram"})
    config["weak"]["models"][0]["dtype"] = dtype
    result = api.run(ExperimentConfig.model_validate(config), until="labels")
    assert seen == [computes]
    weights = load_file(result.run_dir / "members" / "00" / "model.safetensors")
    assert {w.dtype for w in weights.values()} == {getattr(torch, dtype)}
