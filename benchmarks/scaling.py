"""How the cost of a run grows with its rounds and its samples, and what the coordinator holds for each target token.

Growth: whole runs on tiny random models in this process; processor seconds, which other work on the machine hardly changes. Memory:
a boosting round of the coordinator on made-up weights, and splits of made-up texts, by Python's own accounting (tracemalloc).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import DOCUMENT, make_parser, number, publish, table
from benchmarks.material import tiny_model

SCALING = DOCUMENT.with_name("scaling.md")
PLOT = DOCUMENT.parent / "images" / "scaling.png"
ROUNDS, SAMPLES = (1, 2, 4, 8), (200, 400, 800, 1600)
ANSWER_TOKENS = (1, 8, 64, 512)
AT = 1_000_000_000


def write_questions(path: Path, n: int) -> Path:
    """n multiple-choice questions that a tiny model can learn."""
    rng, choices = random.Random(0), ["up", "down", "left", "right"]
    rows = [
        {
            "id": f"q{i}",
            "question": f"{rng.randrange(10**9):09d} {'abcd'[i % 4] * 3}",
            "choices": choices,
            "answer": i % 4,
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_seconds(folder: Path, rounds: int, samples: int) -> float:
    """Processor seconds of a whole run in this process."""
    from ensemw2s import api
    from ensemw2s.config import ExperimentConfig

    name = f"run-{rounds}-{samples}"
    training = {"batch_size": 16, "micro_batch_size": 16, "learning_rate": 1e-2, "epochs": 2}
    questions = write_questions(folder / f"{name}.jsonl", samples)
    config: dict[str, Any] = {
        "name": name,
        "runs_dir": str(folder / "runs"),
        "data": {
            "pool": {"kind": "file", "path": str(questions)},
            "split": {"method": "random", "val_fraction": 0.2, "test_fraction": 0.25},
            "max_length": 64,
        },
        "weak": {"models": [{"path": str(folder / "weak")}], "training": training},
        "strong": {"model": {"path": str(folder / "strong")}, "training": training},
        # Members of equal votes: none is dropped, so that the rounds are as many as they say.
        "boosting": {"rounds": rounds, "method": "bagging", "prior": "unigram"},
        "vote": {"rounds": "all"},
        "evaluation": {"resamples": 200},
        "runtime": {"executor": "local", "device": "cpu", "threads": 1},
    }
    begun = time.process_time()
    api.run(ExperimentConfig.model_validate(config))
    return time.process_time() - begun


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least squares: what each unit costs, what a run costs without any, and the share of the variance that it explains."""
    slope, base = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (slope * np.asarray(x) + base)
    return float(slope), float(base), float(1 - rest.var() / np.var(y))


def growth(folder: Path, rounds: Sequence[int], samples: Sequence[int]) -> dict[str, list[float]]:
    """Seconds by number of rounds (with the second number of samples) and by number of samples (with two rounds)."""
    tiny_model(folder / "weak", layers=1, seed=1)
    tiny_model(folder / "strong", layers=2, seed=2)
    # What is loaded and compiled once is not measured.
    run_seconds(folder, 1, 100)
    middle = samples[min(1, len(samples) - 1)]
    by_rounds = [run_seconds(folder, r, middle) for r in rounds]
    known = dict(zip(((r, middle) for r in rounds), by_rounds, strict=True))
    by_samples = [known.get((2, n)) or run_seconds(folder, 2, n) for n in samples]
    return {"rounds": by_rounds, "samples": by_samples}


def draw(path: Path, x: dict[str, Sequence[int]], seconds: dict[str, list[float]]) -> None:
    """The two lines as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("rounds", "samples"), strict=True):
        slope, base, _ = line(x[name], seconds[name])
        ends = np.array([0, max(x[name])])
        axes.plot(ends, base + slope * ends, color="0.6", linewidth=1)
        axes.plot(x[name], seconds[name], "o", color="#1f5fa8")
        axes.set(xlabel=name, ylabel="processor seconds", xlim=(0, None), ylim=(0, None))
        axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def peak(work: Callable[[], Any]) -> tuple[int, int, Any]:
    """Bytes that are held afterwards, bytes at most, and what the work returned."""
    tracemalloc.start()
    kept = work()
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held, most, kept


def round_memory(n_tokens: int, per_sample: int = 16) -> tuple[float, float]:
    """Bytes a target token that the boosting state and its units hold, and at most during three rounds of token bootstrap: what
    is drawn, the scores that come back, who is wrong, and the new weights."""
    from ensemw2s.core.boosting import BoostingState, Units, draw_round, member_weight

    offsets = np.arange(0, n_tokens + 1, per_sample, dtype=np.int64)

    rng = np.random.default_rng(0)

    def scores() -> tuple[np.ndarray, np.ndarray]:
        """Log-probability and hit of each token, made without anything beside them."""
        logprobs, hits = np.zeros(n_tokens, dtype=np.float32), np.empty(n_tokens, dtype=np.bool_)
        for start in range(0, n_tokens, 2**16):
            hits[start : start + 2**16] = rng.random(min(2**16, n_tokens - start)) > 0.3
        return logprobs, hits

    def missed(units: Units) -> np.ndarray:
        _, hits = scores()
        return units.wrong(~hits)

    def one_round(units: Units, state: BoostingState) -> BoostingState:
        shares = units.spread(state.unit_weights)
        outside = draw_round(1, "token_bootstrap", shares, offsets, rng).outside
        wrong = missed(units)
        state.unit_weights.error_among(wrong, np.unpackbits(outside, count=n_tokens).view(np.bool_))
        error = state.unit_weights.error(wrong)
        return state.update(wrong, member_weight(error, prior_error=0.9), 20.0, error=error)

    def rounds() -> tuple[Units, BoostingState]:
        units = Units.build(offsets)
        state = BoostingState.start(units)
        for _ in range(3):
            state = one_round(units, state)
        return units, state

    held, most, _ = peak(rounds)
    return (held + offsets.nbytes) / n_tokens, (most + offsets.nbytes) / n_tokens


def split_memory(tokenizer: Any, answer_tokens: int, samples: int) -> float:
    """Bytes a target token of an encoded split with prompts of about 100 letters."""
    from ensemw2s.config import DataConfig, FileSource
    from ensemw2s.data.samples import Sample
    from ensemw2s.engine.encoded import EncodedSplit, make_encoder

    # The tiny tokenizer takes most letters for themselves.
    rng = random.Random(0)
    letters = "qxzjv"
    data = DataConfig(pool=FileSource(kind="file", path="none"), max_length=4096)
    encoder = make_encoder(data, tokenizer)

    def encode() -> EncodedSplit:
        made = [
            Sample(
                f"q{i}",
                "".join(rng.choices(letters, k=100)),
                None,
                "".join(rng.choices(letters, k=answer_tokens)),
            )
            for i in range(samples)
        ]
        split = EncodedSplit(made, encoder, int(tokenizer.eos_token_id))
        assert len(split.targets) == samples
        return split

    held, _, split = peak(encode)
    return held / float(split.target_offsets[-1])


def memory_tables(folder: Path, n_tokens: Sequence[int], samples: int) -> str:
    """What the coordinator holds, in words and numbers."""
    from ensemw2s.config import ModelConfig
    from ensemw2s.models.loading import load_tokenizer

    rows = []
    for n in n_tokens:
        held, most = round_memory(n)
        rows.append([f"{n:,}", number(held), number(most), f"{most * AT / 2**30:.0f} GiB"])
    arrays = table(("target tokens", "bytes a token held", "at most in a round", f"at {AT:,}"), rows)
    tokenizer = load_tokenizer(ModelConfig(path=str(folder / "weak")))
    rows = []
    for k in ANSWER_TOKENS:
        each = split_memory(tokenizer, k, samples)
        rows.append([str(k), number(each), f"{AT // k:,}", f"{each * AT / 2**30:,.0f} GiB"])
    head = ("tokens of an answer", "bytes a target token", f"samples of {AT:,} tokens", "their split")
    return f"{arrays}\n\n{table(head, rows)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser: argparse.ArgumentParser = make_parser(__doc__)
    parser.add_argument("--plot", type=Path, default=None, help=f"picture (default {PLOT.name})")
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    x: dict[str, Sequence[int]] = {
        "rounds": ROUNDS[:2] if quick else ROUNDS,
        "samples": SAMPLES[:2] if quick else SAMPLES,
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        seconds = growth(folder, x["rounds"], x["samples"])
        memory = memory_tables(folder, (10**5,) if quick else (10**7, 10**8), 200 if quick else 2000)
    rows = []
    for name in ("rounds", "samples"):
        slope, base, explained = line(x[name], seconds[name])
        points = ", ".join(f"{n}: {s:.1f}" for n, s in zip(x[name], seconds[name], strict=True))
        rows.append([name, points, f"{base:.1f} + {slope:.3g} a unit", f"{explained:.3f}"])
    plot = arguments.plot or (None if quick else PLOT)
    if plot is not None:
        draw(plot, x, seconds)
    if not quick and arguments.output is None:
        arguments.output = SCALING
    grown = table(("grown", "processor seconds of a run", "line", "variance explained"), rows)
    publish("scaling", f"{grown}\n\n{memory}", arguments, argv)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
