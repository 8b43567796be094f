"""Labels of a file ten times as large as the memory that the process may take: `ensemw2s label` in chunks, under a limit.

A tiny ensemble labels a small file first. Then the process's data may grow by no more than a tenth of the second file's size
(RLIMIT_DATA; one more byte is a MemoryError), and it labels that one. As a check of the limit itself, holding as much as the file has
must fail. The file's rows carry a long text that is no part of the question, as files from elsewhere do.
"""

from __future__ import annotations

import json
import random
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import DOCUMENT, make_parser, publish, table
from benchmarks.material import tiny_model
from benchmarks.scaling import run_seconds

SCALING = DOCUMENT.with_name("scaling.md")
ROW_BYTES = 20_000


def data_bytes() -> int:
    """What counts against RLIMIT_DATA now."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(t for t in text.splitlines() if t.startswith("VmData:"))
    return int(line.split()[1]) * 1024


def write_file(path: Path, size: int) -> int:
    """JSON lines of about `size` bytes in all; returns how many."""
    rng, choices = random.Random(1), ["up", "down", "left", "right"]
    count = max(1, size // ROW_BYTES)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {
                "id": f"n{i}",
                "question": f"{rng.randrange(10**9):09d} {'abcd'[i % 4] * 3}",
                "choices": choices,
                "page": f"{rng.randrange(10**9):09d}" * (ROW_BYTES // 9),
            }
            file.write(json.dumps(row) + "\n")
    return count


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    from ensemw2s import api
    from ensemw2s.data.streaming import SampleFile

    parser = make_parser(__doc__)
    parser.add_argument("--megabytes", type=int, default=320, help="size of the file")
    arguments = parser.parse_args(argv)
    size = (160 if arguments.quick else arguments.megabytes) * 2**20
    allowed = size // 10
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny_model(folder / "weak", layers=1, seed=1)
        tiny_model(folder / "strong", layers=2, seed=2)
        run_seconds(folder, 2, 200)
        ensemble = api.load_ensemble(folder / "runs" / "run-2-200")
        write_file(folder / "small.jsonl", 2048 * ROW_BYTES)
        ensemble.label_file(folder / "small.jsonl", folder / "small.parquet")
        count = write_file(folder / "large.jsonl", size)
        before = data_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (before + allowed, hard))
        try:
            check_limit(size)
            begun = time.monotonic()
            labelled = ensemble.label_file(folder / "large.jsonl", folder / "large.parquet")
            seconds, grown = time.monotonic() - begun, data_bytes() - before
            begun = time.monotonic()
            read = sum(len(chunk) for chunk in SampleFile(folder / "large.jsonl").chunks(1024))
            reading = time.monotonic() - begun
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
        true_size = (folder / "large.jsonl").stat().st_size
    if not labelled == read == count:
        raise SystemExit(f"{labelled} of {count} samples were labelled, {read} read")
    rows: list[list[Any]] = [
        ["file", f"{true_size / 2**20:.0f} MiB, {count:,} samples"],
        ["memory that the process could take beside what it had", f"{allowed / 2**20:.0f} MiB"],
        ["more of it afterwards than before", f"{grown / 2**20:.0f} MiB"],
        ["labelled", f"{labelled:,} samples in {seconds:.0f} s"],
        ["reading the file twice, as labelling does, alone", f"{reading:.0f} s"],
    ]
    if not arguments.quick and arguments.output is None:
        arguments.output = SCALING
    publish("label_memory", table(("", ""), rows), arguments, argv)
    return 0


def check_limit(size: int) -> None:
    """The limit is in force: as much as the whole file cannot be held."""
    try:
        bytearray(size)
    except MemoryError:
        return
    raise SystemExit("RLIMIT_DATA does not hold on this system: nothing was measured")


if __name__ == "__main__":
    raise SystemExit(main())
