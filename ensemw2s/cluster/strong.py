"""The strong model: Ray Train runs DeepSpeed on one or several workers, with checkpoints and restarts."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from ensemw2s.cluster.away import Away, moved
from ensemw2s.cluster.remote_errors import last_line
from ensemw2s.cluster.supervisors import RemoteReport
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import ProgressEvent, StudentTask, TrainOutcome
from ensemw2s.errors import ArtifactError, EnsemW2SError, WorkerFailure
from ensemw2s.runs.cache import link_tree
from ensemw2s.runs.mirror import Mirror, Storage
from ensemw2s.runs.store import write_atomic
from ensemw2s.training.checkpoint import verify

OUTCOME = "training.json"
TASK = "task.txt"


def train_with_deepspeed(
    config: ExperimentConfig,
    run_dir: Path,
    tasks: Sequence[StudentTask],
    scratch: Path,
    threads: int,
    coordinator: Any,
    storage: Storage | None = None,
) -> Iterator[TrainOutcome]:
    """Fine-tune the strong model on Ray Train workers, once a task; an outcome when ``task.output`` is in place.

    One group of workers trains them one after another. Checkpoints lie in ``scratch``, finished weights in the tasks'
    own scratch folders; the same call after a crash goes on from there. With `storage` both lie there, and the weights where their
    stage will have them.

    Raises:
        WorkerFailure: the workers died more often than runtime.max_failures allows.
    """
    mirror = None if storage is None else Mirror(storage)
    for attempt in range(2):
        if not _unfinished(tasks, mirror):
            break
        if attempt == 1:
            # Ray Train holds this name for finished, but weights are missing: train them anew.
            shutil.rmtree(scratch, ignore_errors=True)
            if mirror is not None:
                mirror.forget(scratch.name)
        fit = partial(_fit, config, run_dir, scratch, threads, coordinator, mirror)
        _fit_again(fit, tasks, mirror, config.runtime.max_failures, coordinator)
    for task in tasks:
        yield _collect(task, mirror)


def _unfinished(tasks: Sequence[StudentTask], mirror: Mirror | None) -> list[StudentTask]:
    return [task for task in tasks if _outcome(task, mirror) is None]


def _fit_again(
    fit: Callable[[list[StudentTask]], None],
    tasks: Sequence[StudentTask],
    mirror: Mirror | None,
    max_failures: int,
    coordinator: Any,
) -> None:
    """Train what is not finished. Workers that die are Ray Train's business; its controller may die as often."""
    import ray

    for restarts in range(max_failures + 1):
        unfinished = _unfinished(tasks, mirror)
        try:
            if unfinished:
                fit(unfinished)
            return
        except ray.exceptions.RayActorError as error:
            if restarts == max_failures:
                raise _failed(unfinished, error) from error
            coordinator.happened.remote("train_controller_restarted", {"restarts": restarts + 1})


def finished_folder(task: StudentTask) -> Path:
    """Where the workers leave a student's weights and, last, its outcome."""
    return task.scratch / "finished"


def _fit(
    config: ExperimentConfig,
    run_dir: Path,
    scratch: Path,
    threads: int,
    coordinator: Any,
    mirror: Mirror | None,
    tasks: list[StudentTask],
) -> None:
    import ray
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    runtime = config.runtime
    use_gpu = uses_gpu(config)
    resources = {"CPU": runtime.cpus_per_strong_worker}
    if use_gpu:
        resources["GPU"] = 1.0
    payload = {
        "config": config,
        "run_dir": run_dir,
        "tasks": tasks,
        "threads": threads,
        "coordinator": coordinator,
        "storage": None if mirror is None else mirror.storage,
    }
    place: dict[str, Any] = {"storage_path": str(scratch)}
    if mirror is not None:
        inside = scratch.relative_to(run_dir).as_posix()
        place = {
            "storage_path": f"{mirror.remote.path.rstrip('/')}/{inside}",
            "storage_filesystem": mirror.remote.file_system,
        }
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config=payload,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=runtime.strong_workers, use_gpu=use_gpu, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=scratch.name,
            **place,
            failure_config=FailureConfig(max_failures=runtime.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_failure_notes(coordinator)],
        ),
    )
    try:
        trainer.fit()
    except ray.exceptions.RayActorError:
        raise
    except Exception as error:
        raise _user_error(error) or _failed(tasks, error) from error


def _failed(tasks: list[StudentTask], error: Exception) -> WorkerFailure:
    names = ", ".join(task.name for task in tasks)
    return WorkerFailure(
        f"training the strong model ({names}) failed: {last_line(error)}; "
        "run the same command to continue from its last checkpoint"
    )


def _failure_notes(coordinator: Any) -> Any:
    """A Ray Train callback that tells the coordinator when workers failed; Ray Train then starts the group again."""
    from ray.train import UserCallback

    class FailureNotes(UserCallback):
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            error = last_line(next(iter(worker_exceptions.values())))
            fields = {"ranks": sorted(worker_exceptions), "error": error[:200]}
            coordinator.happened.remote("strong_workers_failed", fields)

    return FailureNotes()


def _outcome(task: StudentTask, mirror: Mirror | None) -> TrainOutcome | None:
    """What the training of a student gave, when its weights are there; None before."""
    if mirror is not None:
        listing = mirror.staged(_stage(task))
        return None if listing is None else TrainOutcome(**listing["info"])
    path = finished_folder(task) / OUTCOME
    return TrainOutcome(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _stage(task: StudentTask) -> str:
    """The stage that commits a student."""
    return task.scratch.name


def _collect(task: StudentTask, mirror: Mirror | None) -> TrainOutcome:
    """Move a student's weights to where its stage wants them; on storage they are there."""
    folder = finished_folder(task)
    outcome = _outcome(task, mirror)
    if outcome is None:
        raise WorkerFailure(
            f"the workers ended without the weights of student {task.name}: run the same command again"
        )
    if mirror is not None:
        return outcome
    # Linked, not moved: a run that is killed before the commit finds them again; the commit removes the scratch folder.
    task.output.parent.mkdir(parents=True, exist_ok=True)
    link_tree(folder, task.output)
    (task.output / OUTCOME).unlink()
    return outcome


def uses_gpu(config: ExperimentConfig) -> bool:
    """Whether the strong model trains on GPUs of this cluster."""
    import ray

    return config.runtime.device != "cpu" and ray.cluster_resources().get("GPU", 0.0) >= 1.0


def _train_worker(payload: dict[str, Any]) -> None:
    """One rank: train what is not finished yet, one task after another."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from ensemw2s.models.device import set_threads
    from ensemw2s.training.deepspeed import choose_accelerator

    choose_accelerator(get_device().type)
    set_threads(payload["threads"])
    mirror = None
    if payload["storage"] is not None:
        away = Away(payload["storage"])
        mirror = away.mirror
        mirror.bring("labels/")
        tasks = [moved(task, mirror.folder) for task in payload["tasks"]]
        payload = {**payload, "run_dir": mirror.folder, "tasks": tasks}
    latest = ray.train.get_checkpoint()
    for task in payload["tasks"]:
        if _outcome(task, mirror) is not None:
            continue
        with nullcontext() if latest is None else latest.as_directory() as folder:
            saved = None if folder is None else Path(folder)
            if saved is not None and not _fits(saved, task, ray.train.get_context().get_world_size()):
                saved = None
            if task.start is None:
                _train_one(payload, task, saved, mirror)
            else:
                _prefer_one(payload, task, mirror)
        torch.distributed.barrier()


def _fits(folder: Path, task: StudentTask, world_size: int) -> bool:
    """Whether a checkpoint is of this student and of as many workers, and whole; else the student is trained anew."""
    try:
        if (folder / TASK).read_text(encoding="utf-8") != _mark(task, world_size):
            return False
        verify(folder, world_size)
    except (OSError, ArtifactError):
        return False
    return True


def _mark(task: StudentTask, world_size: int) -> str:
    return f"{task.name} {world_size}"


def _train_one(
    payload: dict[str, Any], task: StudentTask, resume: Path | None, mirror: Mirror | None
) -> None:
    """One rank: build the model and the plan, restore, train, write the weights (rank 0)."""
    import ray.train
    import torch
    from ray.train.torch import get_device

    from ensemw2s.engine.bases import converted, training_flops
    from ensemw2s.engine.encoded import EncodedSplits
    from ensemw2s.engine.students import student_training, student_training_set
    from ensemw2s.models.device import describe_device, resolve_dtype
    from ensemw2s.models.loading import load_model, load_tokenizer
    from ensemw2s.models.storage import save_model
    from ensemw2s.models.trainable import ActivationCache, freeze
    from ensemw2s.training.checkpoint import seal
    from ensemw2s.training.deepspeed import DeepSpeedBackend
    from ensemw2s.training.loop import fit
    from ensemw2s.training.plan import BatchPlan

    config: ExperimentConfig = payload["config"]
    model_config, training = (
        converted(payload["run_dir"], config.strong.model),
        student_training(config, task),
    )
    device = get_device()
    report_progress = RemoteReport(payload["coordinator"])
    rank, world_size = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()

    tokenizer = load_tokenizer(model_config)
    splits = EncodedSplits(payload["run_dir"], config.data, tokenizer, model_config.head)
    data = student_training_set(config, payload["run_dir"], splits, task)
    bf16 = resolve_dtype(model_config.dtype, str(device)) == torch.bfloat16
    model = load_model(
        model_config,
        device=str(device),
        dtype=torch.float32,
        for_training=True,
        seed=task.seed,
        n_classes=splits.n_classes,
    )
    frozen = freeze(model, model_config)
    accumulation = BatchPlan(data, training, task.seed, world_size).accumulation
    if not isinstance(training.deepspeed, dict):
        raise TypeError("the DeepSpeed configuration must be resolved before the workers start")
    backend = DeepSpeedBackend(model, training, training.deepspeed, accumulation=accumulation, bf16=bf16)

    def checkpoint(step: int, state: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            backend.save(Path(folder), state)
            (Path(folder) / TASK).write_text(_mark(task, world_size), encoding="utf-8")
            seal(Path(folder), step, rank)
            ray.train.report({"step": step}, checkpoint=ray.train.Checkpoint.from_directory(folder))

    report = fit(
        backend,
        data,
        training,
        seed=task.seed,
        pad_id=int(tokenizer.eos_token_id),
        resume=resume,
        checkpoint=checkpoint,
        checkpoint_steps=config.runtime.checkpoint_steps,
        progress=lambda done, total, loss: report_progress(
            ProgressEvent(f"student {task.name}", done, total, f"loss {loss:.3f}", {"loss": loss})
        ),
        frozen=frozen,
        kept=ActivationCache(frozen) if frozen and config.runtime.cache_activations else None,
    )
    with backend.gathered():
        if rank == 0:
            module = backend.engine.module
            if bf16 and model_config.lora is None:
                module.to(torch.bfloat16)
            save_model(module, tokenizer, _empty_folder(task, mirror), base=model_config)
    if rank == 0:
        outcome = TrainOutcome(
            report.seconds,
            report.tokens,
            training_flops(model_config) * report.tokens,
            f"{world_size} x {describe_device(str(device))}",
            report.steps,
            report.losses,
        )
        _finish(task, outcome, mirror)
    backend.close()


def _prefer_one(payload: dict[str, Any], task: StudentTask, mirror: Mirror | None) -> None:
    """One rank: the second stage of a student, by TRL in data parallel; rank 0 writes the weights."""
    import ray.train
    from ray.train.torch import get_device

    from ensemw2s.engine.bases import converted
    from ensemw2s.engine.encoded import EncodedSplits
    from ensemw2s.engine.preferences import train_preferred
    from ensemw2s.models.loading import load_tokenizer

    config: ExperimentConfig = payload["config"]
    if mirror is not None and task.start is not None and task.start.folder is not None:
        mirror.obtain(task.start.folder)
    model_config = converted(payload["run_dir"], config.strong.model)
    tokenizer = load_tokenizer(model_config)
    context = ray.train.get_context()
    rank = context.get_world_rank()
    outcome = train_preferred(
        config,
        payload["run_dir"],
        EncodedSplits(payload["run_dir"], config.data, tokenizer, model_config.head),
        task,
        device=str(get_device()),
        report=RemoteReport(payload["coordinator"]),
        world_size=context.get_world_size(),
        rank=rank,
        output=_empty_folder(task, mirror) if rank == 0 else None,
    )
    if rank == 0:
        _finish(task, outcome, mirror)


def _empty_folder(task: StudentTask, mirror: Mirror | None) -> Path:
    """Where a student's weights go, without what a killed attempt left there."""
    folder = finished_folder(task) if mirror is None else task.output
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _finish(task: StudentTask, outcome: TrainOutcome, mirror: Mirror | None) -> None:
    """The last thing that is written: what the training did."""
    if mirror is None:
        write_atomic(finished_folder(task) / OUTCOME, json.dumps(asdict(outcome)))
    else:
        mirror.publish(task.output, asdict(outcome))


def _user_error(error: BaseException) -> EnsemW2SError | None:
    """The error of ours that made the workers fail, if it was one: Ray Train keeps the workers' errors by rank."""
    for failure in getattr(error, "worker_failures", {}).values():
        cause = getattr(failure, "cause", None) or failure
        for candidate in (cause, getattr(cause, "_base_exc", None), cause.__cause__):
            if isinstance(candidate, EnsemW2SError):
                return candidate
    return None
