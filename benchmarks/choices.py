"""Multiple choice: our scoring against one forward a choice, lm-evaluation-harness' own model, and the bare forward.

All contenders have the same model object and begin from the same token ids. The bare forward reads exactly the tokens that
are needed, each prompt once and each choice once, in rows of equal length without padding or masks, and scores nothing: the
floor. In float32 the answers of all contenders are compared.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import Ratio, device_limits, make_parser, medians, number, publish, ratio_table, table
from benchmarks.material import base_model, encode, read_questions
from ensemw2s.models.device import pick_device, resolve_dtype, set_threads
from ensemw2s.models.facts import inspect_model
from ensemw2s.models.loading import load_model, load_tokenizer
from ensemw2s.models.scoring import ScoreRequest, score

QUESTIONS, QUICK_QUESTIONS = 200, 6


@dataclass(frozen=True)
class Work:
    """The model and what it is asked.

    Attributes:
        model: a causal language model in evaluation mode.
        requests: n questions.
        batch_tokens: of a forward of ours and of the bare one.
        batch_size: rows of a forward of the others.
    """

    model: Any
    requests: list[ScoreRequest]
    batch_tokens: int
    batch_size: int

    @property
    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Prompt and choice, one a choice."""
        return [(r.prompt, c) for r in self.requests for c in r.continuations]

    @property
    def needed(self) -> int:
        """Tokens that have to be read: each prompt once, each choice once but for its last token."""
        return sum(len(r.prompt) + sum(len(c) - 1 for c in r.continuations) for r in self.requests)

    @property
    def targets(self) -> int:
        """Tokens that are scored."""
        return sum(len(choice) for _, choice in self.pairs)


def ours(work: Work) -> np.ndarray:
    """(n choices,) log-probabilities by :func:`ensemw2s.models.scoring.score`."""
    scores = score(work.model, work.requests, batch_tokens=work.batch_tokens)
    return np.add.reduceat(scores.logprobs.astype(np.float64), scores.offsets[:-1])


@torch.inference_mode()
def one_forward_a_choice(work: Work) -> np.ndarray:
    """The same as a plain script does it: rows of prompt and choice in their order, padded, all logits."""
    device, found = next(work.model.parameters()).device, []
    for begin in range(0, len(work.pairs), work.batch_size):
        rows = [np.concatenate(pair)[:-1] for pair in work.pairs[begin : begin + work.batch_size]]
        ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
        mask = np.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, : len(row)], mask[i, : len(row)] = row, 1
        inputs = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        logits = work.model(**{k: v.to(device) for k, v in inputs.items()}).logits
        logs = logits.float().log_softmax(dim=-1)
        for i, (prompt, choice) in enumerate(work.pairs[begin : begin + work.batch_size]):
            place = torch.arange(len(prompt) - 1, len(prompt) + len(choice) - 1)
            found.append(float(logs[i, place, torch.from_numpy(choice.astype(np.int64))].sum()))
    return np.array(found)


def make_harness(work: Work, tokenizer: Any) -> Callable[[], np.ndarray]:
    """lm-evaluation-harness' Hugging Face model on the same items."""
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=work.model, tokenizer=tokenizer, backend="causal", batch_size=work.batch_size)
    asked = [(("", str(i)), p.tolist(), c.tolist()) for i, (p, c) in enumerate(work.pairs)]

    def run() -> np.ndarray:
        return np.array([value for value, _ in harness._loglikelihood_tokens(asked, disable_tqdm=True)])

    return run


@torch.inference_mode()
def bare_forward(work: Work) -> None:
    """Read as many tokens as are needed, with the head on as many positions as are scored."""
    device = next(work.model.parameters()).device
    length = max(1, round(work.needed / len(work.requests)))
    kept = max(1, round(work.targets / len(work.requests)))
    rows = max(1, work.batch_tokens // length)
    left = work.needed
    while left > 0:
        shape = (min(rows, left // length), length) if left >= length else (1, left)
        ids = torch.ones(shape, dtype=torch.long, device=device)
        work.model(input_ids=ids, use_cache=False, logits_to_keep=min(kept, shape[1]))
        left -= shape[0] * shape[1]
    if device.type == "cuda":
        torch.cuda.synchronize()


def answers(work: Work, scores: np.ndarray) -> np.ndarray:
    """(n questions,) the choice with the highest sum."""
    bounds = np.cumsum([0, *(len(r.continuations) for r in work.requests)])
    return np.array([scores[a:b].argmax() for a, b in pairwise(bounds)])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="path or hub id (default: the demo's model)")
    parser.add_argument("--data", type=Path, default=None, help="JSONL with question, choices, answer")
    parser.add_argument("--questions", type=int, default=None, help=f"how many (default {QUESTIONS})")
    parser.add_argument(
        "--dtype", default="auto", help="while times are taken; answers are compared in float32"
    )
    parser.add_argument("--batch-tokens", type=int, default=1024, help="of ours and of the bare forward")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of the others")
    arguments = parser.parse_args(argv)
    set_threads(arguments.threads)
    device = pick_device()
    n = arguments.questions or (QUICK_QUESTIONS if arguments.quick else QUESTIONS)
    with tempfile.TemporaryDirectory() as folder:
        config = base_model(arguments.model, arguments.quick, Path(folder))
        tokenizer = load_tokenizer(config)
        encoded = encode(tokenizer, read_questions(arguments.data, n))
        requests = [ScoreRequest(e.prompt, e.continuations) for e in encoded]
        model = load_model(config, device=device, dtype=torch.float32)
        inside = inspect_model(config).n_compute_parameters
    work = Work(model, requests, arguments.batch_tokens, arguments.batch_size)
    contenders: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours(work),
        "one forward a choice": lambda: one_forward_a_choice(work),
        "bare forward": lambda: bare_forward(work),
    }
    if importlib.util.find_spec("lm_eval") is not None:
        contenders["lm-evaluation-harness"] = make_harness(work, tokenizer)
    # This is the warm-up, too.
    chosen = {name: answers(work, run()) for name, run in contenders.items() if name != "bare forward"}
    dtype = resolve_dtype(arguments.dtype, device)
    model.to(dtype)
    seconds = medians(contenders, arguments.repeats or (1 if arguments.quick else 3))
    limits = device_limits(device, dtype, quick=arguments.quick)
    body = _report(work, config.display_name, str(dtype).removeprefix("torch."), seconds, chosen)
    # 2 FLOP a parameter and token (Kaplan et al. 2020, section 2.1), the head's on what is scored.
    head = model.get_output_embeddings().weight.numel()
    flops = 2.0 * (inside * work.needed + head * work.targets)
    body += f"\n\nOurs computes {limits.share_of_flops(flops, seconds['ours'])} in matrix products."
    publish("choices", body, arguments, argv, device=device)
    return 0


def _report(
    work: Work, model: str, dtype: str, seconds: dict[str, float], chosen: dict[str, np.ndarray]
) -> str:
    own, what = seconds["ours"], f"{len(work.requests)} questions, {len(work.pairs)} choices"
    ratios = [
        Ratio(what, name, seconds[name] / own, 3.0 if name == "lm-evaluation-harness" else None)
        for name in seconds
        if name not in ("ours", "bare forward")
    ]
    ratios.append(
        Ratio(what, "bare forward over exactly the tokens needed", seconds["bare forward"] / own, 0.85)
    )
    read = {name: sum(len(p) + len(c) - 1 for p, c in work.pairs) for name in seconds}
    read["ours"] = read["bare forward"] = work.needed
    rows = []
    for name, value in seconds.items():
        same = "" if name not in chosen else f"{int((chosen[name] == chosen['ours']).sum())}"
        rows.append([name, f"{value:.2f}", f"{read[name]:,}", number(len(work.requests) / value), same])
    head = ("", "seconds", "tokens read, padding left out", "questions a second", "float32 answers as ours")
    note = f"{model}, {dtype}; batches of {work.batch_tokens} tokens (ours, bare) and {work.batch_size} rows (others)."
    return f"{note}\n\n{ratio_table(ratios)}\n\n{table(head, rows)}"


if __name__ == "__main__":
    raise SystemExit(main())
