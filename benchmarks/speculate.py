"""Drafting from the text itself (`runtime.speculate`), against one token a step: the same answers in fewer steps.

Three kinds of answers: those that a model gives, which may repeat what was said; answers that copy their prompt, for which
every prompt is a list that goes on; and the worst case, in which all that is drafted is wrong.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import Ratio, make_parser, number, publish, ratio_table, table
from benchmarks.decode import ALPHAS, compute_dtype, member_configs
from benchmarks.material import base_model, encode, read_questions
from ensemw2s.engine.decoding.drafts import NgramDraft, NgramDrafter
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeCounts, DecodeRequest
from ensemw2s.engine.decoding.worker import ModelPool
from ensemw2s.models.decoding import StepDecoder
from ensemw2s.models.device import pick_device, set_threads
from ensemw2s.models.loading import load_model, load_tokenizer

LIST = "red apple, green pear, blue plum, red apple, green pear, blue plum, red apple,"


class WrongDraft(NgramDraft):
    """A draft whenever there is room for one, and the vote never gives it."""

    def propose(self, most: int) -> list[int]:
        """Tokens that are as good as never right."""
        return [(self._text[-1] + 1 + j) % 97 for j in range(most)]


class WrongDrafter(NgramDrafter):
    """Drafts as the real one does, of texts that mislead it."""

    draft_type = WrongDraft


@dataclass(frozen=True)
class Decoded:
    """One contender's decode: tokens by row, seconds from the second step on, counts."""

    tokens: list[list[int]]
    seconds: float
    counts: DecodeCounts


def decode(
    pool: ModelPool, prompts: Sequence[np.ndarray], n_tokens: int, drafter: NgramDrafter | None
) -> Decoded:
    """Greedy answers by the vote."""
    engine = VotingEngine(pool, pool.refs, ALPHAS[: pool.size], batch_tokens=2**20, max_rows=len(prompts))
    engine._drafter = drafter
    numbers = [engine.add(DecodeRequest(p, n_tokens, eos_ids=())) for p in prompts]
    made: dict[int, list[int]] = {number: [] for number in numbers}
    begun = time.perf_counter()
    while engine.pending:
        for output in engine.step():
            made[output.request].append(output.decision.token)
        if engine.counts.steps == 1:
            begun = time.perf_counter()
    return Decoded(list(made.values()), time.perf_counter() - begun, engine.counts)


def token_cost(model: Any, rows: int, drafted: int, repeats: int) -> float:
    """What one more token in a forward costs, as a share of a step of one token of these rows."""
    decoder = StepDecoder(model, pad_id=0)
    decoder.start([np.arange(40) + row for row in range(rows)])
    seconds: dict[int, list[float]] = {0: [], drafted: []}
    for _ in range(repeats):
        for count, taken in seconds.items():
            begun = time.perf_counter()
            decoder.advance(np.arange(rows), np.full((rows, count), 7) if count else None)
            taken.append(time.perf_counter() - begun)
            decoder.settle(np.ones(rows, dtype=np.int64))
    return (median(seconds[drafted]) / median(seconds[0]) - 1) / (drafted * rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="path or hub id (default: the demo's model)")
    parser.add_argument(
        "--data", type=Path, default=None, help="JSONL with question, choices, answer: prompts"
    )
    parser.add_argument("--members", type=int, default=2, choices=range(1, len(ALPHAS) + 1))
    parser.add_argument("--layers", type=int, default=None, help="of each member (default: all but one)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--tokens", type=int, default=48)
    arguments = parser.parse_args(argv)
    quick, n_tokens = arguments.quick, 6 if arguments.quick else arguments.tokens
    repeats = arguments.repeats or (1 if quick else 3)
    set_threads(arguments.threads)
    device, dtype = pick_device(), compute_dtype()
    ratios: list[Ratio] = []
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        base = base_model(arguments.model, quick, Path(name))
        configs = member_configs(base, arguments.layers, arguments.members)
        pool = ModelPool([load_model(config, device=device, dtype=dtype) for config in configs])
        tokenizer = load_tokenizer(base)
        asked = [e.prompt for e in encode(tokenizer, read_questions(arguments.data, max(arguments.rows)))]
        listed = np.array(tokenizer.encode(LIST), dtype=np.int32)
        kinds: Mapping[str, tuple[list[np.ndarray], type[NgramDrafter]]] = {
            "answers to questions": (asked, NgramDrafter),
            "answers that copy": ([listed] * len(asked), NgramDrafter),
            "all drafts wrong": (asked, WrongDrafter),
        }
        for count in arguments.rows:
            for kind, (prompts, drafter) in kinds.items():
                runs: dict[str, list[Decoded]] = {"drafted": [], "a token a step": []}
                for turn in range(repeats):
                    # Each goes first every other time.
                    for who in list(runs)[:: -1 if turn % 2 else 1]:
                        used = drafter() if who == "drafted" else None
                        runs[who].append(decode(pool, prompts[:count], n_tokens, used))
                ours, plain = runs["drafted"][0], runs["a token a step"][0]
                same = float(np.mean(np.array(ours.tokens) == np.array(plain.tokens)))
                middle = {name: median(run.seconds for run in done) for name, done in runs.items()}
                what = f"{kind}, {count} row{'s' if count > 1 else ''}"
                ratios.append(
                    Ratio(what, "a token a step", middle["a token a step"] / middle["drafted"], 0.95)
                )
                close = ours.counts.close / ours.counts.decisions
                for name, done in runs.items():
                    counts = done[0].counts
                    rows.append(
                        [
                            what,
                            name,
                            number(counts.decisions / middle[name]),
                            str(counts.steps),
                            f"{counts.stood} of {counts.drafted}",
                            f"{same:.2%}",
                            f"{close:.2%}",
                        ]
                    )
        costs = [
            f"{token_cost(pool._models[0], n, 3, 2 if quick else 9):.3f} beside {n}" for n in arguments.rows
        ]
    layers = "all but one" if arguments.layers is None else f"{arguments.layers}"
    note = (
        f"{base.display_name}, {arguments.members} members of {layers} layers, {arguments.threads} torch threads, "
        f"{str(dtype).removeprefix('torch.')}, {n_tokens} tokens a row, {repeats} repeats by turns. One more token in a forward "
        f"costs, in steps without drafts: {', '.join(costs)} rows."
    )
    head = ("", "", "tokens a second", "steps", "drafts that stood", "same tokens", "within rounding")
    publish(
        "speculate", f"{note}\n\n{ratio_table(ratios)}\n\n{table(head, rows)}", arguments, argv, device=device
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
