"""Kill -9 a random process of a run at a random moment, give the same command again, and compare results.json.

A tiny pipeline runs on a Ray cluster of two nodes on this machine: members on the second node, and a student on a DeepSpeed
worker. Each trial kills one process: the driver, the coordinator, a member, the worker or the controller of Ray Train, or the
second node's raylet, at a moment drawn from the time in which the undisturbed run had one. The command is then given as
often as it takes to end well. Its results must be those of the undisturbed run, but for `cost` and `versions`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import make_parser, publish, table
from benchmarks.material import tiny_model

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "reliability.md"
ROOT = DOCUMENT.parent.parent
#: What is killed, and how the titles of its processes begin. The driver and the raylet are known by their ids.
TITLES = {
    "coordinator": "ray::CoordinatorActor",
    "member": "ray::SupervisorActor",
    "Train worker": "ray::RayTrainWorker",
    "Train controller": "ray::TrainController",
}
VICTIMS = ("driver", *TITLES, "raylet of the second node")
LONGEST_RUN_SECONDS = 1800.0
MOST_STARTS = 6
# Yields to the user's own values.
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_worker_niceness": "0",
    # A node that was killed is known to be dead after 5 s, not 15.
    "RAY_health_check_period_ms": "1000",
    "OMP_NUM_THREADS": "1",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    # Else Ray takes a loopback address for this machine's other one, where the head does not listen.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
}


@dataclass
class Trial:
    """What became of one run: who was killed, when (seconds after its start), with what under way, and how it ended."""

    victim: str
    moment: float
    under_way: str = ""
    starts: int = 1
    equal: bool = False
    events: list[str] = field(default_factory=list)

    def cells(self) -> list[str]:
        """A row of the table."""
        told = ", ".join(self.events) or "none: nothing was begun"
        return [
            self.victim,
            f"{self.moment:.1f} s",
            self.under_way or "-",
            str(self.starts),
            told,
            "equal" if self.equal else "DIFFERENT",
        ]


class Nodes:
    """A head and a second node, on which the members have room; `renew` replaces the second one."""

    def __init__(self, folder: Path) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 3,
                "node_ip_address": "127.0.0.1",
                "include_dashboard": False,
                "temp_dir": str(folder),
            },
        )
        self._second: Any = None
        self.renew()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    def raylets(self) -> list[psutil.Process]:
        """The head's and the second node's."""
        nodes = (self._cluster.head_node, self._second)
        return [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in nodes]

    def renew(self) -> None:
        """A second node that lives. It has the most room, so that Ray packs the members there."""
        if self._second is not None:
            self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(num_cpus=8, node_ip_address="127.0.0.2")

    def close(self) -> None:
        for node in (self._second, self._cluster.head_node):
            self._cluster.remove_node(node, allow_graceful=False)


def write_experiment(folder: Path) -> Path:
    """A configuration of a run that takes seconds of work: two members, hard labels, four students."""
    import yaml

    rows = []
    for i in range(96):
        noise, kind = divmod(i, 4)
        rows.append(
            {
                "id": f"q{i}",
                "question": f"{noise:02d} {'abcd'[kind] * 3}",
                "choices": ["up", "down", "left", "right"],
                "answer": kind,
            }
        )
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"batch_size": 8, "micro_batch_size": 4, "learning_rate": 2e-2}
    config = {
        "name": "undisturbed",
        "seed": 1,
        "runs_dir": str(folder / "runs"),
        "data": {
            "pool": {"kind": "file", "path": str(folder / "questions.jsonl")},
            "split": {"method": "random", "val_fraction": 0.25, "test_fraction": 0.25},
            "max_length": 64,
        },
        "weak": {
            "models": [{"path": str(tiny_model(folder / "weak", layers=1, seed=1))}],
            "training": {**training, "epochs": 6},
        },
        "strong": {
            "model": {"path": str(tiny_model(folder / "strong", layers=2, seed=2))},
            "training": {**training, "epochs": 2},
        },
        "boosting": {"rounds": 2, "prior": "unigram", "max_weight": 20.0},
        "evaluation": {"resamples": 200},
        "runtime": {
            "device": "cpu",
            "threads": 1,
            "supervisors": 2,
            "cpus_per_supervisor": 1.0,
            "keep_supervisors": True,
            "strong_workers": 1,
            "checkpoint_steps": 3,
        },
    }
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


class Chaos:
    """Trials of one experiment on one cluster."""

    def __init__(self, folder: Path, nodes: Nodes, seed: int) -> None:
        self._folder, self._nodes = folder, nodes
        self._config = write_experiment(folder)
        self._random = random.Random(seed)
        self._spans: dict[str, tuple[float, float]] = {}
        self._expected: Any = None

    def run_dir(self, name: str) -> Path:
        return self._folder / "runs" / name

    def undisturbed(self) -> float:
        """The run to compare with; notes when there is a process of each kind, and returns its seconds."""
        seen: dict[str, list[float]] = {}

        def look(seconds: float, driver: psutil.Process) -> bool:
            for victim in VICTIMS:
                if self._processes(victim, driver):
                    seen.setdefault(victim, []).append(seconds)
            return False

        begun = time.monotonic()
        if self._run("undisturbed", look) != 0:
            raise SystemExit(f"the undisturbed run failed: {self._log('undisturbed')}")
        self._spans = {victim: (times[0], times[-1]) for victim, times in seen.items()}
        self._expected = self._results("undisturbed")
        return time.monotonic() - begun

    def trial(self, number: int, victim: str) -> Trial:
        """Kill one process of a new run; drawn again when the run has ended before its moment."""
        name = f"trial-{number:02d}"
        while True:
            trial = Trial(victim, self._random.uniform(*self._spans[victim]))
            code, killed = self._disturbed(name, trial)
            if killed:
                break
            shutil.rmtree(self.run_dir(name))
        if victim == VICTIMS[-1]:
            self._nodes.renew()
        while code != 0 and trial.starts < MOST_STARTS:
            trial.starts += 1
            code = self._run(name, lambda seconds, driver: False)
        trial.equal = code == 0 and self._results(name) == self._expected
        trial.events = self._events(name)
        if not trial.equal:
            print(f"{name}: exit code {code}\n{self._log(name)}", flush=True)
        return trial

    def _disturbed(self, name: str, trial: Trial) -> tuple[int, bool]:
        killed = False

        def strike(seconds: float, driver: psutil.Process) -> bool:
            nonlocal killed
            if killed or seconds < trial.moment:
                return killed
            found = self._processes(trial.victim, driver)
            if found:
                trial.moment, trial.under_way = seconds, self._under_way(name)
                with suppress(psutil.NoSuchProcess):
                    self._random.choice(found).kill()
                    killed = True
            return killed

        return self._run(name, strike), killed

    def _run(self, name: str, each_moment: Callable[[float, psutil.Process], bool]) -> int:
        """One start of a run; its exit code. `each_moment` is called until it returns True."""
        command = [sys.executable, "-m", "ensemw2s.cli", "run", str(self._config), f"name={name}"]
        environment = {**os.environ, "RAY_ADDRESS": self._nodes.address}
        with (self._folder / f"{name}.log").open("ab") as log:
            driver = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )
        process, begun, done = psutil.Process(driver.pid), time.monotonic(), False
        try:
            while driver.poll() is None:
                seconds = time.monotonic() - begun
                if seconds > LONGEST_RUN_SECONDS:
                    raise SystemExit(f"{name} does not end: {self._log(name)}")
                done = done or each_moment(seconds, process)
                time.sleep(0.5 if done else 0.1)
        finally:
            driver.kill()
        return driver.returncode

    def _processes(self, victim: str, driver: psutil.Process) -> list[psutil.Process]:
        raylets = self._nodes.raylets()
        if victim == "driver":
            return [driver]
        if victim not in TITLES:
            return raylets[1:]
        found = []
        for raylet in raylets:
            # A process may end while it is looked at.
            with suppress(psutil.NoSuchProcess):
                for process in raylet.children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        # Ray has an actor of its own whose name ends like our coordinator's.
                        if " ".join(process.cmdline()).startswith(TITLES[victim]):
                            found.append(process)
        return found

    def _results(self, name: str) -> Any:
        from ensemw2s.engine.results import comparable

        results = comparable(json.loads((self.run_dir(name) / "results.json").read_text(encoding="utf-8")))
        return {key: value for key, value in results.items() if key != "name"}

    def _log(self, name: str) -> str:
        """The end of what a run said."""
        return (self._folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-4000:]

    def _under_way(self, name: str) -> str:
        staging = self.run_dir(name) / ".staging"
        return ", ".join(sorted(p.name for p in staging.iterdir())) if staging.is_dir() else ""

    def _events(self, name: str) -> list[str]:
        path = self.run_dir(name) / "events.jsonl"
        if not path.exists():
            return []
        events = [json.loads(line)["event"] for line in path.read_text(encoding="utf-8").splitlines()]
        return [f"{n} x {event}" if n > 1 else event for event, n in Counter(events).items()]


@contextmanager
def cluster() -> Iterator[tuple[Path, Nodes]]:
    """A folder for the runs, and the nodes; both are gone afterwards."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Paths of sockets must be short.
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    nodes = Nodes(folder / "ray")
    try:
        yield folder, nodes
    finally:
        nodes.close()
        shutil.rmtree(folder, ignore_errors=True)


def victims(count: int, seed: int) -> list[str]:
    """Who is killed in each trial: all kinds by turns, each turn in another order."""
    drawn, order = random.Random(seed), list(VICTIMS)
    chosen: list[str] = []
    while len(chosen) < count:
        drawn.shuffle(order)
        chosen += order
    return chosen[:count]


def summary(trials: Sequence[Trial]) -> list[list[str]]:
    """One row a kind of victim."""
    rows = []
    for victim in VICTIMS:
        own = [t for t in trials if t.victim == victim]
        if own:
            within = sum(t.starts == 1 for t in own)
            rows.append(
                [
                    victim,
                    str(len(own)),
                    str(within),
                    str(len(own) - within),
                    f"{sum(t.equal for t in own)} of {len(own)}",
                ]
            )
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, compare, publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=None, help="begin no trial later than that")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    kills = min(arguments.kills, 2) if arguments.quick else arguments.kills
    trials: list[Trial] = []
    # The same end for SIGTERM as for Ctrl-C: the cluster goes with the program.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with cluster() as (folder, nodes):
        chaos = Chaos(folder, nodes, arguments.seed)
        seconds = chaos.undisturbed()
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        begun = time.monotonic()
        for number, victim in enumerate(victims(kills, arguments.seed), start=1):
            if arguments.minutes is not None and time.monotonic() - begun > 60 * arguments.minutes:
                break
            trials.append(chaos.trial(number, victim))
            print(f"{number}: " + " | ".join(trials[-1].cells()), flush=True)
    equal = sum(t.equal for t in trials)
    head = ("killed", "trials", "went on by itself", "same command again", "results equal")
    log = ("killed", "after", "stage under way", "starts", "events.jsonl", "results.json")
    body = (
        f"{len(trials)} trials, {equal} with results equal to the undisturbed run's (which took {seconds:.0f} s).\n\n"
        f"{table(head, summary(trials))}\n\n{table(log, [t.cells() for t in trials])}"
    )
    if not arguments.quick and arguments.output is None:
        arguments.output = DOCUMENT
    publish("chaos", body, arguments, argv)
    return 0 if equal == len(trials) else 1


if __name__ == "__main__":
    raise SystemExit(main())
