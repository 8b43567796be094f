"""Several runs of a comparison at once: each is one process of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ensemw2s.cluster.shares import Share, in_one_process, process_share
from ensemw2s.comparisons.config import Comparison
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.errors import EnsemW2SError, ResourceError, RunDirectoryError, UserError, WorkerFailure

Say = Callable[[str], None]
Run = tuple[str, int]
"""a variant and a seed"""

#: Seconds between two looks at what the processes say.
LOOK = 0.5


def run_at_once(comparison: Comparison, runs: Sequence[Run], say: Say) -> dict[str, str]:
    """Run them, as many at a time as the comparison's `runs_at_once` and the cluster allow.

    Args:
        comparison: what is compared.
        runs: those that are not finished.
        say: takes a line for every stage that a run has done.

    Returns:
        variants that give no result, with the reason.

    Raises:
        ResourceError: no node of the cluster holds one run, or a run had too little of something.
        RunDirectoryError: a run's folder cannot be used.
        EnsemW2SError: a run failed otherwise; the same command continues it.
    """
    import ray
    from ray.util.queue import Queue

    from ensemw2s.cluster.runner import ray_session

    config = comparison.config
    failed: dict[str, str] = {}
    with ray_session(comparison.base):
        share = process_share(
            comparison.base.runtime,
            config.cpus_per_run,
            config.gpus_per_run,
            what="a run",
            fields="cpus_per_run or gpus_per_run",
            command="ray_jobs/compare.py",
            wanted=None if config.runs_at_once == "auto" else config.runs_at_once,
        )
        limit = share.at_once
        if config.runs_at_once != "auto":
            limit = config.runs_at_once
            if share.at_once < min(limit, len(runs)):
                say(
                    f"the cluster holds {share.at_once} of {limit} runs at once, each with {share.cpus:g} CPU and {share.gpus:g} GPU; "
                    "cpus_per_run and gpus_per_run say how much a run takes"
                )
        lines = Queue(actor_options={"num_cpus": 0})
        task = ray.remote(_run).options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_retries=comparison.base.runtime.max_failures
        )
        waiting = list(runs)
        under_way: dict[Any, Run] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < limit:
                    variant, seed = waiting.pop(0)
                    if variant not in failed:
                        placed = _placed(comparison.run(variant, seed), share)
                        under_way[task.remote(placed, f"{variant}, seed {seed}", lines)] = (variant, seed)
                ready, _ = ray.wait(list(under_way), timeout=LOOK) if under_way else ([], [])
                _pass_on(lines, say)
                for reference in ready:
                    variant, seed = under_way.pop(reference)
                    reason = _outcome(reference)
                    if reason is not None:
                        failed.setdefault(variant, f"seed {seed}: {reason}")
                        say(f"{variant}, seed {seed}: {reason}")
        finally:
            # Where one ends the comparison the others go no further; they continue with the same command.
            for reference in under_way:
                ray.cancel(reference, force=True)
            lines.shutdown(force=True)
    return failed


def _placed(config: ExperimentConfig, share: Share) -> ExperimentConfig:
    runtime = in_one_process(config.runtime, share, str(config.runtime.cache))
    return config.model_copy(update={"runtime": runtime})


def _run(config: ExperimentConfig, name: str, lines: Any) -> tuple[str, str] | None:
    """In a process of the cluster: run or continue; what went wrong, by kind."""
    from ensemw2s import api

    def note(event: ProgressEvent) -> None:
        if event.task.startswith("committed "):
            lines.put(f"{name}: {event.task}")

    lines.put(f"{name}: begun")
    try:
        api.run(config, progress=note)
    except EnsemW2SError as error:
        kinds = (ResourceError, RunDirectoryError, UserError)
        return next((k.__name__ for k in kinds if isinstance(error, k)), "EnsemW2SError"), str(error)
    lines.put(f"{name}: finished")
    return None


def _outcome(reference: Any) -> str | None:
    """The reason why a run gives no result, None where it has given one; raises what ends the comparison."""
    import ray

    from ensemw2s.cluster.remote_errors import unwrap

    try:
        outcome = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Nothing of ours, such as an error in a loss of the user's own: shown as it is, as where runs follow each other.
        raise unwrap(error) from error
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise WorkerFailure(
            f"the process of a run was lost ({reason}); run the same command to continue"
        ) from error
    if outcome is None:
        return None
    kind, text = outcome
    if kind == "UserError":
        return str(text)
    raise {"ResourceError": ResourceError, "RunDirectoryError": RunDirectoryError}.get(kind, EnsemW2SError)(
        text
    )


def _pass_on(lines: Any, say: Say) -> None:
    while not lines.empty():
        say(lines.get())
