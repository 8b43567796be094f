"""What the entry points in ray_jobs/ share: arguments, where files may lie, the cluster, exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ensemw2s import api
from ensemw2s.config import ExperimentConfig, identity_differences
from ensemw2s.config.uris import is_uri
from ensemw2s.console import exit_code
from ensemw2s.engine.prepare import check_directory
from ensemw2s.engine.tasks import ProgressEvent, Until
from ensemw2s.errors import RunDirectoryError
from ensemw2s.progress import make_progress
from ensemw2s.runs.reading import begun_run, bring_all_but_students
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import absolute_paths, load_config

if TYPE_CHECKING:
    from ensemw2s.data.streaming import SampleFile

EPILOG = "Any configuration field: key=value or --key value, for example boosting.rounds=4 or --seed 1."
JOB_COPY = "working_dir_files"
"""name of the folder in which Ray unpacks the working directory of a job"""
LAST_STAGE = {"labels": "labels-ensemble", "results": "report"}

Action = Callable[[argparse.Namespace, list[str]], int]


def job_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every job takes; what it does not know is left over as configuration overrides."""
    parser = plain_parser(description)
    parser.add_argument("--config", required=True, help="YAML file of the experiment")
    add_waiting(parser)
    return parser


def plain_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser without arguments, which tells of the configuration overrides."""
    return argparse.ArgumentParser(
        description=description,
        epilog=EPILOG,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_waiting(parser: argparse.ArgumentParser) -> None:
    """The options of an autoscaling cluster."""
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="begin when N GPUs are free; an autoscaling cluster starts nodes for them",
    )
    parser.add_argument(
        "--wait-minutes", type=float, default=30.0, metavar="M", help="how long to wait for them (30)"
    )


def run_job(parser: argparse.ArgumentParser, action: Action, argv: Sequence[str] | None = None) -> int:
    """Parse, act, and return the exit code: 0 done, 1 failed, 2 refused, 130 interrupted."""
    arguments, overrides = parser.parse_known_args(argv)
    return exit_code(lambda: action(arguments, overrides))


def load(config: str, overrides: Sequence[str]) -> ExperimentConfig:
    """The configuration of a job.

    Raises:
        ConfigError: it has problems, a line each.
        RunDirectoryError: the run would be lost with the job.
    """
    loaded = load_config(config, list(overrides))
    check_kept("runs_dir", loaded.runs_dir)
    return loaded


def check_kept(name: str, path: str) -> None:
    """Refuse to write where Ray removes everything when the job has ended.

    Raises:
        RunDirectoryError: the path lies in the job's copy of its working directory.
    """
    if not is_uri(path) and JOB_COPY in Path(path).expanduser().resolve().parts:
        raise RunDirectoryError(
            f"{name} {path!r} lies in the job's copy of the working directory, which Ray removes: give an absolute path on storage that "
            "all nodes share, or a URI"
        )


def run_experiment(config: ExperimentConfig, arguments: argparse.Namespace, until: Until) -> api.RunResult:
    """The pipeline or its first part, with progress as plain lines in a log and bars on a terminal."""
    store = check_directory(config)
    begins = not store.exists or LAST_STAGE[until] not in store.stages()
    if begins and arguments.gpus is not None:
        from ensemw2s.cluster.waiting import check_wait
        from ensemw2s.engine.prepare import prepare

        # Mistakes are found before nodes are started.
        check_wait(config.runtime, arguments.gpus)
        prepare(config)
    with make_progress() as progress, gpus_there(config, arguments, progress) if begins else nullcontext():
        return api.run(config, progress=progress, until=until)


@contextmanager
def gpus_there(config: ExperimentConfig, arguments: argparse.Namespace, progress: api.Show) -> Iterator[None]:
    """With --gpus, join the cluster and wait for that many free GPUs; without, do neither.

    Raises:
        ConfigError: no GPU can come.
        ResourceError: no cluster, or the GPUs do not come.
    """
    if arguments.gpus is None:
        yield
        return
    from ensemw2s.cluster.runner import ray_session
    from ensemw2s.cluster.waiting import check_wait, wait_for_gpus

    check_wait(config.runtime, arguments.gpus)
    with ray_session(config):
        wait_for_gpus(
            arguments.gpus, arguments.wait_minutes, lambda text: progress(ProgressEvent(text, 1, 1))
        )
        yield


def boosted_run(config: ExperimentConfig) -> RunStore:
    """The run directory of a configuration whose ensemble has labelled its hard data.

    Raises:
        RunDirectoryError: there is none yet, or it belongs to another configuration.
    """
    store = check_directory(config)
    if not store.exists or LAST_STAGE["labels"] not in store.stages():
        raise RunDirectoryError(
            f"{store.place} is not boosted yet: run ray_jobs/boost.py with the same configuration first"
        )
    bring_all_but_students(store)
    return store


def open_run(run_dir: str, overrides: Sequence[str]) -> tuple[ExperimentConfig, RunStore]:
    """Configuration and run directory (folder or URI); overrides may change ``runtime`` only.

    Raises:
        RunDirectoryError: not a run directory, or an override would make it another run.
    """
    store = begun_run(run_dir)
    folder = store.folder
    saved, config = (load_config(folder / "config.yaml", given) for given in ([], list(overrides)))
    if LAST_STAGE["labels"] not in store.stages():
        raise RunDirectoryError(
            f"{run_dir} has no ensemble yet: run ray_jobs/boost.py with its configuration first"
        )
    differences = identity_differences(saved.identity(), config.identity())
    if differences:
        raise RunDirectoryError(
            f"{run_dir} is a run of another configuration ({differences[0]}): override runtime.* only"
        )
    return config, store


def label_samples(
    config: ExperimentConfig,
    store: RunStore,
    samples: SampleFile,
    output: Path,
    arguments: argparse.Namespace,
) -> int:
    """Write labels of new samples by the chosen members of a run, on the cluster or in this process.

    Returns:
        How many members voted.

    Raises:
        ArtifactError: a file of the ensemble is damaged.
        ResourceError: the cluster cannot hold the supervisors.
    """
    with make_progress() as progress, gpus_there(config, arguments, progress):
        if config.runtime.executor == "local":
            ensemble = api.load_ensemble(store, progress)
            ensemble.label_samples(samples, output)
            return len(ensemble.members)
        from ensemw2s.cluster.labeling import supervisors
        from ensemw2s.cluster.runner import ray_session
        from ensemw2s.engine.context import RunContext
        from ensemw2s.engine.labeling import selected_ensemble

        ctx = RunContext(absolute_paths(config), store, progress)
        chosen = selected_ensemble(ctx)
        with ray_session(config), supervisors(ctx, len(chosen.refs)) as pool:
            api.LoadedEnsemble(ctx, chosen, pool).label_samples(samples, output)
            return len(chosen.refs)
