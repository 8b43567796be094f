"""What students learn of their teacher beside the text of its labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s.config import ExperimentConfig
from ensemw2s.data.samples import Sample
from ensemw2s.engine.students import LEFT_OUT, _by_choice, _uncertainty, taught_shares
from ensemw2s.engine.teaching import asks_teacher

MakeConfig = Callable[..., dict[str, Any]]


def write_labels(folder: Path, **columns: list[Any]) -> Path:
    path = folder / "labels.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_uncertainty_is_that_of_the_taught_labels(tmp_path: Path) -> None:
    """One less the confidence; the second label is not taught."""
    path = write_labels(tmp_path, confidence=[0.9, 0.4, 0.7])
    np.testing.assert_allclose(_uncertainty(path, [0, 2]), [0.1, 0.3])


class Splits(dict[str, Any]):
    """Splits whose targets have a token for each character and one for the end."""

    def encode(self, samples: list[Sample]) -> Any:
        encoded = [SimpleNamespace(prompt=np.array([1])) for _ in samples]
        targets = [np.zeros(len(s.answer_text or "") + 1, dtype=int) for s in samples]
        return SimpleNamespace(encoded=encoded, targets=targets)


def test_choices_are_taught_by_their_shares(tmp_path: Path) -> None:
    """The first of three questions is not taught, the second has a choice with too small a share."""
    shares = [[0.9, 0.1], [0.005, 0.595, 0.4], [0.7, 0.05, 0.25]]
    path = write_labels(tmp_path, confidence=[0.9, 0.595, 0.7], shares=shares)
    samples = [
        Sample("a", "q", ("x", "y"), 0),
        Sample("b", "q", ("x", "yy", "z"), 0),
        Sample("c", "q", ("x", "y", "z"), 0),
    ]
    splits = Splits(hard_train=SimpleNamespace(samples=samples))
    task: Any = SimpleNamespace(split="hard_train", labels=(None, 1, 0))
    data = _by_choice(splits, task, [1, 2], path)
    # What is left of the second question's shares sums to 0.995.
    expected = [0.595 / 0.995, 0.4 / 0.995, 0.7, 0.05, 0.25]
    np.testing.assert_allclose([weights[0] for weights in data.weights], expected)
    # "yy" has three tokens with its end, the others two.
    np.testing.assert_allclose(data.denominators, np.array(expected) * [3, 2, 2, 2, 2])
    assert data.groups is not None
    assert data.groups.tolist() == [0, 0, 1, 1, 1]
    assert data.uncertainty is not None
    np.testing.assert_allclose(data.uncertainty, [0.405, 0.405, 0.3, 0.3, 0.3])


def test_of_many_choices_only_as_much_is_left_out_as_says_nothing() -> None:
    """300 choices that are nearly alike are taught, all but three of them, though none has a hundredth of the vote."""
    shares = np.full(300, 1.0 / 300)
    taught = taught_shares(shares)
    assert np.count_nonzero(taught) == 297
    np.testing.assert_allclose(taught[taught > 0], 1.0 / 297)
    np.testing.assert_allclose(
        taught_shares(np.array([0.004, 0.985, 0.005, 0.006])), [0.0, 0.985 / 0.991, 0.0, 0.006 / 0.991]
    )
    np.testing.assert_array_equal(taught_shares(np.array([1.0])), [1.0])


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=40).filter(lambda s: sum(s) > 0.1))
def test_what_is_taught_of_a_vote_is_its_largest_shares(raw: list[float]) -> None:
    shares = np.array(raw) / sum(raw)
    taught = taught_shares(shares)
    assert taught.sum() == pytest.approx(1.0)
    left_out = taught == 0.0
    assert shares[left_out].sum() <= LEFT_OUT + 1e-12
    assert shares[left_out].max(initial=0.0) <= shares[~left_out].min()


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        ({}, False),
        ({"strong__training__loss": "uncertainty_smoothing"}, True),
        ({"labels": {"targets": "choices"}}, True),
    ],
)
def test_who_asks_more_of_the_teacher_than_its_labels(
    make_tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], asks: bool
) -> None:
    assert asks_teacher(ExperimentConfig.model_validate(make_tiny(tmp_path, **changes))) == asks
