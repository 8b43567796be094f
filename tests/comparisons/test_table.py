"""The table of a comparison from predictions made by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.comparisons.report import cells
from ensemw2s.comparisons.table import SplitTable, build_table
from ensemw2s.core.multiple import holm

N = 100
#: How many of the questions each system has right: the first ones.
FIRST = {
    "weak_zero_shot": 20,
    "weak_single": 40,
    "weak_ensemble": 50,
    "student_single": 55,
    "student_ensemble": 70,
    "ceiling": 80,
    "strong_zero_shot": 20,
    "strong_on_easy": 60,
}
OTHER = {**FIRST, "weak_single": 30, "weak_ensemble": 45, "student_single": 50, "student_ensemble": 60}


def write_predictions(folder: Path, right: dict[str, int]) -> None:
    columns: dict[str, list[Any]] = {
        "id": [str(i) for i in range(N)],
        "question": ["q"] * N,
        "choices": [["x", "y"]] * N,
        "truth": ["x"] * N,
    }
    for system, n_right in right.items():
        columns[system] = ["x"] * n_right + ["y"] * (N - n_right)
    (folder / "predictions").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "predictions" / "test.parquet")


@pytest.fixture
def table(tmp_path: Path) -> SplitTable:
    """Two variants of one seed, of which the second has a single model of its own."""
    write_predictions(tmp_path / "first", FIRST)
    write_predictions(tmp_path / "other", OTHER)
    return tabulate({name: [tmp_path / name] for name in ("first", "other")})


def tabulate(folders: dict[str, list[Path]]) -> SplitTable:
    n_seeds = len(folders["first"])
    comparison: Any = SimpleNamespace(
        config=SimpleNamespace(seeds=tuple(range(n_seeds))),
        run=lambda variant, seed: SimpleNamespace(weak=SimpleNamespace(models=[0])),
        base=SimpleNamespace(evaluation=SimpleNamespace(resamples=2000, level=0.95)),
    )
    cost = {"member-00": {"flops": 1.0}, "member-01": {"flops": 2.0}}
    results = [{"selected_rounds": 2, "members": [{"kept": True}], "cost": cost}] * n_seeds
    return build_table(comparison, dict.fromkeys(folders, results), folders, "test")


def test_with_several_seeds_p_varies_the_seeds(tmp_path: Path) -> None:
    """The variant is better with one seed of three alone: its interval holds 0, and p must not say otherwise."""
    better = {**FIRST, "weak_ensemble": 90}
    for seed in range(3):
        write_predictions(tmp_path / f"first-{seed}", {**FIRST, "weak_ensemble": 40})
        write_predictions(tmp_path / f"other-{seed}", better if seed == 0 else {**FIRST, "weak_ensemble": 40})
    table = tabulate(
        {name: [tmp_path / f"{name}-{seed}" for seed in range(3)] for name in ("first", "other")}
    )
    difference = table.variants[1].ensemble_difference
    assert difference.value == pytest.approx(0.5 / 3)
    assert difference.low == 0.0
    assert difference.p_value > 0.5


def test_variants_are_held_against_the_single_model_of_the_first(table: SplitTable) -> None:
    first, other = table.variants
    assert first.ensemble_difference.value == pytest.approx(0.50 - 0.40)
    assert other.ensemble_difference.value == pytest.approx(0.45 - 0.40)
    assert first.student_difference.value == pytest.approx(0.70 - 0.55)
    assert other.student_difference.value == pytest.approx(0.60 - 0.55)
    # Its own single model has another student.
    assert first.own_difference is None
    assert other.own_difference is not None
    assert other.own_difference.value == pytest.approx(0.60 - 0.50)


def test_the_gap_recovered_is_that_of_the_ensembles_student(table: SplitTable) -> None:
    first, other = table.variants
    assert first.pgr is not None
    assert first.pgr.value == pytest.approx((0.70 - 0.40) / (0.80 - 0.40))
    assert other.pgr is not None
    assert other.pgr.value == pytest.approx((0.60 - 0.40) / (0.80 - 0.40))


def test_the_second_stage_of_a_variant_has_a_row(tmp_path: Path) -> None:
    """Held against the first variant's student of the single model, as the student of the first stage is; not every variant has one."""
    write_predictions(tmp_path / "first", FIRST)
    write_predictions(tmp_path / "other", {**FIRST, "student_preference": 75})
    table = tabulate({name: [tmp_path / name] for name in ("first", "other")})
    first, other = table.variants
    assert (first.second_stage, first.second_difference, first.second_pgr) == (None, None, None)
    assert other.second_stage is not None
    assert other.second_stage.value == pytest.approx(0.75)
    assert other.second_difference is not None
    assert other.second_difference.value == pytest.approx(0.75 - 0.55)
    assert other.second_pgr is not None
    assert other.second_pgr.value == pytest.approx((0.75 - 0.40) / (0.80 - 0.40))
    assert [row[0] for row in cells(table)][-3:] == [
        "first (2 members)",
        "other (2 members)",
        "other: student after its second stage",
    ]


def test_a_difference_that_variants_share_is_corrected_for_once(tmp_path: Path) -> None:
    """Three variants of one ensemble with three students: four differences, not six."""
    for name, right in (("first", 70), ("soft", 66), ("kept", 62)):
        write_predictions(tmp_path / name, {**FIRST, "student_ensemble": right})
    rows = tabulate({name: [tmp_path / name] for name in ("first", "soft", "kept")}).variants
    assert len({row.ensemble_difference for row in rows}) == 1
    found = [rows[0].ensemble_difference, *(row.student_difference for row in rows)]
    np.testing.assert_allclose([d.p_holm for d in found], holm([d.p_value for d in found]))
    assert rows[0].student_difference.p_holm == pytest.approx(4 * rows[0].student_difference.p_value)


def test_p_values_are_corrected_for_all_differences_of_the_table(table: SplitTable) -> None:
    first, other = table.variants
    found = [
        difference
        for row in (first, other)
        for difference in (row.ensemble_difference, row.student_difference, row.own_difference)
        if difference is not None
    ]
    assert len(found) == 5
    np.testing.assert_allclose([d.p_holm for d in found], holm([d.p_value for d in found]))
    # Fifteen answers more and none less: the smallest of the five.
    assert first.student_difference.p_holm == pytest.approx(5 * first.student_difference.p_value)
