"""The endpoint under load (Locust), against calling the voting engine directly in one process.

Closed loop: 1 to 64 clients, each of which asks again when it is answered; the engine decodes the same prompts with as many rows.
Open loop: requests come at random times (Poisson), whoever still waits. The server, the load and the engine share the machine's
cores; the load is a process of its own. Measured from the clients: first token (streamed) and whole answer.

--soak MINUTES instead: twice as many clients as the server takes, what it answers, and its memory.
--kills N instead: on Ray Serve, a member is killed N times under the load of 16 clients; no request may be lost.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import Ratio, make_parser, number, publish, ratio_table, table
from benchmarks.endpoint import ROOT, Load, load, served, trained_run
from benchmarks.material import PROMPT, read_questions
from benchmarks.serve_long import kills, soak

DOCUMENT = ROOT / "docs" / "serving.md"
CLIENTS = (1, 4, 16, 64)
#: Of the closed loop's requests a second.
RATES = (0.5, 0.8)
TARGETS = {False: 0.9, True: 0.7}


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
    parser.add_argument("--kills", type=int, default=None, help="only load, while a member dies so often")
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
        if arguments.kills is not None:
            with served(run_dir, arguments.threads, "ray") as (url, server):
                what = {"prompts": prompts, "max_tokens": tokens, "stream": False}
                text, kept = kills(url, server, folder, arguments.kills, **what)
            publish("serve-kills", text, arguments, argv)
            return 0 if kept else 1
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
