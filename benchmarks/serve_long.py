"""The endpoint under load for long: more clients than it takes, and members that die; see benchmarks/serve.py."""

from __future__ import annotations

import json
import subprocess
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import number
from benchmarks.endpoint import MEMBERS, load

#: In the title of the process that is killed under load.
VICTIM = "member-ensemble-2"
KILL_CLIENTS, KILL_SECONDS, KILL_PAUSE_SECONDS = 16, 30.0, 5.0


def soak(url: str, server: subprocess.Popen[bytes], folder: Path, minutes: float, **what: Any) -> str:
    """More clients than the server takes, for a while; a line of what came and of its memory."""
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


def kills(
    url: str, server: subprocess.Popen[bytes], folder: Path, count: int, **what: Any
) -> tuple[str, bool]:
    """A member's process is killed again and again under load; a line of what came, and whether no request was lost."""
    dead: set[int] = set()
    ended = threading.Event()

    def member() -> psutil.Process | None:
        for process in psutil.Process(server.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if VICTIM in " ".join(process.cmdline()) and process.pid not in dead:
                    return process
        return None

    def alive() -> int:
        with urllib.request.urlopen(f"{url}/health", timeout=60) as answer:
            return int(json.load(answer)["models"]["ensemble"]["alive"])

    def kill() -> None:
        """Each time when all members are there and the load is on."""
        while len(dead) < count and not ended.wait(KILL_PAUSE_SECONDS):
            with suppress(OSError):
                victim = member() if alive() == MEMBERS else None
                if victim is not None:
                    victim.kill()
                    dead.add(victim.pid)
        # The last one is replaced under load, too.
        ended.wait(KILL_PAUSE_SECONDS)

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        found = load(url, folder, KILL_CLIENTS, seconds=KILL_SECONDS * (count + 1), **what)
    finally:
        ended.set()
        killing.join()
    statuses = ", ".join(f"{status}: {n:,}" for status, n in sorted(found.statuses.items()))
    slowest = max(a["end"] - a["sent"] for a in found.answers)
    text = (
        f"Ray Serve, {MEMBERS} members that all have to vote, {KILL_CLIENTS} clients for {KILL_SECONDS * (count + 1):g} s; one member "
        f"killed (SIGKILL) {len(dead)} times, each time when all were there: answers by status {statuses}; the slowest took "
        f"{number(slowest)} s."
    )
    return text, len(dead) == count and set(found.statuses) == {200}
