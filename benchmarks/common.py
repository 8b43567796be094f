"""What the measuring programs share: the machine in words, medians of interleaved repeats, tables, docs/benchmarks.md."""

from __future__ import annotations

import argparse
import datetime
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"

_HEAD = """# Benchmarks

Written by the programs in `benchmarks/` (`python -m benchmarks.NAME`, from the repository's root); each replaces its own section.
Contenders run by turns in one process tree, and a ratio is that of their medians, so that what else the machine does
meets both. `--quick` runs a program on tiny models in seconds and writes nothing. Of paths in
the commands only the last part is shown.
"""


@dataclass(frozen=True)
class Ratio:
    """One line of a result: how many times better we are than what is named, and how many it was meant to be."""

    what: str
    against: str
    value: float
    target: float | None = None

    def cells(self) -> list[str]:
        """what, against, measured, target, verdict."""
        if self.target is None:
            return [self.what, self.against, number(self.value), "", ""]
        missed = 1.0 - self.value / self.target
        verdict = "met" if missed <= 0 else f"missed by {missed:.0%}"
        return [self.what, self.against, number(self.value), number(self.target), verdict]


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Options that all programs have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny and in seconds; the numbers mean nothing")
    parser.add_argument("--repeats", type=int, default=None, help="of each contender; the median counts")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads")
    parser.add_argument(
        "--output",
        type=Path,
        default=None,
        help=f"document (default docs/{DOCUMENT.name}; none with --quick)",
    )
    return parser


def medians(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each contender, by turns: a slow minute of the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in seconds.items()}


@dataclass(frozen=True)
class Limits:
    """What a device does at most, as measured here: FLOP/s of large matrix products, bytes/s read and written by a copy."""

    flops: float
    bandwidth: float

    def share_of_flops(self, flops: float, seconds: float) -> str:
        """Some work as a share of the matrix products that the device does in that time, in words."""
        speed = flops / seconds
        return f"{number(speed / 1e9)} GFLOP/s, {speed / self.flops:.0%} of the device's {number(self.flops / 1e9)}"

    def share_of_bandwidth(self, moved: float, seconds: float) -> str:
        """The same of bytes."""
        speed = moved / seconds
        return f"{number(speed / 1e9)} GB/s, {speed / self.bandwidth:.0%} of the device's {number(self.bandwidth / 1e9)}"


def device_limits(device: str, dtype: Any, *, quick: bool = False) -> Limits:
    """Measure what the threads that are set can do on a device."""
    import torch

    n = 256 if quick else 2048 if device == "cpu" else 8192
    a = torch.randn(n, n, device=device).to(dtype)
    long = torch.ones(2**20 if quick else 2**27, device=device)
    into = torch.empty_like(long)

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    def multiply() -> None:
        a @ a
        wait()

    def copy() -> None:
        into.copy_(long)
        wait()

    multiply()
    copy()
    seconds = medians({"multiply": multiply, "copy": copy}, 5)
    return Limits(2.0 * n**3 / seconds["multiply"], 2.0 * long.nbytes / seconds["copy"])


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def ratio_table(ratios: Sequence[Ratio]) -> str:
    """The ratios with their targets."""
    return table(("what", "against", "measured", "target", ""), [r.cells() for r in ratios])


def machine(threads: int | None = None) -> str:
    """Processor or GPU, memory, versions."""
    import torch

    import ensemw2s
    from ensemw2s.models.device import describe_device

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    processor = describe_device("cpu").rpartition(",")[0]
    parts = [f"{processor}, {os.cpu_count()} cores, {memory:.0f} GiB"]
    if torch.cuda.is_available():
        parts.insert(0, torch.cuda.get_device_name(0))
    if threads is not None:
        parts.append(f"{threads} torch thread{'s' if threads > 1 else ''}")
    return "; ".join([*parts, f"torch {torch.__version__}", f"ensemw2s {ensemw2s.__version__}"])


def publish(
    name: str,
    body: str,
    arguments: argparse.Namespace,
    argv: Sequence[str] | None,
    *,
    device: str = "cpu",
) -> str:
    """Print a section, and write it into the document unless the run was a quick one.

    Args:
        name: of the section that is replaced: that of the program, with a hyphen and a word where it has several.
        body: Markdown.
        arguments: parsed.
        argv: as the program was called.
        device: that was measured; a GPU's section stands beside the processor's, with "-gpu" behind its name.

    Returns:
        the section.
    """
    if not device.startswith("cpu"):
        name = f"{name}-gpu"
    given = list(sys.argv[1:] if argv is None else argv)
    # Files are named by their last part: where they lie on this machine concerns nobody.
    words = [Path(word).name if os.sep in word else word for word in given]
    command = shlex.join(["python", "-m", f"benchmarks.{name.partition('-')[0]}", *words])
    when = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")
    section = f"{when}; {machine(arguments.threads)}.\n\n`{command}`\n\n{body.strip()}"
    print(section)
    target = arguments.output or (None if arguments.quick else DOCUMENT)
    if target is not None:
        write_section(target, name, section)
    return section


def write_section(path: Path, name: str, text: str) -> None:
    """Replace what stands between a program's markers; what stands outside of all markers is nobody's to touch."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    document = path.read_text(encoding="utf-8") if path.is_file() else _HEAD
    if begin not in document:
        document = f"{document.rstrip()}\n\n## {name}\n\n{begin}\n{end}\n"
    before, _, rest = document.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise SystemExit(f"{path} has {begin!r} without {end!r}: put the end back")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")
