"""What a run will take, before it begins: stages, tokens, seconds, memory and disk."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from ensemw2s.config import ModelConfig
from ensemw2s.engine.byte_generation import BYTES_PER_TOKEN
from ensemw2s.engine.encoded import EncodedSplit
from ensemw2s.engine.prepare import Prepared
from ensemw2s.models.trainable import trained_share

# Small models on short rows reach about this share of the speed of a large matrix product.
EFFICIENCY = 0.4
# Kaplan et al. 2020 (arXiv 2001.08361), section 2.1: FLOPs a parameter and token; backward for what is trained.
FORWARD, BACKWARD = 2.0, 4.0


@dataclass(frozen=True)
class StageEstimate:
    """One line of the plan; disk and memory in bytes."""

    stage: str
    tokens: int
    seconds: float
    memory: int
    disk: int


def measure_flops(device: str, seconds: float = 0.3) -> float:
    """FLOP/s of a float32 (GPU: bfloat16) matrix product on the device that this process would use."""
    import torch

    n = 1024 if device == "cpu" else 8192
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    a = torch.randn(n, n, device=device, dtype=dtype)
    b = a @ a
    done, begun = 0, time.monotonic()
    while time.monotonic() - begun < seconds:
        b = a @ a
        if device != "cpu":
            torch.cuda.synchronize()
        done += 1
    del b
    return done * 2.0 * n**3 / (time.monotonic() - begun)


def estimate(prepared: Prepared, flops_per_second: float) -> list[StageEstimate]:
    """The stages of a run with what each needs, on one device of the measured speed.

    Seconds are a first guess (parameters times tokens over the measured speed), good to about a factor of two.
    """
    config = prepared.config
    largest = max(config.weak.models, key=lambda m: prepared.facts[m.display_name].n_parameters)
    weak, weak_trained, weak_saved = _size(prepared, largest)
    strong, strong_trained, strong_saved = _size(prepared, config.strong.model)
    train = {n: _training_tokens(s) for n, s in prepared.encoded.items()}
    read = {n: _scoring_tokens(s, config.vote.max_new_tokens) for n, s in prepared.encoded.items()}
    tests = [n for n in prepared.encoded if n not in ("easy_train", "easy_val", "hard_train")]
    spoken = config.vote.max_new_tokens
    if config.vote.alignment == "bytes":
        spoken *= BYTES_PER_TOKEN
    votes = sum(_scoring_tokens(prepared.encoded[n], spoken) for n in ["easy_val", "hard_train", *tests])
    evaluated = sum(read[n] for n in ["easy_val", *tests])
    rounds = config.boosting.rounds
    speed = flops_per_second * EFFICIENCY

    def stage(
        name: str,
        parameters: int,
        trained: int,
        scored: int,
        memory: int,
        disk: int,
        backward: float = BACKWARD,
    ) -> StageEstimate:
        flops = parameters * ((FORWARD + backward) * trained + FORWARD * scored)
        return StageEstimate(name, trained + scored, flops / speed, memory, disk)

    # float32 weights, and of what is trained gradients and two Adam moments; DeepSpeed holds a flat copy of its weights, too.
    weak_memory, strong_memory = 4 * weak + 12 * weak_trained, 4 * strong + 16 * strong_trained
    weak_backward, strong_backward = (_backward(prepared, m) for m in (largest, config.strong.model))
    epochs, strong_epochs = config.weak.training.epochs, config.strong.training.epochs
    lines = [stage("prior error", weak, 0, train["easy_train"], 4 * weak, 0)]
    lines += [
        stage(
            f"member {t}",
            weak,
            epochs * train["easy_train"],
            train["easy_train"] + train["easy_val"] + votes,
            weak_memory,
            4 * weak_saved,
            weak_backward,
        )
        for t in range(1, rounds + 1)
    ]
    if config.labels.targets == "tokens":
        # One member, then all; each reads the labels once for its best tokens and once for those of the others.
        lines.append(stage("soft labels", weak, 0, 2 * (1 + rounds) * train["hard_train"], 4 * weak, 0))
    lines.append(stage("models as they are", max(weak, strong), 0, 2 * evaluated, 4 * strong, 0))
    if "few_shot" in config.evaluation.baselines:
        # About one question's text for each shot.
        lines.append(stage("few-shot", strong, 0, (1 + config.evaluation.shots) * evaluated, 4 * strong, 0))
    taught = train["hard_train"]
    if config.labels.targets == "choices":
        # At most: choices with next to no share are left out.
        taught = _all_choices_tokens(prepared.encoded["hard_train"])
    for name, tokens in (
        ("ceiling", train["hard_train"]),
        ("on_easy", train["easy_train"]),
        ("single", taught),
        ("ensemble", taught),
        *([("noise", train["hard_train"])] if "random_noise" in config.evaluation.baselines else []),
    ):
        lines.append(
            stage(
                f"student {name}",
                strong,
                strong_epochs * tokens,
                evaluated,
                strong_memory,
                4 * strong_saved,
                strong_backward,
            )
        )
    rule = config.strong.preference
    if rule is not None:
        # At most: a pair for every question that is left out, each text read by the reference and trained on.
        pairs = round(2 * (1.0 - config.labels.keep) * train["hard_train"])
        lines.append(
            stage(
                "student preference",
                strong,
                rule.epochs * pairs,
                evaluated + train["hard_train"] + pairs,
                strong_memory,
                4 * strong_saved,
                strong_backward,
            )
        )
    return lines


def _size(prepared: Prepared, model: ModelConfig) -> tuple[int, int, int]:
    """Parameters of the model, those that are trained, and those that are written: an adapter, or all."""
    facts = prepared.facts[model.display_name]
    saved = facts.n_parameters if model.lora is None else facts.n_trainable
    return facts.n_parameters, facts.n_trainable, saved


def _backward(prepared: Prepared, model: ModelConfig) -> float:
    """FLOPs a parameter and token of the backward pass; through frozen weights to an adapter goes half of it."""
    if model.lora is not None:
        return BACKWARD / 2
    return BACKWARD * trained_share(model, prepared.facts[model.display_name].n_layers)


def peak_disk(lines: list[StageEstimate], prepared: Prepared) -> int:
    """Bytes on disk at most: all weights, and the checkpoints of the largest training while it runs."""
    _, trained, saved = _size(prepared, prepared.config.strong.model)
    # Two checkpoints are kept while a third is written: weights and two Adam moments in float32 each.
    return sum(line.disk for line in lines) + 3 * (4 * saved + 8 * trained)


def _training_tokens(split: EncodedSplit) -> int:
    return int(sum(len(e.prompt) for e in split.encoded) + split.target_offsets[-1])


def _all_choices_tokens(split: EncodedSplit) -> int:
    """Tokens of a row for every choice: the prompt, the choice, end-of-text."""
    return sum(len(e.prompt) + len(c) + 1 for e in split.encoded for c in e.continuations)


def _scoring_tokens(split: EncodedSplit, max_new_tokens: int) -> int:
    prompts = int(np.sum([len(e.prompt) for e in split.encoded]))
    if split.multiple_choice:
        return prompts + int(split.choice_token_offsets[-1])
    return prompts + max_new_tokens * len(split.samples)
