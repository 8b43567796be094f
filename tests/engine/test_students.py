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

from ensemw2s.config import ExperimentConfig
from ensemw2s.data.samples import Sample
from ensemw2s.engine.students import _by_choice, _uncertainty
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
