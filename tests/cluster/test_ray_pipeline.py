"""The pipeline on a real Ray with logical GPUs, and real DeepSpeed workers: the same numbers as in one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.errors import ResourceError
from ensemw2s.runs.store import RunStore

pytestmark = pytest.mark.timeout(900)
MakeConfig = Callable[..., dict[str, Any]]
ZERO2 = {"zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True}
SETTINGS = {
    "weak__training__epochs": 4,
    "weak__training__learning_rate": 2e-2,
    "boosting": {"rounds": 3, "prior": "unigram", "max_weight": 20.0},
    "vote__rounds": "all",
    "strong__training__epochs": 1,
    "strong__training__deepspeed": ZERO2,
}
# Three members on two supervisors, each with a (logical) GPU of its own, and two DeepSpeed workers.
ON_RAY = {
    "executor": "ray",
    "device": "cpu",
    "threads": 1,
    "supervisors": 2,
    "gpus_per_supervisor": 1.0,
    "cpus_per_supervisor": 0.5,
    "strong_workers": 2,
    "cpus_per_strong_worker": 0.5,
}


def run(
    config: dict[str, Any], progress: Callable[[ProgressEvent], None] = lambda event: None
) -> api.RunResult:
    return api.run(ExperimentConfig.model_validate(config), progress=progress)


@pytest.fixture(scope="module")
def both(ray_cluster: None, make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Any:
    local = run(make_tiny(tmp_path_factory.mktemp("local"), **SETTINGS))
    on_ray = run(make_tiny(tmp_path_factory.mktemp("ray"), **SETTINGS, runtime=ON_RAY), look)
    return local, on_ray


FREE: dict[str, list[float]] = {"round": [], "student": []}


def look(event: ProgressEvent) -> None:
    """Note the GPUs that are free while members and students train."""
    import ray

    kind = event.task.split()[0]
    if kind in FREE and event.total > 1:
        FREE[kind].append(ray.available_resources().get("GPU", 0.0))


def test_members_votes_and_labels_are_equal(both: Any) -> None:
    """Bit for bit: float32, one thread in both."""
    local, on_ray = both
    assert len(on_ray.results["members"]) == 3
    for key in (
        "staged",
        "selected_rounds",
        "effective_sample_size",
        "label_accuracy",
        "token_weight",
        "weak_ensemble",
    ):
        assert local.results[key] == on_ray.results[key], key
    for a, b in zip(local.results["members"], on_ray.results["members"], strict=True):
        assert {k: v for k, v in a.items() if k != "train_seconds"} == {
            k: v for k, v in b.items() if k != "train_seconds"
        }
    for name in ("votes/test.member-02.parquet", "labels/ensemble.parquet"):
        assert pq.read_table(local.run_dir / name).equals(pq.read_table(on_ray.run_dir / name)), name


def test_two_deepspeed_workers_take_the_serial_step(both: Any) -> None:
    """float32: the first loss to 1e-6; later ones drift by rounding only."""
    local, on_ray = both
    for name in ("single", "ceiling", "on_easy"):
        serial = RunStore(local.run_dir).require(f"student-{name}").info["losses"]
        parallel = RunStore(on_ray.run_dir).require(f"student-{name}").info["losses"]
        assert parallel[0] == pytest.approx(serial[0], rel=1e-6)
        np.testing.assert_allclose(parallel, serial, rtol=1e-3)


def test_only_devices_asked_for_are_used(both: Any) -> None:
    import ray

    # Two supervisors have one each; they are gone while students train, which use none here.
    assert min(FREE["round"]) == 2.0
    assert max(FREE["student"]) == 4.0
    # Everything was given back.
    assert ray.available_resources().get("GPU") == 4.0
    cost = both[1].results["cost"]["student-single"]
    assert cost["device"].startswith("2 x ")


def test_more_gpus_than_there_are(ray_cluster: None, make_tiny: MakeConfig, tmp_path: Path) -> None:
    config = make_tiny(tmp_path, **SETTINGS, runtime={**ON_RAY, "supervisors": 9})
    with pytest.raises(
        ResourceError, match=r"9 x \(0.5 CPU, 1 GPU\) does not fit .* 4 GPU: lower runtime.supervisors"
    ):
        run(config)
    assert not (tmp_path / "runs" / "tiny").exists()


def test_supervisors_on_one_gpu_cannot_train_a_member_together(
    ray_cluster: None, make_tiny: MakeConfig, tmp_path: Path
) -> None:
    from ensemw2s.cluster.runner import check_cluster

    def config(**runtime: Any) -> ExperimentConfig:
        plain = make_tiny(tmp_path, **SETTINGS, runtime={**ON_RAY, "device": "auto", **runtime})
        return ExperimentConfig.model_validate(plain)

    check_cluster(config(member_workers=2))
    check_cluster(config(member_workers=2, supervisors=1, gpus_per_supervisor=0.5))
    with pytest.raises(ResourceError, match=r"member_workers 2: supervisors with 0\.5 GPU each"):
        check_cluster(config(member_workers=2, gpus_per_supervisor=0.5))


def test_supervisors_may_be_kept_where_there_is_room_for_students_beside_them(
    ray_cluster: None, make_tiny: MakeConfig, tmp_path: Path
) -> None:
    from ensemw2s.cluster.actors import RayExecutor
    from ensemw2s.cluster.runner import check_cluster

    def config(**runtime: Any) -> ExperimentConfig:
        return ExperimentConfig.model_validate(
            make_tiny(tmp_path, **SETTINGS, runtime={**ON_RAY, "device": "auto", **runtime})
        )

    check_cluster(config(supervisors=3))
    with pytest.raises(
        ResourceError,
        match=r"5 x \(0.5 CPU, 1 GPU\) does not fit .* 4 GPU: lower runtime.supervisors, or leave out",
    ):
        check_cluster(config(supervisors=3, keep_supervisors=True))
    kept = config(supervisors=2, keep_supervisors=True)
    plan, threads = check_cluster(kept)
    for keep, chosen in ((True, kept), (False, config(supervisors=2))):
        executor = RayExecutor(chosen, tmp_path, plan, threads, None, lambda kind, **fields: None)
        with executor.supervisors() as first:
            pass
        with executor.supervisors() as second:
            assert (first is second) == keep
        executor.close()


def test_a_user_error_crosses_the_actors(ray_cluster: None, make_tiny: MakeConfig, tmp_path: Path) -> None:
    from ensemw2s.errors import UserError

    settings = {
        **SETTINGS,
        "weak__training__learning_rate": 1e-9,
        "boosting": {"rounds": 1, "prior": "unigram", "on_useless": "stop"},
    }
    with pytest.raises(UserError, match="no weak supervisor is better than the prior"):
        run(make_tiny(tmp_path, **settings, runtime=ON_RAY))


LOSS = ("confidence", {"warmup": 0.0})


def test_gradients_of_two_workers_are_the_serial_ones(
    ray_cluster: None, make_tiny: MakeConfig, tmp_path: Path, tiny_strong: Path
) -> None:
    """The gradient of the first effective batch, over two ZeRO workers with gradient accumulation, to 1e-6 (float32).

    The loss is one whose thresholds come from the whole effective batch, whoever holds its rows.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    payload = {"model": str(tiny_strong), "output": str(tmp_path / "gradients.json"), "config": ZERO2}
    TorchTrainer(
        gradient_worker,
        train_loop_config=payload,
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(name="gradients", storage_path=str(tmp_path)),
    ).fit()
    parallel = json.loads(Path(payload["output"]).read_text())
    serial = serial_gradients(payload["model"])
    assert set(parallel) == {*serial, "losses of a part"}
    losses = parallel.pop("losses of a part")
    for name, value in serial.items():
        np.testing.assert_allclose(parallel[name], value, atol=1e-6, err_msg=name)
    # The last layer alone, on two workers from kept activations and in one process from fresh ones: 3 steps, 1e-4.
    np.testing.assert_allclose(losses, part_losses(payload["model"], None), rtol=1e-4)


def gradient_worker(payload: dict[str, Any]) -> None:
    import ray.train
    import torch

    from ensemw2s.config import ModelConfig, TrainingConfig
    from ensemw2s.models.loading import load_model
    from ensemw2s.training.collate import collate, targets_of
    from ensemw2s.training.deepspeed import DeepSpeedBackend, choose_accelerator
    from ensemw2s.training.loop import target_logits, weighted_loss_sum
    from ensemw2s.training.losses import make_loss, prepare_batch
    from ensemw2s.training.plan import BatchPlan

    choose_accelerator("cpu")
    torch.set_num_threads(1)
    from deepspeed.utils import safe_get_full_grad

    data, config = gradient_data(), TrainingConfig(batch_size=7, micro_batch_size=2)
    model = load_model(
        ModelConfig(path=payload["model"]), device="cpu", dtype=torch.float32, for_training=True
    )
    plan = BatchPlan(data, config, 0, 2)
    backend = DeepSpeedBackend(model, config, payload["config"], accumulation=plan.accumulation, bf16=False)
    step = next(plan.steps(backend.rank))
    batches, loss = [collate(data, micro, 0) for micro in step.micro_batches], make_loss(*LOSS)
    seen = ((target_logits(backend.model, batch), targets_of(batch)) for batch in batches)
    state = prepare_batch(loss, seen, 0.5, backend.gather_rows)
    for batch in batches:
        backend.backward(weighted_loss_sum(backend.model, batch, loss, state) / step.denominator)
    gradients = {n: safe_get_full_grad(p).flatten().tolist() for n, p in model.named_parameters()}
    backend.close()
    gradients["losses of a part"] = part_losses(payload["model"], payload["config"])
    if ray.train.get_context().get_world_rank() == 0:
        Path(payload["output"]).write_text(json.dumps(gradients))


def part_losses(folder: str, deepspeed: dict[str, Any] | None) -> list[float]:
    from ensemw2s.config import ModelConfig, TrainingConfig
    from ensemw2s.models.loading import load_model
    from ensemw2s.models.trainable import ActivationCache, freeze
    from ensemw2s.training.backends import TorchBackend
    from ensemw2s.training.deepspeed import DeepSpeedBackend
    from ensemw2s.training.loop import fit

    config = TrainingConfig(epochs=3, batch_size=7, micro_batch_size=2, learning_rate=1e-2)
    base = ModelConfig(path=folder, trainable=1)
    model = load_model(base, device="cpu", for_training=True)
    frozen = freeze(model, base)
    backend: Any = TorchBackend(model, config)
    if deepspeed is not None:
        backend = DeepSpeedBackend(model, config, deepspeed, accumulation=2, bf16=False)
    kept = ActivationCache(frozen) if deepspeed is not None and frozen is not None else None
    report = fit(backend, gradient_data(), config, seed=1, pad_id=0, frozen=frozen, kept=kept)
    return report.losses


def serial_gradients(folder: str) -> dict[str, list[float]]:
    import torch

    from ensemw2s.config import ModelConfig, TrainingConfig
    from ensemw2s.models.loading import load_model
    from ensemw2s.training.collate import collate, targets_of
    from ensemw2s.training.loop import target_logits, weighted_loss_sum
    from ensemw2s.training.losses import make_loss, prepare_batch
    from ensemw2s.training.plan import BatchPlan

    data, config = gradient_data(), TrainingConfig(batch_size=7, micro_batch_size=7)
    model = load_model(ModelConfig(path=folder), device="cpu", dtype=torch.float32, for_training=True)
    step = next(BatchPlan(data, config, 0, 1).steps())
    batch, loss = collate(data, step.micro_batches[0], 0), make_loss(*LOSS)
    state = prepare_batch(loss, [(target_logits(model, batch), targets_of(batch))], 0.5)
    (weighted_loss_sum(model, batch, loss, state) / step.denominator).backward()
    return {n: p.grad.flatten().tolist() for n, p in model.named_parameters() if p.grad is not None}


def gradient_data() -> Any:
    from ensemw2s.training.plan import TrainingSet

    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, 300, size=int(k)).astype(np.int32) for k in rng.integers(2, 12, size=7)]
    targets = [rng.integers(1, 300, size=int(k)).astype(np.int32) for k in rng.integers(1, 5, size=7)]
    return TrainingSet.uniform(prompts, targets)
