"""Numbers of committed stages, and that a Prometheus server can read them from a node."""

from __future__ import annotations

import time
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from ensemw2s.cluster.metrics import Reading, RunMetrics, readings
from ensemw2s.runs.store import StageRecord

COST = {"seconds": 4.0, "tokens": 1000, "flops": 1.0, "device": "cpu"}
MEMBER = StageRecord(
    "member-01",
    {},
    {
        "cost": COST,
        "record": {
            "round": 2,
            "error": 0.25,
            "prior_error": 0.75,
            "alpha": 2.197,
            "effective_sample_size": 80.0,
        },
    },
)


def test_readings_of_a_member() -> None:
    work = (("work", "member"),)
    assert readings(MEMBER) == [
        Reading("stages", 1.0),
        Reading("tokens", 1000.0, work),
        Reading("tokens_per_second", 250.0, work),
        Reading("round", 2.0),
        Reading("round_error", 0.25),
        Reading("prior_error", 0.75),
        Reading("member_weight", 2.197),
        Reading("effective_sample_size", 80.0),
    ]


def test_readings_of_answers() -> None:
    info = {"cost": {**COST, "seconds": 0.0}, "certified": 30, "asked": 8, "full": 2}
    assert readings(StageRecord("answers-member-00-test", {}, info)) == [
        Reading("stages", 1.0),
        Reading("tokens", 1000.0, (("work", "answers"),)),
        Reading("certified_share", 0.75),
    ]
    nothing = {"certified": 0, "asked": 0, "full": 0}
    assert readings(StageRecord("answers-x-test", {}, nothing)) == [Reading("stages", 1.0)]


def test_a_node_serves_them(ray_cluster: None) -> None:
    import ray

    metrics = RunMetrics("some-run")
    metrics.stage(MEMBER)
    metrics.queue(3)
    metrics.happened("worker_restarted")
    # Other tests leave nodes that died.
    port = next(node for node in ray.nodes() if node["Alive"])["MetricsExportPort"]
    deadline, found = time.monotonic() + 120, {}
    # A node gathers its processes' numbers every few seconds.
    while time.monotonic() < deadline and len(found) < 3:
        found = scrape(port)
        time.sleep(1.0)
    assert found == {
        "ray_ensemw2s_run_round_error": (0.25, None),
        "ray_ensemw2s_run_queue": (3.0, None),
        "ray_ensemw2s_run_failures_total": (1.0, "worker_restarted"),
    }


def scrape(port: int) -> dict[str, tuple[float, str | None]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError:
        # It gives up on a scrape that takes it more than 10 s, as on a loaded machine; a Prometheus server asks again, too.
        return {}
    return {
        sample.name: (sample.value, sample.labels.get("event"))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("run") == "some-run"
        and sample.name.endswith(("_round_error", "_queue", "_failures_total"))
    }
