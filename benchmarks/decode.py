"""Greedy decoding by the vote of four members, against gathering every member's whole distribution through Ray.

Both sides call the same actors with the same cached forward, once a member and step. Time outside of the forwards is the
time in which no member's forward (softmax included) runs. The gather mixes in single precision, one pass a member.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import Ratio, device_limits, make_parser, number, publish, ratio_table, table
from benchmarks.material import base_model, encode, read_questions
from benchmarks.voters import Voter, VoterPool, covered, gather_decode
from ensemw2s.config import ModelConfig, RuntimeConfig
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeCounts, DecodeRequest
from ensemw2s.models.device import pick_device, resolve_dtype
from ensemw2s.models.facts import inspect_model

ALPHAS = np.array([1.0, 0.8, 0.7, 0.5])
TOP_K = 32


@dataclass(frozen=True)
class Case:
    """What is decoded: members of so many layers (None: all but one), prompts, tokens for each."""

    name: str
    layers: int | None
    prompts: int
    tokens: int


@dataclass(frozen=True)
class Measured:
    """One contender's decode: (b, n) tokens, seconds in all, seconds with no forward running."""

    tokens: np.ndarray
    seconds: float
    outside: float


def member_configs(base: ModelConfig, layers: int | None, n: int) -> list[ModelConfig]:
    """n models that lack different blocks of the base's middle."""
    total = inspect_model(base).n_layers
    kept = total - 1 if layers is None else min(layers, total - 1)
    configs = []
    for m in range(n):
        first = min(max(1, kept // 2 - n // 2 + m), kept - 1)
        block = f"{first}-{first + total - kept - 1}"
        configs.append(base.model_copy(update={"drop_layers": block}))
    return configs


def vote_decode(
    pool: VoterPool, alphas: np.ndarray, prompts: list[np.ndarray], n_tokens: int
) -> tuple[np.ndarray, DecodeCounts]:
    """(b, n_tokens) greedy tokens by our engine."""
    engine = VotingEngine(
        pool,
        list(range(pool.size)),
        alphas,
        top_k=TOP_K,
        batch_tokens=len(prompts) * (max(map(len, prompts)) + n_tokens),
        max_rows=len(prompts),
        speculate=RuntimeConfig().speculate,
    )
    numbers = [engine.add(DecodeRequest(p, n_tokens, eos_ids=(), exact=False)) for p in prompts]
    made: dict[int, list[int]] = {number: [] for number in numbers}
    while engine.pending:
        for output in engine.step():
            made[output.request].append(output.decision.token)
    return np.array([made[number] for number in numbers]), engine.counts


def compute_dtype() -> torch.dtype:
    """The members' number format on this machine."""
    return resolve_dtype("auto", pick_device())


@contextmanager
def ray_session() -> Iterator[None]:
    """A Ray of this machine, unless there is one."""
    import logging

    import ray

    if ray.is_initialized():
        yield
        return
    ray.init(
        address="local",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def voters(configs: Sequence[ModelConfig], threads: int) -> Iterator[list[Any]]:
    """An actor for each member, loaded."""
    import ray

    gpus = 1.0 / len(configs) if torch.cuda.is_available() else 0
    remote = ray.remote(Voter).options(num_cpus=0, num_gpus=gpus)
    actors = [remote.remote(config, threads) for config in configs]
    try:
        ray.get([actor.spans.remote() for actor in actors])
        yield actors
    finally:
        for actor in actors:
            ray.kill(actor)


def run_case(
    case: Case, base: ModelConfig, prompts: list[np.ndarray], n_members: int, repeats: int, threads: int
) -> tuple[list[Ratio], list[list[str]], DecodeCounts]:
    """Both contenders by turns; their ratios, table rows, and our counts."""
    import ray

    alphas = ALPHAS[:n_members]
    taken = prompts[: case.prompts]
    counts = DecodeCounts()
    runs: dict[str, list[Measured]] = {"ours": [], "gather": []}
    configs = member_configs(base, case.layers, n_members)
    weights = float(compute_dtype().itemsize * sum(inspect_model(config).n_parameters for config in configs))
    with voters(configs, threads) as actors:

        def measure(name: str) -> Measured:
            nonlocal counts
            ray.get([actor.spans.remote() for actor in actors])
            begun = time.monotonic()
            if name == "ours":
                tokens, counts = vote_decode(VoterPool(actors), alphas, taken, case.tokens)
            else:
                tokens = gather_decode(actors, alphas, taken, case.tokens)
            seconds = time.monotonic() - begun
            spans = [span for one in ray.get([a.spans.remote() for a in actors]) for span in one]
            return Measured(tokens, seconds, seconds - covered(spans))

        for _ in range(repeats):
            for name, done in runs.items():
                done.append(measure(name))
        counter = VoterPool(actors, counting=True)
        short = min(case.tokens, 8)
        vote_decode(counter, alphas, taken, short)
        vocabulary = ray.get(actors[0].call.remote("decode_facts")).vocab_size
    same = float(np.mean(runs["ours"][0].tokens == runs["gather"][0].tokens))
    sent = counter.bytes / (len(taken) * short * n_members)
    whole = {name: median(m.seconds for m in done) for name, done in runs.items()}
    outside = {name: median(m.outside for m in done) for name, done in runs.items()}
    ratios = [
        Ratio(f"{case.name}: whole decode", "gather of whole rows", whole["gather"] / whole["ours"], 2.5),
        Ratio(
            f"{case.name}: time outside of the forwards",
            "gather of whole rows",
            outside["gather"] / outside["ours"],
            8.0 if case.prompts > 1 else None,
        ),
        Ratio(f"{case.name}: bytes a token and member", "gather of whole rows", 4 * vocabulary / sent, 200),
    ]
    n = len(taken) * case.tokens
    read = {name: case.tokens * weights / whole[name] / 1e9 for name in runs}
    rows = [
        [
            case.name,
            name,
            f"{whole[name]:.2f}",
            f"{outside[name]:.2f}",
            number(n / whole[name]),
            number(read[name]),
            number(sent if name == "ours" else 4 * vocabulary),
            f"{same:.2%}",
        ]
        for name in runs
    ]
    return ratios, rows, counts


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="path or hub id (default: the demo's model)")
    parser.add_argument(
        "--data", type=Path, default=None, help="JSONL with question, choices, answer: prompts"
    )
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args(argv)
    quick = arguments.quick
    n_members = 2 if quick else len(ALPHAS)
    n_prompts, n_tokens = (4, 5) if quick else (arguments.prompts, arguments.tokens)
    repeats = arguments.repeats or (1 if quick else 3)
    # Four members on the machine's cores: each gets its part.
    arguments.threads = max(1, arguments.threads // n_members)
    cases = [
        Case(f"8 layers, {n_prompts} prompts, {n_tokens} tokens", 8, n_prompts, n_tokens),
        Case(f"full size, 1 prompt, {n_tokens} tokens", None, 1, n_tokens),
    ]
    ratios: list[Ratio] = []
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as folder, ray_session():
        from ensemw2s.models.loading import load_tokenizer

        base = base_model(arguments.model, quick, Path(folder))
        prompts = [e.prompt for e in encode(load_tokenizer(base), read_questions(arguments.data, n_prompts))]
        for case in cases[: 1 if quick else None]:
            found, lines, counts = run_case(case, base, prompts, n_members, repeats, arguments.threads)
            ratios, rows = ratios + found, rows + lines
            share = counts.paths["certified"] / max(1, counts.decisions)
            ratios.append(Ratio(f"{case.name}: certified at once, untrained members", "all tokens", share))
    head = (
        "case",
        "",
        "seconds",
        "outside of forwards",
        "tokens a second",
        "GB of weights a second",
        "bytes a token and member",
        "same tokens",
    )
    dtype = str(compute_dtype()).removeprefix("torch.")
    limit = device_limits(pick_device(), compute_dtype(), quick=quick).bandwidth / 1e9
    note = (
        f"{base.display_name}, {n_members} members, {arguments.threads} torch thread each, {dtype}, top {TOP_K}, drafts: "
        f"{RuntimeConfig().speculate}. A copy moves "
        f"{number(limit)} GB/s on this device."
    )
    publish(
        "decode",
        f"{note}\n\n{ratio_table(ratios)}\n\n{table(head, rows)}",
        arguments,
        argv,
        device=pick_device(),
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
