"""What a Prometheus server reads at ``/metrics``."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from ensemw2s.serving.admission import Admission
from ensemw2s.serving.protocol import Backend

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Metrics:
    """Counters of one server process, in a registry of their own."""

    def __init__(self, backend: Backend, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        name = "ensemw2s_"
        self.requests = Counter(
            name + "requests", "Answered requests", ["route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            name + "request_seconds",
            "Seconds from the request's head to its answer's end",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.first_token = Histogram(
            name + "first_token_seconds",
            "Seconds to the first voted token",
            ["model"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter(
            name + "tokens",
            "Tokens read (prompt) and voted (completion)",
            ["model", "kind"],
            registry=self._registry,
        )
        self.gone = Counter(
            name + "clients_gone",
            "Requests whose client went away before the answer",
            registry=self._registry,
        )
        Gauge(name + "requests_active", "Requests at work", registry=self._registry).set_function(
            lambda: admission.active
        )
        Gauge(name + "requests_waiting", "Requests that wait", registry=self._registry).set_function(
            lambda: admission.waiting
        )
        self._registry.register(_Alive(backend))

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _Alive(Collector):
    """Members alive, and texts that are decoded."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> list[Metric]:
        health = self._backend.health()
        alive = GaugeMetricFamily("ensemw2s_members_alive", "Members that can vote", labels=["model"])
        total = GaugeMetricFamily("ensemw2s_members", "Members of the model", labels=["model"])
        for model, (up, members) in health.members.items():
            alive.add_metric([model], up)
            total.add_metric([model], members)
        rows = GaugeMetricFamily("ensemw2s_rows", "Texts that are decoded at this moment", value=health.rows)
        return [alive, total, rows]
