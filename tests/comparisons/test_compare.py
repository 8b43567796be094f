"""A comparison of tiny runs: the table against the stored predictions, shared work, runs at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from ensemw2s import cli
from ensemw2s.cluster.shares import process_share
from ensemw2s.comparisons.at_once import _outcome
from ensemw2s.comparisons.command import claim
from ensemw2s.comparisons.config import load_comparison
from ensemw2s.comparisons.table import _single_flops
from ensemw2s.comparisons.votes import vote_tables
from ensemw2s.config import RuntimeConfig
from ensemw2s.errors import RunDirectoryError, WorkerFailure
from ensemw2s.runs.report_format import NOTHING
from tests.comparisons.files import FILE, MakeConfig, write

#: Stages of the members after the first.
LATER = ("member-01", "votes-member-01")


@pytest.fixture(scope="module")
def compared(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write(tmp_path_factory.mktemp("compare"), make_tiny)
    assert cli.main(["compare", str(path)]) == 0
    return path


def test_a_first_variant_without_a_result(
    make_tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others are compared with the one after it, and that is said."""
    # What learns nothing is no better than the prior.
    variants = {"hopeless": {"weak.training.learning_rate": 1e-9}, "bagged": {"boosting.method": "bagging"}}
    path = write(tmp_path, make_tiny, variants=variants, seeds=[3])
    assert cli.main(["compare", str(path)]) == 1
    said = capsys.readouterr().out
    assert "left out: hopeless: seed 3: " in said
    assert "; the single model, its student and the baselines of the tables are those of bagged\n" in said
    assert "bagged (2 members)" in said


def accuracy(folder: Path, system: str) -> float:
    rows = pq.read_table(folder / "predictions" / "test.parquet").to_pylist()
    return float(np.mean([row[system] == row["truth"] for row in rows]))


def test_the_table_is_the_mean_of_the_runs(compared: Path) -> None:
    folder = compared.parent / "runs" / "ways"
    table, validation = json.loads((folder / "comparison.json").read_text())["splits"]
    assert (table["split"], validation["split"]) == ("test", "easy_val")
    # Only there was anything chosen.
    html = (folder / "comparison.html").read_text()
    assert html.count("its p-values are too small") == 1
    assert html.index("easy_val (") < html.index("its p-values are too small")
    single = np.mean([accuracy(folder / "runs" / f"variant-00-seed-{s}", "weak_single") for s in (3, 4)])
    assert table["shared"]["Single weak model"]["value"] == pytest.approx(single)
    for index, row in enumerate(table["variants"]):
        runs = [folder / "runs" / f"variant-{index:02d}-seed-{s}" for s in (3, 4)]
        ensemble = np.mean([accuracy(r, "weak_ensemble") for r in runs])
        assert row["name"] == list(FILE["variants"])[index]  # type: ignore[call-overload]
        assert row["ensemble"]["value"] == pytest.approx(ensemble)
        assert row["ensemble_difference"]["value"] == pytest.approx(ensemble - single)
        assert row["ensemble_difference"]["p_holm"] >= row["ensemble_difference"]["p_value"]
        assert row["weak_flops"] > 0
        costs = [json.loads((run / "results.json").read_text())["cost"] for run in runs]
        more = sum(c["flops"] for cost in costs for stage, c in cost.items() if stage.startswith(LATER)) / 2
        gain = 100 * row["ensemble_difference"]["value"]
        assert row["flops_per_point"] == (None if gain <= 0 else pytest.approx(more / gain))
        results = [json.loads((run / "results.json").read_text()) for run in runs]
        for key, system in (("ensemble", "weak_ensemble"), ("student", "student_ensemble")):
            known = np.mean([r[system]["easy_val"]["value"] for r in results])
            assert validation["variants"][index][key]["value"] == pytest.approx(known)
        # A bagged single model has other data, so that it has another student.
        assert (row["single_student"] is None) == (row["name"] != "bagged")
        if row["single_student"] is not None:
            own = np.mean([accuracy(r, "student_single") for r in runs])
            assert row["single_student"]["value"] == pytest.approx(own)
            assert row["own_difference"]["value"] == pytest.approx(row["student"]["value"] - own)
        pgr = row["pgr"]
        assert pgr is None or pgr["value"] == pytest.approx(
            (row["student"]["value"] - single)
            / (table["shared"]["Ceiling (true hard labels)"]["value"] - single)
        )
    taught = np.mean([accuracy(folder / "runs" / f"variant-00-seed-{s}", "student_single") for s in (3, 4)])
    shared, apart = table["shared"], table["shared_differences"]
    assert set(shared) - set(apart) == {"Single weak model", "Student of the single model"}
    for label, difference in apart.items():
        own = single if label == "Weak model as it is" else taught
        assert difference["value"] == pytest.approx(shared[label]["value"] - own)
        assert difference["low"] <= difference["value"] <= difference["high"]
    ceiling = shared["Ceiling (true hard labels)"]["value"]
    assert set(table["shared_pgr"]) == {"Student of the single model", "Strong model, easy labels"}
    for label, gap in table["shared_pgr"].items():
        assert gap is None or gap["value"] == pytest.approx(
            (shared[label]["value"] - single) / (ceiling - single)
        )
    votes = html.index("Other ways to vote")
    assert html[:votes].count('<th scope="row">') == 2 * (6 + 4)


def test_equal_work_is_done_once(compared: Path) -> None:
    """The uniform vote has the boosted members, and all variants have one ceiling for each seed."""
    runs = compared.parent / "runs" / "ways" / "runs"
    for seed in (3, 4):
        events = (runs / f"variant-01-seed-{seed}" / "events.jsonl").read_text()
        found = [json.loads(line)["work"] for line in events.splitlines()]
        assert {"round 1 of 2: training", "round 2 of 2: training", "student ceiling"} <= set(found)
        bagged = (runs / f"variant-02-seed-{seed}" / "events.jsonl").read_text()
        assert "student on_easy" in bagged
        assert "training" not in bagged


def test_again_it_is_shown_and_may_grow(
    compared: Path, make_tiny: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(compared)]) == 0
    assert "boosted (2 members)" in capsys.readouterr().out
    grown = yaml.safe_load(compared.read_text())
    grown["variants"]["seeds only"] = {"boosting.method": "seeds"}
    compared.with_name("grown.yaml").write_text(yaml.safe_dump(grown, sort_keys=False))
    claim(load_comparison(compared.with_name("grown.yaml")))
    changed = yaml.safe_load(compared.read_text())
    changed["variants"]["boosted"] = {"boosting.rounds": 1}
    compared.with_name("changed.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(RunDirectoryError, match="holds another comparison"):
        claim(load_comparison(compared.with_name("changed.yaml")))


def test_other_ways_to_vote_are_the_means_of_the_runs(compared: Path) -> None:
    folder = compared.parent / "runs" / "ways"
    labels, test = json.loads((folder / "comparison.json").read_text())["votes"]
    assert (labels["split"], test["split"]) == ("hard_train", "test")
    assert labels["variants"] == ["boosted", "uniform", "bagged"]
    runs = [
        [
            json.loads((folder / "runs" / f"variant-{i:02d}-seed-{s}" / "results.json").read_text())
            for s in (3, 4)
        ]
        for i in range(3)
    ]
    by_vote = {row["vote"]: row["accuracy"] for row in labels["rows"]}
    assert len(by_vote) == 12
    own = ("weighted by the member weights", "equal weights", "weighted by the member weights")
    for i, name in enumerate(own):
        expected = np.mean([r["label_accuracy"]["ensemble"]["value"] for r in runs[i]])
        assert by_vote[name][i] == pytest.approx(expected)
    # The same members.
    assert [row["accuracy"][0] for row in test["rows"]] == [row["accuracy"][1] for row in test["rows"]]
    html = (folder / "comparison.html").read_text()
    assert html.count("best member on easy_val") == 2


def test_no_ways_to_vote_where_a_run_has_none() -> None:
    assert vote_tables({"a": [{"diagnostics": {"votes": []}}], "b": [{}]}, ["test"]) == []
    rows = [
        {"label_model": name, "calibrate": False, "splits": {"test": {"accuracy": 0.5}}}
        for name in ("glad", "uniform")
    ]
    results = {"a": [{"diagnostics": {"votes": rows}}, {"diagnostics": {"votes": rows[1:]}}], "b": [{}]}
    labels, test = vote_tables(results, ["test"])
    # Where not all runs of a variant have it there is no mean; "b" has one model.
    assert (test.variants, test.rows) == (("a",), (("equal weights", (0.5,)),))
    assert labels.cells() == [["equal weights", NOTHING]]


def test_flops_of_the_single_model_are_those_of_the_first_member_that_was_kept() -> None:
    members = [{"kept": False}, {"kept": True}, {"kept": True}]
    stages = (
        "prior-0",
        "prior-1",
        "member-00",
        "member-01",
        "votes-member-01",
        "member-02",
        "votes-member-02",
    )
    cost = {stage: {"flops": 10.0**i} for i, stage in enumerate(stages)}
    # The second attempt has the second of two models.
    assert _single_flops({"members": members, "cost": cost}, 2) == 10.0 + 1e3 + 1e4
    assert _single_flops({"members": members, "cost": cost}, 1) == 1.0 + 1e3 + 1e4
    # The first attempt was lost before it was there, and the second after its training.
    named = [{"kept": True, "attempt": 1}, {"kept": True, "attempt": 2}]
    lost = [{"attempt": 0}, {"attempt": 1}]
    assert _single_flops({"members": named, "cost": cost, "lost_members": lost}, 1) == 1.0 + 1e5 + 1e6


def test_an_error_of_a_run_on_the_cluster_is_shown_and_a_lost_process_told_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    def outcome(error: Exception) -> None:
        def get(_: Any) -> None:
            raise error

        monkeypatch.setattr(ray, "get", get)
        _outcome(object())

    own = TypeError("my loss: unsupported operand")
    with pytest.raises(ray.exceptions.RayTaskError, match="my loss: unsupported operand"):
        outcome(ray.exceptions.RayTaskError("run", "TypeError: my loss: unsupported operand", own))
    with pytest.raises(WorkerFailure, match="the process of a run was lost"):
        outcome(ray.exceptions.WorkerCrashedError())


@pytest.mark.parametrize(
    ("nodes", "asked", "share"),
    [
        # A whole node, an even part of it for as many as are wanted, and what was given.
        ([{"CPU": 16}], {}, (16, 0, 1)),
        ([{"CPU": 16}], {"wanted": 4}, (4, 0, 4)),
        ([{"CPU": 16}, {"CPU": 8}], {"wanted": 4}, (4, 0, 6)),
        ([{"CPU": 2}], {"wanted": 4}, (1, 0, 2)),
        ([{"CPU": 16}], {"wanted": 4, "cpus": 8}, (8, 0, 2)),
        ([{"CPU": 16, "GPU": 4}], {"wanted": 2}, (4, 1, 4)),
        ([{"CPU": 16, "GPU": 4}], {"gpus": 2}, (8, 2, 2)),
    ],
)
def test_what_a_run_takes_of_the_cluster(
    nodes: list[dict[str, float]],
    asked: dict[str, Any],
    share: tuple[float, float, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import ray

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": n} for n in nodes])
    words = {"what": "a run", "fields": "cpus_per_run", "command": "compare"}
    found = process_share(RuntimeConfig(), **{"cpus": None, "gpus": None, **asked}, **words)
    assert (found.cpus, found.gpus, found.at_once) == share


@pytest.mark.slow
def test_runs_at_once_give_the_same_table(
    ray_cluster: None,
    compared: Path,
    make_tiny: MakeConfig,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Four processes on the cluster of the tests; one variant gives no result, and is left out."""
    hopeless = {"weak.training.learning_rate": 1e-9, "boosting.on_useless": "stop"}
    variants = {**FILE["variants"], "hopeless": hopeless}  # type: ignore[dict-item]
    path = write(tmp_path, make_tiny, variants=variants, runs_at_once=4, cpus_per_run=1, gpus_per_run=0)
    assert cli.main(["compare", str(path), "runtime.threads=1"]) == 1
    said = capfd.readouterr().err
    assert "bagged, seed 4: committed member-01" in said
    assert "hopeless, seed" in said
    ours, theirs = (
        json.loads((p.parent / "runs" / "ways" / "comparison.json").read_text()) for p in (path, compared)
    )
    assert set(ours["failed"]) == {"hopeless"}
    for split, expected in zip(ours["splits"], theirs["splits"], strict=True):
        assert split["variants"] == expected["variants"]
        assert split["shared"] == expected["shared"]


def test_a_variant_that_gives_no_result_is_left_out(
    make_tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"good": {}, "hopeless": {"weak.training.learning_rate": 1e-9, "boosting.on_useless": "stop"}}
    path = write(tmp_path, make_tiny, seeds=[3], variants=variants)
    assert cli.main(["compare", str(path)]) == 1
    out = capsys.readouterr().out
    assert "good (2 members)" in out
    assert "left out: hopeless: seed 3: no weak supervisor is better than the prior" in out
    content = json.loads((tmp_path / "runs" / "ways" / "comparison.json").read_text())
    assert [row["name"] for row in content["splits"][0]["variants"]] == ["good"]
