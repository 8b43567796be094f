"""Members of two tokenizers on a real Ray: the labels that they write in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig

pytestmark = pytest.mark.timeout(600)
MakeConfig = Callable[..., dict[str, Any]]
ON_RAY = {
    "executor": "ray",
    "device": "cpu",
    "threads": 1,
    "supervisors": 2,
    "gpus_per_supervisor": 1.0,
    "cpus_per_supervisor": 0.5,
}


@pytest.mark.slow
def test_labels_are_those_of_one_process(
    ray_cluster: None,
    make_tiny: MakeConfig,
    tiny_weak: Path,
    tiny_other: Path,
    free_questions: Path,
    tmp_path: Path,
) -> None:
    """Bit for bit: float32, one thread in both."""
    tables = []
    for where, runtime in (("local", {"executor": "local", "device": "cpu", "threads": 1}), ("ray", ON_RAY)):
        config = make_tiny(
            tmp_path / where,
            weak__training__epochs=4,
            weak__training__learning_rate=2e-2,
            boosting={"rounds": 2, "method": "bagging"},
            vote={"alignment": "bytes", "rounds": "all", "max_new_tokens": 6},
            runtime=runtime,
        )
        config["weak"]["models"] = [{"path": str(tiny_weak)}, {"path": str(tiny_other)}]
        config["data"]["pool"] = {"kind": "file", "path": str(free_questions)}
        result = api.run(ExperimentConfig.model_validate(config), until="labels")
        names = ("labels/ensemble", "answers/hard_train.member-ensemble-02")
        tables.append([pq.read_table(result.run_dir / f"{name}.parquet") for name in names])
    assert tables[0][0].equals(tables[1][0])
    assert tables[0][1].equals(tables[1][1])
