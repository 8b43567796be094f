"""Progress and results of a run for TensorBoard, Weights & Biases or MLflow, where ``runtime.log_to`` names them.

All of it happens in the process that started the run: workers know nothing of it, and nothing of it decides anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.errors import EnsemW2SError

__all__ = ["TRACKERS", "Tracked", "Tracker", "result_numbers", "tracked"]

Show = Callable[[ProgressEvent], None]
PROJECT = "ensemw2s"


class Tracker(Protocol):
    """Somewhere numbers go."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by name at one step; steps count within a name."""

    def close(self) -> None:
        """Hand over what is still here."""


class TensorBoard:
    """Event files in the run directory, ``tracking/tensorboard``."""

    def __init__(self, config: ExperimentConfig, run_dir: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(logdir=str(run_dir / "tracking" / "tensorboard"))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of W&B; its own environment variables say which project and mode (WANDB_PROJECT, WANDB_MODE=offline)."""

    def __init__(self, config: ExperimentConfig, run_dir: Path) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=config.name,
            id=f"{config.name}-{config.identity_hash()[:12]}",
            resume="allow",
            dir=str(run_dir),
            config=config.identity(),
        )
        self._known: set[str] = set()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            # W&B's own steps must not run backwards, but trainings run beside each other.
            if name not in self._known:
                self._run.define_metric(name, step_metric=f"{name}_step")
                self._known.add(name)
            self._run.log({name: value, f"{name}_step": step})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of MLflow at MLFLOW_TRACKING_URI; a run that goes on is found again by its identity."""

    def __init__(self, config: ExperimentConfig, run_dir: Path) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        key = f"{config.name}-{config.identity_hash()[:12]}"
        runs = self._client.search_runs([experiment], f"tags.ensemw2s = '{key}'", max_results=1)
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(experiment, run_name=config.name, tags={"ensemw2s": key})
            self._id = made.info.run_id
            self._client.log_dict(self._id, config.identity(), "config.json")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._id, name, value, step=step)

    def close(self) -> None:
        self._client.set_terminated(self._id)


TRACKERS: dict[str, Callable[[ExperimentConfig, Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}


@contextmanager
def tracked(config: ExperimentConfig, run_dir: Path, show: Show) -> Iterator[Tracked]:
    """Progress that is shown and tracked.

    Raises:
        EnsemW2SError: a tracker cannot be opened; the same call continues the run.
    """
    with ExitStack() as stack:
        opened: dict[str, Tracker] = {}
        for name in config.runtime.log_to:
            try:
                opened[name] = TRACKERS[name](config, run_dir)
            # Each library has errors of its own, for servers, accounts and files.
            except Exception as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise EnsemW2SError(
                    f"runtime.log_to {name} cannot be opened ({reason}): mend that or leave it out; the same command continues the run"
                ) from error
        tracked = Tracked(opened, show)
        stack.callback(tracked.close)
        yield tracked


class Tracked:
    """A receiver of progress that passes events on and their numbers to trackers.

    A tracker that fails later is named once and left out from then on: a run does not end because a server does.
    """

    def __init__(self, trackers: dict[str, Tracker], show: Show) -> None:
        self._trackers, self._show = trackers, show

    def __call__(self, event: ProgressEvent) -> None:
        self._show(event)
        if not event.metrics or not self._trackers:
            return
        numbers = dict(event.metrics)
        if "round" in numbers:
            step = int(numbers.pop("round"))
            self._log({f"rounds/{name}": value for name, value in numbers.items()}, step)
        else:
            self._log({f"{event.task}/{name}": value for name, value in numbers.items()}, event.done)

    def results(self, results: Mapping[str, Any]) -> None:
        """The accuracies and performance gaps of a finished run."""
        self._log(result_numbers(results), 0)

    def close(self) -> None:
        """Close all trackers."""
        for name in list(self._trackers):
            self._guarded(name, lambda tracker: tracker.close())
        self._trackers.clear()

    def _log(self, values: Mapping[str, float], step: int) -> None:
        # What all of them allow in a name.
        clean = {re.sub(r"[^\w./-]+", "_", name): float(value) for name, value in values.items()}
        for name in list(self._trackers):
            self._guarded(name, lambda tracker: tracker.scalars(clean, step))

    def _guarded(self, name: str, action: Callable[[Tracker], None]) -> None:
        try:
            action(self._trackers[name])
        except Exception as error:
            del self._trackers[name]
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._show(ProgressEvent(f"warning: {name} failed and is left out from here on: {reason}", 1, 1))


def result_numbers(results: Mapping[str, Any]) -> dict[str, float]:
    """``system/split`` of every accuracy of results.json, and ``pgr_TEACHER/split``."""
    found: dict[str, float] = {}
    for name, by_split in results.items():
        if not isinstance(by_split, Mapping):
            continue
        for split, score in by_split.items():
            if name == "pgr":
                found |= {f"pgr_{who}/{split}": p["value"] for who, p in score.items() if p is not None}
            elif isinstance(score, Mapping) and {"value", "low", "high"} <= set(score):
                found[f"{name}/{split}"] = score["value"]
    return found
