"""What a Prometheus server reads of a run through Ray's own metrics (``ray_ensemw2s_run_...`` on every node's metrics port)."""

from __future__ import annotations

from dataclasses import dataclass

from ensemw2s.runs.store import StageRecord

PREFIX = "ensemw2s_run_"
#: Gauges, by what comes after the prefix; `work` is member, votes, answers, student and so on.
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokens_per_second": ("Tokens a second of the last committed stage of a kind", ("run", "work")),
    "round": ("Round of the last member", ("run",)),
    "round_error": ("Weighted error of the last member, in the boosting unit's terms", ("run",)),
    "prior_error": ("Error of the uninformed learner, in the same terms", ("run",)),
    "member_weight": ("Voting weight (alpha) of the last member", ("run",)),
    "effective_sample_size": ("1 / sum of squared weights after the last member", ("run",)),
    "certified_share": ("Share of voted tokens that the members' best tokens decided", ("run",)),
    "queue": ("Calls that supervisors have not answered yet", ("run",)),
}
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokens": ("Tokens that models have read in committed stages", ("run", "work")),
    "stages": ("Committed stages", ("run",)),
    "failures": ("Processes that were restarted, and what else befell workers", ("run", "event")),
}


@dataclass(frozen=True)
class Reading:
    """One number: a gauge's value, or what a counter grows by."""

    name: str
    value: float
    tags: tuple[tuple[str, str], ...] = ()


def readings(stage: StageRecord) -> list[Reading]:
    """The numbers that a committed stage tells."""
    found = [Reading("stages", 1.0)]
    work, info = stage.name.partition("-")[0], stage.info
    spent = info.get("cost")
    if spent is not None and spent["tokens"] > 0:
        kind = (("work", work),)
        found.append(Reading("tokens", float(spent["tokens"]), kind))
        if spent["seconds"] > 0:
            found.append(Reading("tokens_per_second", spent["tokens"] / spent["seconds"], kind))
    record = info.get("record")
    if record is not None:
        names = {
            "round": "round",
            "error": "round_error",
            "prior_error": "prior_error",
            "alpha": "member_weight",
        }
        names["effective_sample_size"] = "effective_sample_size"
        found += [Reading(name, float(record[key])) for key, name in names.items()]
    if "certified" in info:
        voted = info["certified"] + info["asked"] + info["full"]
        if voted:
            found.append(Reading("certified_share", info["certified"] / voted))
    return found


class RunMetrics:
    """Metrics of one run, in the process of its coordinator.

    Args:
        run: name of the run, a label of every number.
    """

    def __init__(self, run: str) -> None:
        from ray.util.metrics import Counter, Gauge

        self._run = run
        self._gauges = {name: Gauge(PREFIX + name, text, tags) for name, (text, tags) in GAUGES.items()}
        self._counters = {name: Counter(PREFIX + name, text, tags) for name, (text, tags) in COUNTERS.items()}

    def stage(self, record: StageRecord) -> None:
        """A stage was committed."""
        for reading in readings(record):
            self._note(reading)

    def queue(self, length: int) -> None:
        """So many calls are not answered."""
        self._note(Reading("queue", float(length)))

    def happened(self, event: str) -> None:
        """A worker was restarted, moved, or worse."""
        self._note(Reading("failures", 1.0, (("event", event),)))

    def _note(self, reading: Reading) -> None:
        tags = {"run": self._run, **dict(reading.tags)}
        if reading.name in self._counters:
            self._counters[reading.name].inc(reading.value, tags)
        else:
            self._gauges[reading.name].set(reading.value, tags)
