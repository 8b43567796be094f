"""The same from Python: run an experiment, load a trained ensemble.

from ensemw2s import api

result = api.run("configs/demo.yaml", "boosting.rounds=2")
print(result.results["student_ensemble"]["test"])

ensemble = api.load_ensemble(result.run_dir)
print(ensemble.generate("What is 3 + 4?").text)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemw2s.config import ExperimentConfig
from ensemw2s.config.uris import is_uri
from ensemw2s.core.utf8 import END, is_text
from ensemw2s.engine.tasks import ProgressEvent, Until
from ensemw2s.errors import ConfigError, DataError, RunDirectoryError, UserError
from ensemw2s.opening import Show, local_executor, locked_run, open_run
from ensemw2s.runs.reading import read_run
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import config_from_mapping, load_config
from ensemw2s.tracking import tracked

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from ensemw2s.data.samples import Sample
    from ensemw2s.data.streaming import SampleFile
    from ensemw2s.engine.answers import Ensemble
    from ensemw2s.engine.context import RunContext
    from ensemw2s.engine.generation import Generated
    from ensemw2s.engine.pool import SupervisorPool
    from ensemw2s.rating import RatedFile


@dataclass(frozen=True)
class RunResult:
    """A finished run: its directory and results.json as a dict; `ran` is False when it was finished before.

    `place` names the run; where it is on storage with a URI, `run_dir` is this machine's copy.
    """

    run_dir: Path
    results: dict[str, Any]
    ran: bool
    place: str = ""


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
        store.require("results")
        return RunResult(store.folder, read_results(store.folder), ran=False, place=store.place)
    if until == "labels" and store.exists and store.done("labels-ensemble") is not None:
        return RunResult(store.folder, {}, ran=False, place=store.place)
    from ensemw2s.engine.estimate import estimate, peak_disk
    from ensemw2s.engine.prepare import begin_run, prepare

    prepared = prepare(config)
    needed = peak_disk(estimate(prepared, 1e12), prepared)
    if config.runtime.executor == "local":
        begin_run(prepared, store, needed)
        with (
            tracked(config, store.folder, progress) as watched,
            locked_run(prepared.absolute, store, watched) as ctx,
        ):
            from ensemw2s.engine.pipeline import Pipeline
            from ensemw2s.engine.sharing import share
            from ensemw2s.models.device import kind_of_device, pick_device

            device = kind_of_device(pick_device(config.runtime.device))
            executor = share(
                local_executor(ctx), ctx.config, ctx.store, ctx.say, device=device, trainer=f"torch {device}"
            )
            results = Pipeline(ctx, executor).run(until)
            watched.results(results)
    else:
        from ensemw2s.cluster.runner import check_cluster, ray_session, run_on_ray

        with ray_session(config):
            plan, threads = check_cluster(config)
            begin_run(prepared, store, needed)
            with tracked(config, store.folder, progress) as watched:
                results = run_on_ray(prepared, plan, threads, watched, until)
                watched.results(results)
    _take_results(store, "results" if results else "labels-ensemble")
    return RunResult(store.folder, results, ran=True, place=store.place)


def _take_results(store: RunStore, stage: str) -> None:
    """Bring what a coordinator has made on another machine here, and send what this process wrote beside it."""
    if store.mirror is not None:
        store.pull()
        store.require(stage)
        store.mirror.push_loose()


def read_results(run_dir: Path | str) -> dict[str, Any]:
    """results.json of a run.

    Raises:
        RunDirectoryError: there is none.
    """
    if is_uri(str(run_dir)):
        run_dir = read_run(run_dir, "results").folder
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
        """The members' tokenizer; the first weak model's, where the vote is on bytes."""
        return self._ctx.splits.tokenizer

    def token_text(self, token: int) -> str:
        """A token of an answer in letters, quoted; where the vote is on bytes a byte, or the end."""
        if self._ctx.config.vote.alignment == "tokens":
            return repr(self.tokenizer.decode([token]))
        return "end" if token == END else repr(bytes([token]))[1:]

    def label(self, samples: list[Sample]) -> pa.Table:
        """Pseudo-labels of new samples; see :mod:`ensemw2s.engine.labeling` for the columns."""
        from ensemw2s.engine.labeling import label_choices, label_free

        chosen = samples[0].choices is not None
        return (label_choices if chosen else label_free)(self._ctx, self._pool, self._ensemble, samples)

    def label_file(self, source: Path | str, output: Path | str) -> int:
        """Pseudo-labels of a file of any size, a chunk at a time; the same call continues one that was interrupted.

        Args:
            source: JSONL, CSV or Parquet with question and, for multiple choice, choices.
            output: .jsonl, .csv or .parquet, written whole or not at all.

        Returns:
            How many samples were labelled.

        Raises:
            DataError: the file cannot be used, or the output cannot be written there.
        """
        from ensemw2s.data.streaming import SampleFile
        from ensemw2s.data.writing import check_output

        target = check_output(Path(output))
        return self.label_samples(SampleFile(Path(source)), target)

    def label_samples(self, samples: SampleFile, output: Path) -> int:
        """The same for a file that is checked already."""
        from ensemw2s.engine.label_file import label_file

        return label_file(self._ctx, self._ensemble, self.label, samples, output)

    def generate(self, question: str, *, max_new_tokens: int | None = None, raw: bool = False) -> Generated:
        """One voted answer.

        Args:
            question: put into the run's prompt template.
            max_new_tokens: instead of the run's own limit.
            raw: use the text as the whole prompt.

        Raises:
            DataError: the text has characters that are none.
            ConfigError: the members answer with one of their classes.
        """
        from ensemw2s.data.samples import Sample
        from ensemw2s.engine.encoded import NO_TEXT
        from ensemw2s.engine.labeling import generate_answers

        ctx, splits = self._ctx, self._ctx.splits
        if not is_text(question):
            raise DataError("the prompt is not UTF-8: give it in the encoding of the terminal")
        if raw:
            splits = ctx.weak_splits(ctx.config.data.model_copy(update={"prompt": "{question}"}))
        if splits.n_classes is not None:
            raise ConfigError(NO_TEXT)
        asked = splits.encode([Sample("prompt", question, None, None)])
        return generate_answers(ctx, self._pool, self._ensemble, asked, max_new_tokens=max_new_tokens)[0]


def load_ensemble(run_dir: Path | str | RunStore, progress: Show = _quiet) -> LoadedEnsemble:
    """The ensemble of a finished (or far enough) run, in this process; the run by its folder or URI, or opened already.

    Raises:
        RunDirectoryError: not a run directory.
        ArtifactError: the run has no ensemble yet, or a file of it is damaged.
    """
    ctx, ensemble = _open(run_dir, progress)
    return LoadedEnsemble(ctx, ensemble, local_executor(ctx).pool())


def rate(
    config: ExperimentConfig | str | Path,
    *overrides: str,
    output: Path | str,
    progress: Show = _quiet,
    **options: Any,
) -> RatedFile:
    """Rate a labelled data set by difficulty and write it again with a column ``difficulty``.

    The same call continues a rating that was interrupted: finished folds lie beside the output until it is written.

    Args:
        config: configuration, or the path of a YAML file; ``data.pool`` is rated.
        overrides: ``key=value``, as on the command line.
        output: .parquet (with provenance in its metadata), .jsonl or .csv, written whole or not at all.
        progress: receives progress events.
        options: fields of :class:`ensemw2s.engine.rating.options.RatingOptions`: method ("folds", "members", "irt"), input,
            folds, repeats, run, responses, irt.

    Raises:
        UserError: something that the user gave cannot be used; nothing was written because of it.
    """
    from ensemw2s.engine.rating.options import RatingOptions
    from ensemw2s.rating import rate_file

    paths = {k: Path(v) for k, v in options.items() if k in ("input", "run", "responses") and v is not None}
    chosen = RatingOptions(**{**options, **paths})
    return rate_file(as_config(config, overrides), chosen, Path(output), progress)


def export(
    run_dir: Path | str,
    output: Path | str,
    *,
    dtype: str | None = None,
    link: bool = False,
    progress: Show = _quiet,
) -> Path:
    """Write a run's ensemble as one Hugging Face model (see :mod:`ensemw2s.hf`); returns the folder.

    Args:
        run_dir: a finished (or far enough) run.
        output: a new or an empty folder.
        dtype: float32, bfloat16 or float16; None copies whole members as they are and adds adapters into float32 bases.
        link: hard links to whole members instead of copies, where the file system can.
        progress: receives progress events.

    Raises:
        RunDirectoryError: not a run directory, or the folder cannot be written.
        ArtifactError: the run has no ensemble yet, or a file of it is damaged.
    """
    from ensemw2s.hf.export import export_ensemble

    ctx, ensemble = _open(run_dir, progress)
    return export_ensemble(ctx, ensemble, output, dtype=dtype, link=link)


def _open(run_dir: Path | str | RunStore, progress: Show) -> tuple[RunContext, Ensemble]:
    """A run, and the members that vote in it."""
    from ensemw2s.engine.labeling import selected_ensemble

    ctx = open_run(run_dir, progress)
    return ctx, selected_ensemble(ctx)
