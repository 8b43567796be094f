"""The endpoint under load (Locust), against calling the voting engine directly in one process.

Closed loop: 1 to 64 clients, each of which asks again when it is answered; the engine decodes the same prompts with as many rows.
Open loop: requests come at random times (Poisson), whoever still waits. The server, the load and the engine share the machine's
cores; the load is a process of its own. Measured from the clients: first token (streamed) and whole answer.

--soak MINUTES instead: twice as many clients as the server takes, what it answers, and its memory.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Ratio, make_parser, number, publish, ratio_table, table
from benchmarks.material import PROMPT, read_questions, tiny_model

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "serving.md"
MEMBERS = 3
CLIENTS = (1, 4, 16, 64)
#: Of the closed loop's requests a second.
RATES = (0.5, 0.8)
TARGETS = {False: 0.9, True: 0.7}
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


class Direct:
    """The voting engine alone, in this process, asked for what the clients ask for."""

    def __init__(self, run_dir: Path, rows: int) -> None:
        from ensemw2s.serving.backend import local_backend
        from ensemw2s.serving.opening import open_run
        from ensemw2s.serving.settings import ServeSettings

        self._settings = ServeSettings(max_decoding_rows=rows)
        self._backend = local_backend(open_run(run_dir, ("ensemble",)), self._settings)

    def decode(self, prompts: Sequence[str], max_tokens: int) -> tuple[int, float]:
        """Tokens, and the seconds that they took."""
        from ensemw2s.serving.plans import plan_completion
        from ensemw2s.serving.schemas import CompletionRequest

        engine, tokens = self._backend._voters["ensemble"].engine, 0
        begun = time.perf_counter()
        for prompt in prompts:
            body = CompletionRequest(model="ensemble", prompt=prompt, max_tokens=max_tokens, temperature=0.0)
            for row in plan_completion(body, self._backend.models, self._settings).rows:
                engine.add(row)
        while engine.pending:
            tokens += len(engine.step())
        return tokens, time.perf_counter() - begun

    def close(self) -> None:
        """Free the members."""
        asyncio.run(self._backend.close(5.0))


@contextmanager
def served(run_dir: Path, threads: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`ensemw2s serve` in a process of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    words = ["serve", str(run_dir), "--executor", "local", "--port", str(port), "--model", "ensemble"]
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


def line(loop: str, streamed: bool, found: Load) -> list[str]:
    """One row of the table."""
    refused, wrong = found.statuses[429], len(found.answers) - found.statuses[200] - found.statuses[429]
    return [
        loop,
        "yes" if streamed else "no",
        str(len(found.answers)),
        number(found.tokens / found.seconds),
        found.milliseconds("first") if streamed else "-",
        found.milliseconds("end"),
        str(refused),
        str(wrong),
    ]


HEAD = (
    "load",
    "streamed",
    "requests",
    "tokens a second",
    "first token, ms (p50 / p95 / p99)",
    "whole answer, ms (p50 / p95 / p99)",
    "429",
    "errors",
)


def closed_loop(
    url: str,
    direct: Direct,
    folder: Path,
    prompts: list[str],
    clients: int,
    requests: int,
    tokens: int,
    repeats: int,
) -> tuple[list[Ratio], list[list[str]], float]:
    """The engine and both kinds of answers, by turns; ratios, rows, and requests a second unstreamed."""
    asked = [prompts[i % len(prompts)] for i in range(requests)]
    speeds: dict[str, list[float]] = {"engine": [], "False": [], "True": []}
    kept: dict[bool, Load] = {}
    for _ in range(repeats):
        found, seconds = direct.decode(asked, tokens)
        speeds["engine"].append(found / seconds)
        for streamed in (False, True):
            kept[streamed] = load(
                url, folder, clients, prompts=prompts, max_tokens=tokens, stream=streamed, requests=requests
            )
            speeds[str(streamed)].append(kept[streamed].tokens / kept[streamed].seconds)
            if kept[streamed].tokens != found:
                raise SystemExit(
                    f"the clients got {kept[streamed].tokens} tokens, the engine makes {found} of the same prompts"
                )
    base = statistics.median(speeds["engine"])
    ratios = [
        Ratio(
            f"{clients} client{'s' if clients > 1 else ''}, {'' if streamed else 'not '}streamed",
            f"the engine, {number(base)} tokens a second",
            statistics.median(speeds[str(streamed)]) / base,
            TARGETS[streamed] if clients == CLIENTS[-1] else None,
        )
        for streamed in (False, True)
    ]
    rows = [line(f"{clients} client{'s' if clients > 1 else ''}", s, kept[s]) for s in (False, True)]
    return ratios, rows, len(kept[False].answers) / kept[False].seconds


def soak(url: str, server: subprocess.Popen[bytes], folder: Path, minutes: float, **what: Any) -> str:
    """More clients than the server takes, for a while; a line of what came and of its memory."""
    import threading

    import psutil

    process, sizes, ended = psutil.Process(server.pid), [], threading.Event()

    def watch() -> None:
        while not ended.wait(min(5.0, minutes * 6)):
            sizes.append(process.memory_info().rss / 2**20)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        found = load(url, folder, 384, seconds=60 * minutes, **what)
    finally:
        ended.set()
        watching.join()
    early = sizes[len(sizes) // 10]
    statuses = ", ".join(f"{status}: {n:,}" for status, n in sorted(found.statuses.items()))
    return (
        f"{minutes:g} minutes, 384 clients (the server takes 64 and lets 128 wait): answers by status {statuses}; "
        f"{number(found.tokens / found.seconds)} tokens a second; memory {early:,.0f} MiB after a tenth of the time, "
        f"{sizes[-1]:,.0f} MiB at the end, {max(sizes):,.0f} MiB at most."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--run", type=Path, default=None, help="run directory (default: three tiny members)")
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument(
        "--soak", type=float, default=None, metavar="MINUTES", help="only load, for this long"
    )
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    clients, tokens, each = (
        ([1, 3], 4, 2) if quick else (arguments.clients, arguments.tokens, arguments.requests)
    )
    repeats = arguments.repeats or (1 if quick else 3)
    if arguments.output is None and not quick:
        arguments.output = DOCUMENT
    import torch

    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_dir = arguments.run or trained_run(folder, arguments.threads)
        prompts = [PROMPT.replace("{question}", s.question) for s in read_questions(None, 64)]
        with served(run_dir, arguments.threads) as (url, server):
            if arguments.soak is not None:
                what = {"prompts": prompts, "max_tokens": tokens, "stream": False}
                publish("serve-soak", soak(url, server, folder, arguments.soak, **what), arguments, argv)
                return 0
            ratios, rows, speed = [], [], 0.0
            for count in clients:
                direct = Direct(run_dir, count)
                try:
                    direct.decode(prompts[:2], 2)
                    found, lines, speed = closed_loop(
                        url, direct, folder, prompts, count, max(16, count * each), tokens, repeats
                    )
                finally:
                    direct.close()
                ratios, rows = ratios + found, rows + lines
            for share in RATES:
                rate, requests = share * speed, max(16, clients[-1] * each)
                what = {"prompts": prompts, "max_tokens": tokens, "stream": True}
                opened = load(url, folder, 1, rate=rate, requests=requests, **what)
                rows.append(line(f"{number(rate)} requests a second", True, opened))
    note = (
        f"{run_dir.name}, at most {tokens} tokens an answer. Closed loop where clients are counted, open loop where requests a "
        "second are."
    )
    publish("serve", f"{note}\n\n{ratio_table(ratios)}\n\n{table(HEAD, rows)}", arguments, argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
