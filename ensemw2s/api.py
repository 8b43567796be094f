"""The same from Python: run an experiment, load a trained ensemble.

from ensemw2s import api

result = api.run("configs/demo.yaml", "boosting.rounds=2")
print(result.results["student_ensemble"]["test"])

ensemble = api.load_ensemble(result.run_dir)
print(ensemble.generate("What is 3 + 4?").text)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import ProgressEvent, Until
from ensemw2s.errors import RunDirectoryError, UserError
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import absolute_paths, config_from_mapping, load_config

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from ensemw2s.data.samples import Sample
    from ensemw2s.engine.answers import Ensemble
    from ensemw2s.engine.context import RunContext
    from ensemw2s.engine.generation import Generated
    from ensemw2s.engine.pool import SupervisorPool

Show = Callable[[ProgressEvent], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory and results.json as a dict; `ran` is False when it was finished before."""

    run_dir: Path
    results: dict[str, Any]
    ran: bool


def _quiet(event: ProgressEvent) -> None:
    pass


def as_config(config: ExperimentConfig | str | Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """A configuration from a YAML file and ``key=value`` overrides, or as it is."""
    if isinstance(config, ExperimentConfig):
        if overrides:
            raise UserError(
                "overrides go with a configuration file, not with an ExperimentConfig: use model_copy"
            )
        # Names such as zero2 become the DeepSpeed configuration that they stand for, as for a file.
        return config_from_mapping(config.model_dump(mode="json"))
    return load_config(config, list(overrides))


def run(
    config: ExperimentConfig | str | Path,
    *overrides: str,
    progress: Show = _quiet,
    until: Until = "results",
) -> RunResult:
    """Run the whole pipeline, or continue it, or return at once where it is finished.

    Args:
        config: configuration, or the path of a YAML file.
        overrides: ``key=value``, as on the command line.
        progress: receives progress events.
        until: "labels" ends when the ensemble has labelled hard_train, with ``results == {}``.

    Raises:
        UserError: something that the user gave cannot be used; nothing was written because of it.
        EnsemW2SError: a worker died more often than allowed; the same call continues the run.
    """
    from ensemw2s.engine.prepare import check_directory

    config = as_config(config, overrides)
    store = check_directory(config)
    if store.exists and {"results", "report"} <= set(store.stages()) and store.is_whole():
        return RunResult(store.folder, read_results(store.folder), ran=False)
    if until == "labels" and store.exists and store.done("labels-ensemble") is not None:
        return RunResult(store.folder, {}, ran=False)
    from ensemw2s.engine.estimate import estimate, peak_disk
    from ensemw2s.engine.prepare import begin_run, prepare

    prepared = prepare(config)
    needed = peak_disk(estimate(prepared, 1e12), prepared)
    if config.runtime.executor == "local":
        begin_run(prepared, store, needed)
        with _context(prepared.absolute, store.folder, progress) as ctx:
            from ensemw2s.engine.pipeline import Pipeline
            from ensemw2s.engine.sharing import share
            from ensemw2s.models.device import pick_device

            device = pick_device(config.runtime.device)
            executor = share(
                _local_executor(ctx), ctx.config, ctx.store, ctx.say, device=device, trainer=f"torch {device}"
            )
            results = Pipeline(ctx, executor).run(until)
    else:
        from ensemw2s.cluster.runner import check_cluster, ray_session, run_on_ray

        with ray_session(config):
            plan, threads = check_cluster(config)
            begin_run(prepared, store, needed)
            results = run_on_ray(prepared, plan, threads, progress, until)
    return RunResult(store.folder, results, ran=True)


def read_results(run_dir: Path | str) -> dict[str, Any]:
    """results.json of a run.

    Raises:
        RunDirectoryError: there is none.
    """
    path = Path(run_dir) / "results.json"
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{run_dir} has no results.json: it is no run directory, or its run is not finished; `ensemw2s run CONFIG` continues it"
        ) from None
    return results


class LoadedEnsemble:
    """A trained ensemble, ready to label and to generate. Made by :func:`load_ensemble`."""

    def __init__(self, ctx: RunContext, ensemble: Ensemble, pool: SupervisorPool) -> None:
        self._ctx, self._ensemble, self._pool = ctx, ensemble, pool

    @property
    def multiple_choice(self) -> bool:
        """Whether the run's task has choices."""
        return self._ctx.multiple_choice

    @property
    def alphas(self) -> np.ndarray:
        """(T,) voting weights of the members."""
        return self._ensemble.alphas

    @property
    def members(self) -> list[str]:
        """Names of the members, in order."""
        return list(self._ensemble.systems)

    @property
    def tokenizer(self) -> Any:
        """The members' tokenizer."""
        return self._ctx.splits.tokenizer

    def label(self, samples: list[Sample]) -> pa.Table:
        """Pseudo-labels of new samples; see :mod:`ensemw2s.engine.labeling` for the columns."""
        from ensemw2s.engine.labeling import label_choices, label_free

        chosen = samples[0].choices is not None
        return (label_choices if chosen else label_free)(self._ctx, self._pool, self._ensemble, samples)

    def generate(self, question: str, *, max_new_tokens: int | None = None, raw: bool = False) -> Generated:
        """One voted answer.

        Args:
            question: put into the run's prompt template.
            max_new_tokens: instead of the run's own limit.
            raw: use the text as the whole prompt.
        """
        from ensemw2s.data.samples import Sample
        from ensemw2s.engine.encoded import make_encoder
        from ensemw2s.engine.labeling import generate_answers

        data = self._ctx.config.data
        encoder = make_encoder(
            data.model_copy(update={"prompt": "{question}"}) if raw else data, self.tokenizer
        )
        prompt = encoder.encode([Sample("prompt", question, None, None)])[0].prompt
        return generate_answers(
            self._ctx, self._pool, self._ensemble, [prompt], max_new_tokens=max_new_tokens
        )[0]


def load_ensemble(run_dir: Path | str, progress: Show = _quiet) -> LoadedEnsemble:
    """The ensemble of a finished (or far enough) run, in this process.

    Raises:
        RunDirectoryError: not a run directory.
        ArtifactError: the run has no ensemble yet, or a file of it is damaged.
    """
    from ensemw2s.engine.context import RunContext
    from ensemw2s.engine.labeling import selected_ensemble

    folder = Path(run_dir).resolve()
    store = RunStore(folder)
    if not store.exists or not (folder / "config.yaml").is_file():
        raise RunDirectoryError(
            f"{run_dir} is not a run directory: give the folder that `ensemw2s run` made, for example runs/demo"
        )
    ctx = RunContext(absolute_paths(load_config(folder / "config.yaml", [])), store, progress)
    return LoadedEnsemble(ctx, selected_ensemble(ctx), _local_executor(ctx).pool())


@contextmanager
def _context(config: ExperimentConfig, folder: Path, progress: Show) -> Iterator[RunContext]:
    from ensemw2s.engine.context import RunContext

    store = RunStore(folder)
    store.lock()
    try:
        yield RunContext(config, store, progress)
    finally:
        store.unlock()


def _local_executor(ctx: RunContext) -> Any:
    import os

    from ensemw2s.engine.pool import LocalExecutor

    threads = ctx.config.runtime.threads
    count = (os.cpu_count() or 1) if threads == "auto" else threads
    return LocalExecutor(ctx.config, ctx.run_dir, threads=count, report=ctx.report)
