"""A run on an S3 server by nodes that share no disk: a second raylet on this machine, with another folder for its copy."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import Until
from ensemw2s.runs.files import file_hash
from ensemw2s.runs.reading import begun_run
from tests.s3_server import S3

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
MakeConfig = Callable[..., dict[str, Any]]
SETTINGS = {
    "weak__training__epochs": 2,
    "weak__training__learning_rate": 2e-2,
    "boosting": {"rounds": 2, "prior": "unigram", "max_weight": 20.0},
    "vote__rounds": "all",
    "strong__training__epochs": 1,
}


@pytest.fixture
def second_node(ray_cluster: None) -> Iterator[Any]:
    """Another node of the tests' Ray, with three GPUs and a disk of its own."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=False)
    cluster.head_node = ray._private.worker._global_node
    cluster.redis_address = cluster.head_node.redis_address
    node = cluster.add_node(
        num_cpus=2, num_gpus=3, node_ip_address="127.0.0.1", env_vars={"NODE_DISK": "second"}
    )
    try:
        yield node
    finally:
        cluster.remove_node(node)


@pytest.mark.parametrize("until", ["labels", pytest.param("results", marks=pytest.mark.long)])
def test_nodes_without_a_shared_disk_make_the_same_run(
    second_node: Any, s3: S3, make_tiny: MakeConfig, tmp_path: Path, until: Until
) -> None:
    """Members and votes bit for bit (float32, one thread); in the long test the students, too."""
    local = api.run(ExperimentConfig.model_validate(make_tiny(tmp_path, **SETTINGS)), until=until)
    runtime = {
        "executor": "ray",
        "device": "cpu",
        "threads": 1,
        # One a node: no node has room for two.
        "supervisors": 2,
        "gpus_per_supervisor": 3.0,
        "checkpoint_steps": 8,
        "work_dir": f"{tmp_path}/$NODE_DISK",
    }
    bucket = s3.bucket()
    config = {**make_tiny(tmp_path, **SETTINGS, runtime=runtime), "runs_dir": s3.uri(f"{bucket}/runs")}
    on_ray = api.run(ExperimentConfig.model_validate(config), until=until)
    if until == "results":
        for key in ("staged", "selected_rounds", "label_accuracy", "token_weight", "weak_ensemble"):
            assert local.results[key] == on_ray.results[key], key
    run_dir = s3.data / bucket / "runs" / "tiny"
    for name in ("votes/test.member-01.parquet", "labels/ensemble.parquet"):
        assert pq.read_table(local.run_dir / name).equals(pq.read_table(run_dir / name)), name
    stages = json.loads((run_dir / "manifest.json").read_text())["stages"]
    for stage in stages.values():
        for name, expected in stage["files"].items():
            assert file_hash(run_dir / name) == expected, name
    if until == "results":
        assert "students/single/model.safetensors" in stages["student-single"]["files"]
    # Each node had its own copy, and trained.
    for disk in ("first", "second"):
        (copy,) = (tmp_path / disk).iterdir()
        assert (copy / "splits" / "test.parquet").is_file()
        assert list(copy.rglob("members/*/model.safetensors"))
    hidden = [
        p for p in run_dir.rglob("*") if p.is_file() and p.relative_to(run_dir).parts[0].startswith(".")
    ]
    assert hidden == []

    # New labels, on Ray, from the URI.
    from ensemw2s.cluster.labeling import supervisors
    from ensemw2s.data.samples import Sample
    from ensemw2s.engine.labeling import selected_ensemble
    from ensemw2s.opening import open_run

    samples = [Sample("new", "the ant in the barn", ("buzz loud", "hiss low"), None)]
    expected = api.load_ensemble(local.run_dir).label(samples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENSEMW2S_WORK_DIR", str(tmp_path / "reader"))
        ctx = open_run(begun_run(s3.uri(f"{bucket}/runs/tiny")), lambda event: None)
        chosen = selected_ensemble(ctx)
        with supervisors(ctx, len(chosen.refs)) as pool:
            assert api.LoadedEnsemble(ctx, chosen, pool).label(samples).equals(expected)
