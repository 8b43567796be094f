"""Placement is arithmetic."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from ensemw2s.cluster.placement import check_fits, gpu_slots, place, plan_supervisors, threads_per_process
from ensemw2s.config import RuntimeConfig
from ensemw2s.config.base import check_gpus
from ensemw2s.errors import ResourceError


@pytest.mark.parametrize(
    ("runtime", "total", "size", "gpus"),
    [
        ({}, {"CPU": 2}, 1, 0.0),
        ({}, {"CPU": 16}, 4, 0.0),
        ({}, {"CPU": 64}, 5, 0.0),
        ({}, {"CPU": 8, "GPU": 2}, 2, 1.0),
        ({"gpus_per_supervisor": 0.25}, {"CPU": 8, "GPU": 1}, 4, 0.25),
        ({"gpus_per_supervisor": 0.6}, {"CPU": 8, "GPU": 2}, 2, 0.6),
        ({"gpus_per_supervisor": 0.3333}, {"CPU": 8, "GPU": 1}, 3, 0.3333),
        ({"gpus_per_supervisor": 2.0}, {"CPU": 8, "GPU": 5}, 2, 2.0),
        ({"supervisors": 3}, {"CPU": 2}, 3, 0.0),
        ({"device": "cpu"}, {"CPU": 8, "GPU": 8}, 2, 0.0),
    ],
)
def test_auto(runtime: dict, total: dict, size: int, gpus: float) -> None:
    if runtime.get("device") == "cpu":
        runtime = {**runtime, "gpus_per_supervisor": 0.0}
    plan = plan_supervisors(RuntimeConfig(**runtime), rounds=5, total=total)
    assert (plan.size, plan.gpus) == (size, gpus)
    assert len(plan.bundles) == size
    assert all(("GPU" in b) == (gpus > 0) for b in plan.bundles)


def test_place_needs_one_node_for_each_bundle() -> None:
    bundle = {"CPU": 0.5, "GPU": 1.0}
    assert place([bundle] * 3, [{"CPU": 8, "GPU": 2}, {"CPU": 8, "GPU": 1}]) is not None
    # Two halves of a GPU on two nodes are no GPU.
    assert place([bundle], [{"CPU": 8, "GPU": 0.5}, {"CPU": 8, "GPU": 0.5}]) is None


def test_a_part_of_a_gpu_is_of_one_gpu() -> None:
    """What is left of two GPUs is no third place; parts that fit beside each other are put there."""
    part = {"CPU": 0.5, "GPU": 0.6}
    two, apart = [{"CPU": 8, "GPU": 2}], [{"CPU": 8, "GPU": 1}] * 2
    for nodes in (two, apart):
        assert place([part] * 2, nodes) is not None
        assert place([part] * 3, nodes) is None
    half = {"CPU": 0.5, "GPU": 0.5}
    assert place([half] * 4, two) == [0] * 4
    assert place([{"CPU": 1, "GPU": 1}, half, half], two) == [0] * 3
    assert place([{"CPU": 1, "GPU": 1}, part, half], two) is None
    assert [gpu_slots(2, each) for each in (0.25, 0.3333, 0.5, 0.6, 1.0, 2.0, 3.0)] == [8, 6, 4, 2, 2, 1, 0]


@pytest.mark.parametrize(
    ("gpus", "allowed"), [(0.25, True), (0.3333, True), (2.0, True), (1.5, False), (0.33333, False)]
)
def test_gpus_that_ray_does_not_give(gpus: float, allowed: bool) -> None:
    with (
        nullcontext()
        if allowed
        else pytest.raises(
            ValueError, match=r"x .* is not allowed: give at most four decimals up to 1, whole"
        )
    ):
        check_gpus("x", gpus)
    check_gpus("x", "auto")


def test_placed_bundles_fit_their_nodes() -> None:
    nodes = [{"CPU": 2, "GPU": 1}, {"CPU": 4, "GPU": 2}]
    bundles = [{"CPU": 1, "GPU": 0.5}] * 6
    where = place(bundles, nodes)
    assert where is not None
    for j, node in enumerate(nodes):
        assert where.count(j) * 0.5 <= node["GPU"]
        assert where.count(j) <= node["CPU"]


def test_the_error_names_what_is_missing() -> None:
    with pytest.raises(
        ResourceError, match=r"4 x \(0.5 CPU, 1 GPU\).* 2 CPU and 1 GPU: lower runtime.supervisors"
    ):
        check_fits(
            "the weak supervisors",
            [{"CPU": 0.5, "GPU": 1}] * 4,
            [{"CPU": 2, "GPU": 1}],
            "runtime.supervisors",
        )


def test_threads() -> None:
    assert threads_per_process(RuntimeConfig(), 2, 8) == 4
    assert threads_per_process(RuntimeConfig(), 4, 2) == 1
    assert threads_per_process(RuntimeConfig(threads=3), 4, 2) == 3
