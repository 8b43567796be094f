"""Members of two tokenizers on a real Ray: the labels, chosen and written, of one process."""

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
@pytest.mark.parametrize("free", [False, True], ids=["choices", "free"])
def test_labels_are_those_of_one_process(
    ray_cluster: None,
    make_tiny: MakeConfig,
    tiny_weak: Path,
    tiny_other: Path,
    free_questions: Path,
    tmp_path: Path,
    free: bool,
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
        if free:
            config["data"]["pool"] = {"kind": "file", "path": str(free_questions)}
        result = api.run(ExperimentConfig.model_validate(config), until="labels")
        name = "answers/hard_train.member-ensemble-02" if free else "votes/hard_train.member-01"
        tables.append([pq.read_table(result.run_dir / f"{n}.parquet") for n in ("labels/ensemble", name)])
    assert tables[0][0].equals(tables[1][0])
    assert tables[0][1].equals(tables[1][1])
