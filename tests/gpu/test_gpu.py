"""What only a GPU shows: the same numbers as on the processor, every part of a run on the device, and Ray and DeepSpeed with a real GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from ensemw2s import api
from ensemw2s.config import ExperimentConfig, ModelConfig, TrainingConfig
from ensemw2s.models.decoding import StepDecoder
from ensemw2s.models.device import trainable_attention
from ensemw2s.models.loading import load_model
from ensemw2s.runs.store import RunStore
from ensemw2s.training.backends import TorchBackend
from ensemw2s.training.checkpoint import CheckpointFolder
from ensemw2s.training.loop import fit
from ensemw2s.training.plan import TrainingSet
from tests.conftest import write_jsonl

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
MakeConfig = Callable[..., dict[str, Any]]
GPU = {"executor": "local", "device": "cuda", "threads": 1}
BOOSTING = {"rounds": 3, "prior": "unigram", "max_weight": 20.0}
ZERO2 = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}


def own_format(config: dict[str, Any]) -> dict[str, Any]:
    """Models in the number format of the device: bfloat16 where it has it."""
    for model in (*config["weak"]["models"], config["strong"]["model"]):
        model["dtype"] = "auto"
    return config


def model_of(folder: Path, device: str) -> Any:
    return load_model(ModelConfig(path=str(folder)), device=device, dtype=torch.float32, for_training=True)


def data_of(n: int = 24) -> TrainingSet:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 300, size=int(k)).astype(np.int32) for k in rng.integers(2, 12, size=n)]
    targets = [rng.integers(1, 300, size=int(k)).astype(np.int32) for k in rng.integers(1, 5, size=n)]
    weights = [rng.integers(0, 4, size=len(t)).astype(np.float64) for t in targets]
    return TrainingSet(prompts, targets, weights, np.array([len(t) for t in targets], dtype=np.float64))


def test_training_is_that_of_the_processor(tiny_strong: Path) -> None:
    """float32: the first loss to 1e-5, later ones drift by rounding."""
    config = TrainingConfig(epochs=2, batch_size=4, micro_batch_size=2, learning_rate=1e-3)
    losses = {
        device: fit(
            TorchBackend(model_of(tiny_strong, device), config), data_of(), config, seed=7, pad_id=0
        ).losses
        for device in ("cpu", "cuda")
    }
    assert losses["cuda"][0] == pytest.approx(losses["cpu"][0], rel=1e-5)
    np.testing.assert_allclose(losses["cuda"], losses["cpu"], rtol=1e-3)


def test_gradients_of_very_small_scores_are_finite() -> None:
    """pytorch/pytorch issue 196678: a mask, 64 beyond a multiple of 128, scores near -100."""
    length, width = 64, 64
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, 1, length, width, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    query, key = query * 0.1, key * 0.1
    query[..., 0], key[..., 0] = 1.0, -100.0 * width**0.5
    mask = torch.ones(length, length, dtype=torch.bool, device="cuda").tril()[None, None]
    for tensor in (query, key, value):
        tensor.requires_grad_()
    with trainable_attention():
        torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in (query, key, value) if t.grad is not None)


def test_a_training_goes_on_from_its_checkpoint(tiny_strong: Path, tmp_path: Path) -> None:
    """To rounding: the order of sums on a GPU is not fixed."""
    config = TrainingConfig(epochs=3, batch_size=4, micro_batch_size=2, learning_rate=1e-3)
    whole = fit(TorchBackend(model_of(tiny_strong, "cuda"), config), data_of(), config, seed=7, pad_id=0)
    folder = CheckpointFolder(tmp_path)
    backend = TorchBackend(model_of(tiny_strong, "cuda"), config)

    def save(step: int, state: dict[str, Any]) -> None:
        backend.save(folder.begin(), state)
        folder.finish(step)
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(backend, data_of(), config, seed=7, pad_id=0, checkpoint=save, checkpoint_steps=4)
    again = TorchBackend(model_of(tiny_strong, "cuda"), config)
    report = fit(again, data_of(), config, seed=7, pad_id=0, resume=folder.latest())
    assert report.losses[:8] == pytest.approx(whole.losses[:8], rel=1e-4)
    assert report.losses == pytest.approx(whole.losses, rel=1e-3)
    assert all(s["exp_avg"].is_cuda for s in again.optimizer.state.values())


def test_decoding_is_that_of_the_processor(tiny_strong: Path) -> None:
    prompts = [
        np.random.default_rng(i).integers(2, 300, n).astype(np.int32) for i, n in enumerate((3, 17, 9))
    ]
    probs = []
    for device in ("cpu", "cuda"):
        decoder = StepDecoder(model_of(tiny_strong, device).eval(), pad_id=0)
        decoder.start(prompts)
        steps = []
        for step in range(12):
            top = decoder.top_k(8)
            steps.append(np.sort(top.probs, axis=1))
            # The same tokens for both, whatever rounding says of a tie.
            decoder.advance(np.array([step + 5, step + 50, step + 90]))
        probs.append(np.stack(steps))
    np.testing.assert_allclose(probs[1], probs[0], atol=1e-5)


def test_a_run_is_that_of_the_processor(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """float32: what the first member was taught and says; after that reweighting may tip a question that is even."""
    runs = []
    for device in ("cpu", "cuda"):
        config = make_tiny(tmp_path / device, boosting=BOOSTING, runtime={**GPU, "device": device})
        for model in (*config["weak"]["models"], config["strong"]["model"]):
            model["dtype"] = "float32"
        runs.append(api.run(ExperimentConfig.model_validate(config)))
    for name, tolerance in (("votes/test.weak-0.parquet", 1e-4), ("votes/test.member-00.parquet", 0.05)):
        cpu, gpu = (
            pq.read_table(r.run_dir / name).column("logprobs").combine_chunks().flatten().to_numpy()
            for r in runs
        )
        assert float(np.abs(gpu - cpu).mean()) < tolerance, name
    cpu, gpu = (r.results["members"][0] for r in runs)
    assert gpu["error"] == pytest.approx(cpu["error"], abs=0.02)
    assert runs[1].results["cost"]["member-00"]["device"] == torch.cuda.get_device_name()


PARTS: dict[str, dict[str, Any]] = {
    "bootstrap": {"boosting": {"rounds": 2, "reweight": "token_bootstrap"}},
    "loss weights": {"boosting": {"rounds": 2, "reweight": "loss", "prior": "unigram"}},
    "choices": {"boosting": {"rounds": 2, "unit": "choice", "prior": "chance"}},
    "averaged weights": {
        "boosting": {"rounds": 2, "method": "bagging"},
        "vote__combine": "weights",
        "vote__rounds": "all",
    },
    "soft labels": {"labels__targets": "choices", "vote__rounds": "all"},
    "vote's tokens": {
        "labels__targets": "tokens",
        "strong__training__loss": "soft_cross_entropy",
        "vote__rounds": "all",
    },
    "confidence loss": {"strong__training__loss": "confidence"},
    "frozen layers": {"strong__model__trainable": 1},
    "fitted votes": {"vote__label_model": "em_weights", "vote__calibrate": True, "vote__rounds": "all"},
    "baselines": {"evaluation__baselines": ["few_shot", "random_noise"]},
}


@pytest.mark.parametrize("part", PARTS)
def test_every_part_runs_on_the_device(make_tiny: MakeConfig, tmp_path: Path, part: str) -> None:
    """In the device's own format, bfloat16 on GPUs that have it."""
    config = own_format(make_tiny(tmp_path, strong__training__epochs=1, runtime=GPU, **PARTS[part]))
    result = api.run(ExperimentConfig.model_validate(config))
    device = torch.cuda.get_device_name()
    assert result.results["cost"]["student-single"]["device"] == device
    assert 0.0 <= result.results["label_accuracy"]["ensemble"]["value"] <= 1.0


@pytest.mark.parametrize("head", ["adapter", "classifier", "generated"])
def test_other_models_run_on_the_device(
    make_tiny: MakeConfig, free_questions: Path, tmp_path: Path, head: str
) -> None:
    config = own_format(make_tiny(tmp_path, boosting={"rounds": 3}, vote__rounds="all", runtime=GPU))
    config["strong"]["training"]["epochs"] = 1
    if head == "adapter":
        config["weak"]["models"][0]["lora"] = {"rank": 4, "alpha": 8.0}
    elif head == "classifier":
        config["boosting"]["prior"] = "classes"
        for model in (*config["weak"]["models"], config["strong"]["model"]):
            model["head"] = "classifier"
    else:
        config["data"]["pool"]["path"] = str(free_questions)
    result = api.run(ExperimentConfig.model_validate(config))
    assert RunStore(result.run_dir).require("student-ensemble").info["losses"]


def command(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "ensemw2s.cli", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_command_line_with_ray_and_deepspeed(
    make_tiny: MakeConfig, tiny_questions: Path, tmp_path: Path
) -> None:
    """Two supervisors on one GPU, then a DeepSpeed worker with NCCL on it; its ensemble labels and answers."""
    config = make_tiny(
        tmp_path,
        boosting=BOOSTING,
        vote__rounds="all",
        strong__training__deepspeed=ZERO2,
        runtime={"executor": "ray", "supervisors": 2, "gpus_per_supervisor": 0.5},
    )
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(own_format(config)))
    environment = {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"}
    command(environment, "run", str(path))
    run_dir = tmp_path / "runs" / "tiny"
    results = json.loads((run_dir / "results.json").read_text())
    name = torch.cuda.get_device_name()
    assert results["cost"]["member-00"]["device"] == name
    assert results["cost"]["student-single"]["device"] == f"1 x {name}"
    # One process with plain PyTorch has the same students, but for bfloat16's rounding.
    local = make_tiny(tmp_path / "local", boosting=BOOSTING, vote__rounds="all", runtime=GPU)
    alone = api.run(ExperimentConfig.model_validate(own_format(local)))
    for student in ("single", "ceiling"):
        ours, theirs = (
            RunStore(folder).require(f"student-{student}").info["losses"]
            for folder in (run_dir, alone.run_dir)
        )
        assert ours[0] == pytest.approx(theirs[0], rel=0.02)
        np.testing.assert_allclose(ours, theirs, rtol=0.1)
    rows = [{"question": "the ant in the barn", "choices": ["buzz loud", "hiss low"]}]
    questions, labels = write_jsonl(tmp_path / "ask.jsonl", rows), tmp_path / "labels.jsonl"
    command(environment, "label", str(run_dir), "--input", str(questions), "--output", str(labels))
    assert len(labels.read_text().splitlines()) == 1
    said = command(environment, "generate", str(run_dir), "--prompt", "the ant in the barn")
    assert "buzz" in said or "hiss" in said or "roar" in said or "chirp" in said
