"""What the programs that put the endpoint under load share: a run to serve, a server, Locust and what it found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import number
from benchmarks.material import PROMPT, read_questions, tiny_model

ROOT = Path(__file__).resolve().parent.parent
MEMBERS = 3
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Load:
    """What Locust did: one entry a request (benchmarks/serve_load.py)."""

    answers: Sequence[Mapping[str, Any]]

    @property
    def statuses(self) -> Counter[int]:
        """Answers by status."""
        return Counter(int(a["status"]) for a in self.answers)

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(a["tokens"] for a in self.answers)

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max(a["end"] for a in self.answers) - min(a["sent"] for a in self.answers)

    def milliseconds(self, until: str) -> str:
        """Percentiles of the time to the first token or the end, of the answers that came."""
        times = [1000 * (a[until] - a["sent"]) for a in self.answers if a["status"] == 200 and a[until]]
        return " / ".join(number(float(v)) for v in np.percentile(times, PERCENTILES)) if times else "-"


def trained_run(folder: Path, threads: int) -> Path:
    """A run of three tiny members, trained in seconds."""
    from ensemw2s import api
    from ensemw2s.config import ExperimentConfig

    rows = [
        {"id": s.id, "question": s.question, "choices": list(s.choices or ()), "answer": s.answer}
        for s in read_questions(None, 60)
    ]
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    training = {"epochs": 1, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3}
    models = [{"path": str(tiny_model(folder / f"tiny-{seed}", seed=seed))} for seed in range(MEMBERS)]
    config = {
        "name": "tiny-members",
        "runs_dir": str(folder / "runs"),
        "data": {
            "pool": {"kind": "file", "path": str(data)},
            "split": {"method": "random"},
            "prompt": PROMPT,
        },
        "weak": {"models": models, "training": training},
        "strong": {"model": models[0], "training": training},
        "boosting": {"method": "bagging", "rounds": MEMBERS},
        "vote": {"rounds": "all"},
        "runtime": {"executor": "local", "device": "cpu", "threads": threads},
    }
    return api.run(ExperimentConfig.model_validate(config), until="labels").run_dir


@contextmanager
def served(
    run_dir: Path, threads: int, executor: str = "local"
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`ensemw2s serve` in a process of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = ["serve", str(run_dir), "--executor", executor, "--port", str(port), "--model", "ensemble"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    server = subprocess.Popen(
        [sys.executable, "-m", "ensemw2s.cli", *words], env=environment, stderr=subprocess.DEVNULL, cwd=ROOT
    )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_ready(url, server)
        yield url, server
    finally:
        server.terminate()
        server.wait(60)


def wait_ready(url: str, server: subprocess.Popen[bytes], seconds: float = 300.0) -> None:
    """Until it answers."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SystemExit(
                f"the server ended with code {server.returncode}: try ensemw2s serve on this run"
            )
        try:
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise SystemExit(f"the server did not answer within {seconds:g} s")


def load(url: str, folder: Path, clients: int, **what: Any) -> Load:
    """Run Locust until all requests are answered."""
    plan = {"model": "ensemble", "rate": None, "seconds": None, "requests": None, "seed": 0, **what}
    (folder / "load.json").write_text(json.dumps({**plan, "output": str(folder / "answers.json")}))
    words = ["--headless", "--only-summary", "--loglevel", "ERROR", "-u", str(clients), "-r", str(clients)]
    done = subprocess.run(
        [sys.executable, "-m", "locust", "-f", str(ROOT / "benchmarks" / "serve_load.py"), "-H", url, *words],
        env={**os.environ, "LOAD": str(folder / "load.json"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"locust failed: {done.stderr.strip()[-500:]}")
    return Load(json.loads((folder / "answers.json").read_text()))
