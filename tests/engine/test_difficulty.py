"""Difficulty in results.json and in the report: distribution, accuracy by difficulty, both ends."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig, FileSource
from ensemw2s.core.difficulty import difficulty_bins
from ensemw2s.data.samples import Sample, samples_to_table
from ensemw2s.data.sources import load_source
from ensemw2s.engine.difficulty import describe_difficulty
from ensemw2s.engine.rating.output import Rating, rated_sources, rated_table
from ensemw2s.runs import report_difficulty as report
from ensemw2s.runs.figures_style import LIGHT

from ..conftest import MakeConfig


def test_bins_by_hand() -> None:
    assert difficulty_bins([3.0, 1.0, 3.0, 2.0], 3).tolist() == [2, 0, 2, 1]
    assert difficulty_bins([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 3).tolist() == [2, 2, 1, 1, 0, 0]
    # Five that tie stay together: ranks 2 to 6 of 8 have their middle in the second half.
    assert difficulty_bins([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0], 2).tolist() == [0, 0, 0, 0, 0, 0, 1, 1]
    # The middle of four to ten of ten is in the second half, where their first is in the first.
    assert difficulty_bins([0] * 4 + [1] * 5 + [2], 2).tolist() == [0] * 4 + [1] * 6
    # Nine that tie have their middle in the second third; the first is empty, and is left out.
    assert difficulty_bins([1] * 9 + [2, 3, 4], 3).tolist() == [0] * 9 + [1] * 3
    # As many values as bins.
    assert difficulty_bins([1] * 8 + [2, 3], 3).tolist() == [0] * 8 + [1, 2]
    for bad in ([], [np.nan]):
        with pytest.raises(ValueError, match="difficulty"):
            difficulty_bins(bad)
    with pytest.raises(ValueError, match="n_bins must be at least 1, got 0"):
        difficulty_bins([1.0], 0)


def context(**splits: list[float | None]) -> Any:
    class Splits(dict[str, Any]):
        def names(self) -> list[str]:
            return list(self)

    made = Splits()
    for name, values in splits.items():
        samples = [
            Sample(f"{name}-{i}", f"question {i}", None, f"answer {i}", d) for i, d in enumerate(values)
        ]
        made[name] = SimpleNamespace(samples=samples)
    return SimpleNamespace(splits=made, test_splits=[n for n in splits if n == "test"])


def results() -> dict[str, Any]:
    ctx = context(easy_train=[0.0, 1.0, 1.0], test=[4.0, 2.0, None, 4.0])
    right = {
        "weak_single": np.array([False, True, True, False]),
        "ceiling": np.array([True, True, True, False]),
    }
    found = describe_difficulty(ctx, {"test": right}, {})
    return {"difficulty": found, "splits": {"easy_train": {}, "test": {}}}


def test_what_is_stored() -> None:
    found = results()["difficulty"]
    # Four different values stand in the middle of a bin each.
    assert found["edges"] == [-0.5, 0.5, 1.5, 3.0, 5.0]
    assert found["splits"]["easy_train"]["counts"] == [1, 2, 0, 0]
    assert found["splits"]["test"] == {
        "n": 3,
        "unrated": 1,
        "quartiles": [2.0, 3.0, 4.0, 4.0, 4.0],
        "counts": [0, 0, 1, 2],
    }
    easy, hard = found["accuracy"]["test"]
    assert (easy["n"], easy["systems"]) == (1, {"weak_single": 1.0, "ceiling": 1.0})
    assert (hard["n"], hard["low"], hard["systems"]) == (2, 4.0, {"weak_single": 0.0, "ceiling": 0.5})
    assert describe_difficulty(context(easy_train=[None], test=[None]), {}, {}) is None


def test_what_is_shown(tmp_path: Path) -> None:
    run = results()
    table = report.by_difficulty(run)
    assert table is not None
    assert [list(row) for row in table.rows] == [
        ["test", "2", "1", "100.0 %", "100.0 %"],
        ["test", "4", "2", "0.0 %", "50.0 %"],
    ]
    shown = report.distribution(run)
    assert shown is not None
    assert list(shown.notes) == ["1 questions of test have no difficulty."]
    top, below = report.draw(run, LIGHT).axes
    assert [patch.get_data().values.tolist() for patch in top.patches] == [
        pytest.approx([1 / 3, 2 / 3, 0, 0]),
        pytest.approx([0, 0, 1 / 3, 2 / 3]),
    ]
    assert [line.get_ydata().tolist() for line in below.lines] == [[1.0, 0.0], [1.0, 0.5]]
    assert "Single weak model on test, easiest first: 100.0 %, 0.0 %" in report.alt(run)
    (tmp_path / "splits").mkdir()
    for name, split in context(easy_train=[0.0, 1.0, 1.0], test=[4.0, 2.0, None, 4.0]).splits.items():
        pq.write_table(samples_to_table(split.samples), tmp_path / "splits" / f"{name}.parquet")
    ends = report.both_ends(tmp_path, run)
    assert ends is not None
    assert [(row[0], row[1], row[2], row[4]) for row in ends.rows] == [
        ("easiest", "0", "easy_train", "answer 0"),
        ("easiest", "1", "easy_train", "answer 1"),
        ("easiest", "1", "easy_train", "answer 2"),
        ("hardest", "4", "test", "answer 3"),
        ("hardest", "4", "test", "answer 0"),
        ("hardest", "2", "test", "answer 1"),
    ]


@pytest.mark.parametrize("none", [{}, {"difficulty": None}])
def test_runs_without_difficulty_show_none(none: dict[str, Any], tmp_path: Path) -> None:
    assert not report.known(none)
    assert report.distribution(none) is report.by_difficulty(none) is report.both_ends(tmp_path, none) is None


def test_a_run_says_who_rated_its_file(make_tiny: MakeConfig, tmp_path: Path) -> None:
    plain = make_tiny(tmp_path)
    samples = load_source(FileSource(kind="file", path=plain["data"]["pool"]["path"]))
    rating = Rating("folds", np.arange(len(samples), dtype=float), "0123456789ab", None, {"folds": 5})
    pq.write_table(rated_table(samples, rating), tmp_path / "rated.parquet")
    plain["data"]["pool"] = {"kind": "file", "path": str(tmp_path / "rated.parquet")}
    config = ExperimentConfig.model_validate(plain)
    assert rated_sources(config.data) == {"pool": {"method": "folds", "config": "0123456789ab", "folds": 5}}
    assert rated_sources(ExperimentConfig.model_validate(make_tiny(tmp_path)).data) == {}
    done = api.run(config)
    assert done.results["difficulty"]["ratings"] == rated_sources(config.data)
    said = "Difficulties of pool were rated before: method folds, config 0123456789ab, folds 5."
    assert said in (done.run_dir / "report.md").read_text()
