"""Members that are adapters of one base: one copy and one forward for all, against members with a base each.

Both sides decode the same greedy answers by the same vote, in one process on the same threads. The members that have a base
each have their adapters added into it, which is the fastest that they can be.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import Ratio, make_parser, number, publish, ratio_table, table
from benchmarks.decode import ALPHAS, compute_dtype
from benchmarks.material import base_model, encode, read_questions
from ensemw2s.config import LoraConfig, ModelConfig
from ensemw2s.engine.decoding.engine import VotingEngine
from ensemw2s.engine.decoding.messages import DecodeRequest
from ensemw2s.engine.decoding.worker import ModelPool
from ensemw2s.engine.pool import SupervisorPool
from ensemw2s.engine.together import TogetherPool
from ensemw2s.models.adapters import SharedBase, load_shared
from ensemw2s.models.device import pick_device, set_threads
from ensemw2s.models.loading import load_model, load_tokenizer
from ensemw2s.models.storage import load_saved, save_model


def write_members(base: ModelConfig, folder: Path, n: int, rank: int) -> list[Path]:
    """n members with random adapters on all linear layers, as training would have left them."""
    tokenizer = load_tokenizer(base)
    config = base.model_copy(update={"lora": LoraConfig(rank=rank)})
    folders = []
    for t in range(n):
        model = load_model(config, device="cpu", dtype=torch.float32, for_training=True, seed=t)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(t)
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.01)
        folders.append(folder / f"member-{t}")
        save_model(model, tokenizer, folders[-1], base=config)
    return folders


def weight_bytes(model: Any) -> int:
    """Memory of a model's weights."""
    if isinstance(model, SharedBase):
        return model.bytes()
    return sum({id(p): p.nbytes for p in model.parameters()}.values())


def together_pool(shared: SharedBase) -> SupervisorPool:
    """The members of a base as one process holds them."""
    pool = ModelPool([shared.member(t) for t in range(shared.n_members)])
    pool.size = 1
    return TogetherPool(pool)


def decode(
    pool: SupervisorPool, n_members: int, prompts: list[np.ndarray], n_tokens: int
) -> tuple[np.ndarray, float]:
    """(b, n_tokens) greedy tokens by the vote, and seconds from the second token on."""
    engine = VotingEngine(
        pool, list(range(n_members)), ALPHAS[:n_members], batch_tokens=2**20, max_rows=len(prompts)
    )
    numbers = [engine.add(DecodeRequest(p, n_tokens, eos_ids=())) for p in prompts]
    made: dict[int, list[int]] = {number: [] for number in numbers}
    begun = time.perf_counter()
    while engine.pending:
        for output in engine.step():
            made[output.request].append(output.decision.token)
        if len(made[numbers[0]]) == 1:
            begun = time.perf_counter()
    return np.array([made[number] for number in numbers]), time.perf_counter() - begun


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="path or hub id (default: the demo's model)")
    parser.add_argument(
        "--data", type=Path, default=None, help="JSONL with question, choices, answer: prompts"
    )
    parser.add_argument("--members", type=int, default=len(ALPHAS), choices=range(2, len(ALPHAS) + 1))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args(argv)
    quick, n = arguments.quick, arguments.members
    n_tokens = 4 if quick else arguments.tokens
    repeats = arguments.repeats or (1 if quick else 5)
    set_threads(arguments.threads)
    device, dtype = pick_device(), compute_dtype()
    ratios: list[Ratio] = []
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = base_model(arguments.model, quick, folder)
        folders = write_members(base, folder, n, arguments.rank)
        prompts = [
            e.prompt
            for e in encode(load_tokenizer(base), read_questions(arguments.data, max(arguments.rows)))
        ]
        shared = load_shared(folders, device=device, dtype=dtype, base=base)
        if shared is None:
            raise SystemExit(f"the adapters of {base.display_name} cannot share it")
        apart = [load_saved(f, device=device, dtype=dtype, base=base) for f in folders]
        pools = {"one base": together_pool(shared), "a base each": ModelPool(apart)}
        for count in arguments.rows:
            seconds: dict[str, list[float]] = {name: [] for name in pools}
            tokens: dict[str, np.ndarray] = {}
            for _ in range(repeats):
                for name, pool in pools.items():
                    tokens[name], took = decode(pool, n, prompts[:count], n_tokens)
                    seconds[name].append(took)
            middle = {name: median(values) for name, values in seconds.items()}
            same = float(np.mean(tokens["one base"] == tokens["a base each"]))
            what = f"{n} members, {count} row{'s' if count > 1 else ''}: decoding"
            ratios.append(Ratio(what, "a base each", middle["a base each"] / middle["one base"], 1.5))
            for name, values in seconds.items():
                speed = [count * (n_tokens - 1) / s for s in values]
                rows.append(
                    [
                        str(count),
                        name,
                        number(median(speed)),
                        f"{number(min(speed))} to {number(max(speed))}",
                        f"{same:.2%}",
                    ]
                )
        memory = weight_bytes(shared) / weight_bytes(apart[0])
        ratios.append(
            Ratio(f"{n} members: bases that the same memory holds", "one base", n / memory, n / 1.3)
        )
        sizes = f"{number(weight_bytes(shared) / 2**20)} MiB of weights, {memory:.3f} of one member's"
    note = (
        f"{base.display_name}, {n} adapters of rank {arguments.rank} on all linear layers, {arguments.threads} torch threads, "
        f"{str(dtype).removeprefix('torch.')}, {n_tokens} tokens a row, {repeats} repeats by turns. All members on one base: {sizes}."
    )
    head = ("rows", "", "tokens a second", "range", "same tokens")
    publish(
        "adapters", f"{note}\n\n{ratio_table(ratios)}\n\n{table(head, rows)}", arguments, argv, device=device
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
