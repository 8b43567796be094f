"""A rating on Ray: several supervisors train folds at a time, and rate as one process does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig


@pytest.mark.slow
def test_folds_on_ray_equal_folds_in_one_process(
    ray_cluster: None, make_tiny: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    config = ExperimentConfig.model_validate(make_tiny(tmp_path, weak__training__epochs=1))
    runtime = {"executor": "ray", "device": "cpu", "threads": 1, "supervisors": 2}
    on_ray = config.model_copy(update={"runtime": config.runtime.model_validate(runtime)})
    one = api.rate(config, output=tmp_path / "one.parquet", folds=2)
    two = api.rate(on_ray, output=tmp_path / "two.parquet", folds=2)
    assert pq.read_table(two.path).equals(pq.read_table(one.path))
    assert two.provenance == one.provenance
