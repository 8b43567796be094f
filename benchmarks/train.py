"""Fine-tuning a student: our loop against Hugging Face's Trainer on the same batches, one worker.

The same rows in the same order, the same schedule, AdamW (fused) and clipping. Ours runs the output head on the targets only;
a second run of ours has it on all positions, as the Trainer's has, which compares the loops themselves. What the trainings
made of the weights is compared, too.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import Ratio, device_limits, make_parser, number, publish, ratio_table, table
from benchmarks.material import base_model, encode, read_questions
from ensemw2s.config import TrainingConfig
from ensemw2s.data.encoding import target_ids
from ensemw2s.models.device import pick_device, set_threads
from ensemw2s.models.facts import inspect_model
from ensemw2s.models.loading import load_model, load_tokenizer
from ensemw2s.training.backends import TorchBackend
from ensemw2s.training.loop import fit
from ensemw2s.training.plan import BatchPlan, TrainingSet

SEED = 3


def on_targets(prompts: list[np.ndarray], targets: list[np.ndarray]) -> TrainingSet:
    """The training set of a student: the answer's tokens have the loss, and only they go through the head."""
    return TrainingSet.uniform(prompts, targets)


def on_all_positions(prompts: list[np.ndarray], targets: list[np.ndarray]) -> TrainingSet:
    """The same loss, with the head on all positions: prompts become targets of weight 0."""
    whole = [np.concatenate([p[1:], t]) for p, t in zip(prompts, targets, strict=True)]
    weights = [
        np.concatenate([np.zeros(len(p) - 1), np.ones(len(t))]) for p, t in zip(prompts, targets, strict=True)
    ]
    counted = np.array([len(t) for t in targets], dtype=np.float64)
    return TrainingSet([p[:1] for p in prompts], whole, weights, counted)


def our_loop(
    model: Any, data: TrainingSet, config: TrainingConfig, pad_id: int, *, whole: bool
) -> tuple[float, int]:
    """Seconds, and tokens read; `whole`: the model is called as one, the head on all columns with a target in any row."""
    from unittest.mock import patch

    with patch("ensemw2s.training.loop.divided", return_value=None) if whole else nullcontext():
        report = fit(TorchBackend(model, config), data, config, seed=SEED, pad_id=pad_id)
    return report.seconds, report.tokens


def batches(data: TrainingSet, config: TrainingConfig, pad_id: int) -> list[dict[str, torch.Tensor]]:
    """The micro-batches of our plan as the Trainer takes them: labels of -100 where there is no loss."""
    made = []
    for step in BatchPlan(data, config, SEED).steps():
        for micro in step.micro_batches:
            rows = [np.concatenate([data.prompts[i], data.targets[i]]) for i in micro.rows]
            width = max(map(len, rows))
            ids = np.full((len(rows), width), pad_id, dtype=np.int64)
            mask, labels = np.zeros_like(ids), np.full_like(ids, -100)
            for r, (i, row) in enumerate(zip(micro.rows, rows, strict=True)):
                ids[r, width - len(row) :], mask[r, width - len(row) :] = row, 1
                labels[r, width - len(data.targets[i]) :] = data.targets[i]
            positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
            arrays = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "labels": labels}
            made.append({name: torch.from_numpy(array) for name, array in arrays.items()})
    return made


def trainer_loop(
    model: Any, made: list[dict[str, torch.Tensor]], config: TrainingConfig, folder: Path
) -> tuple[float, int]:
    """The same by Hugging Face's Trainer."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        begun = ended = 0.0

        def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
            self.begun = time.monotonic()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.ended = time.monotonic()

    clock = Clock()
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        num_train_epochs=1,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=SEED,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=made,
        # Each item is a micro-batch already.
        data_collator=lambda items: items[0],
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.ended - clock.begun, sum(int(batch["attention_mask"].sum()) for batch in made)


def distance(model: Any, other: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> float:
    """How far two trainings from one start ended from each other, as a share of how far they went."""
    apart = went = 0.0
    for name, value in model.state_dict().items():
        apart += float((value - other[name]).double().square().sum())
        went += float((other[name] - start[name]).double().square().sum())
    return (apart / went) ** 0.5


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and publish."""
    parser = make_parser(__doc__)
    parser.add_argument("--model", default=None, help="path or hub id (default: the demo's model)")
    parser.add_argument("--data", type=Path, default=None, help="JSONL with question, choices, answer")
    parser.add_argument("--steps", type=int, default=None, help="optimizer steps of a training (default 6)")
    parser.add_argument("--batch-size", type=int, default=8, help="rows of a step, in one forward")
    arguments = parser.parse_args(argv)
    set_threads(arguments.threads)
    steps = arguments.steps or (2 if arguments.quick else 6)
    size = arguments.batch_size
    config = TrainingConfig(
        epochs=1,
        batch_size=size,
        micro_batch_size=size,
        learning_rate=1e-5,
        schedule="constant",
        warmup_ratio=0.0,
    )
    device = pick_device()
    with tempfile.TemporaryDirectory() as folder:
        base = base_model(arguments.model, arguments.quick, Path(folder))
        tokenizer = load_tokenizer(base)
        encoded = encode(tokenizer, read_questions(arguments.data, steps * size))
        prompts = [e.prompt for e in encoded]
        targets = [target_ids(e, tokenizer.eos_token_id) for e in encoded]
        model = load_model(base, device=device, dtype=torch.float32, for_training=True)
        start = copy.deepcopy(model.state_dict())
        pad_id = int(tokenizer.eos_token_id)
        short, whole = on_targets(prompts, targets), on_all_positions(prompts, targets)
        made = batches(short, config, pad_id)
        contenders: dict[str, Callable[[], tuple[float, int]]] = {
            "ours, head on targets only": lambda: our_loop(model, short, config, pad_id, whole=False),
            "ours, head on all positions": lambda: our_loop(model, whole, config, pad_id, whole=True),
            "Hugging Face Trainer": lambda: trainer_loop(model, made, config, Path(folder) / "trainer"),
        }
        limits = device_limits(device, torch.float32, quick=arguments.quick)
        inside = inspect_model(base).n_compute_parameters
        head_size = model.get_output_embeddings().weight.numel()
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        ended: dict[str, dict[str, torch.Tensor]] = {}
        tokens = 0
        for _ in range(arguments.repeats or (1 if arguments.quick else 3)):
            for name, train in contenders.items():
                model.load_state_dict(start)
                spent, tokens = train()
                seconds[name].append(spent)
                ended.setdefault(name, copy.deepcopy(model.state_dict()))
    speed = {name: tokens / median(values) for name, values in seconds.items()}
    trainer = "Hugging Face Trainer"
    ratios = [
        Ratio(f"tokens a second, {name}", trainer, speed[name] / speed[trainer], target)
        for name, target in (("ours, head on all positions", 0.97), ("ours, head on targets only", 1.3))
    ]
    rows = []
    for name in contenders:
        model.load_state_dict(ended[name])
        apart = distance(model, ended[trainer], start)
        rows.append([name, f"{median(seconds[name]):.2f}", number(speed[name]), f"{apart:.1e}"])
    head = ("", "seconds", "tokens a second", "weights' distance from the Trainer's")
    share = sum(len(t) for t in targets) / tokens
    note = (
        f"{base.display_name}, all weights, float32; {steps} steps of {size} rows, {tokens:,} tokens, {share:.0%} of them "
        "targets."
    )
    # 6 FLOP a parameter and token (Kaplan et al. 2020, section 2.1), the head's on the targets.
    flops = 6.0 * (inside * tokens + head_size * sum(len(t) for t in targets))
    spent = median(seconds["ours, head on targets only"])
    limit = f"Ours, head on targets only, computes {limits.share_of_flops(flops, spent)} in matrix products."
    body = f"{note}\n\n{ratio_table(ratios)}\n\n{table(head, rows)}\n\n{limit}"
    publish("train", body, arguments, argv, device=device)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
