"""Ray Tune over trials: search space, stopping, resources, and going on after an interruption."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ensemw2s.cluster.shares import process_share
from ensemw2s.config import completed_identity, identity_differences
from ensemw2s.errors import ConfigError, RunDirectoryError
from ensemw2s.runs.store import directory_errors, write_atomic
from ensemw2s.sweeps.config import ParameterConfig, Sweep
from ensemw2s.sweeps.trial import METRIC, run_trial, trial_name

Say = Callable[[str], None]
SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class TrialOutcome:
    """What became of one trial.

    Attributes:
        name: of its run directory under trials/.
        values: the fields that vary.
        accuracy: on easy_val, of the members that vote (finished), or of those so far.
        rounds: boosting rounds that it went through.
        status: finished, stopped (early), or failed.
        detail: why it failed.
    """

    name: str
    values: dict[str, Any]
    accuracy: float
    rounds: int
    status: str
    detail: str = ""


def run_sweep(sweep: Sweep, say: Say) -> list[TrialOutcome]:
    """Run what is not finished yet; best trial first, finished ones before stopped ones.

    Raises:
        RunDirectoryError: the folder holds another sweep, or cannot be written.
        ResourceError: no node of the cluster holds one trial.
    """
    from ray import tune

    from ensemw2s.cluster.runner import ray_session
    from ensemw2s.sweeps.narrator import Narrator, listen

    listen(say)
    _claim(sweep)
    # Trials read files by absolute paths and write nothing into Tune's folders.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # Tune would end quietly on Ctrl-C; the command line says that the same command continues.
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    with ray_session(sweep.base):
        share = process_share(
            sweep.base.runtime,
            sweep.config.cpus_per_trial,
            sweep.config.gpus_per_trial,
            what="a trial",
            fields="cpus_per_trial or gpus_per_trial",
            command="ray_jobs/sweep.py",
        )
        cpus, gpus = share.cpus, share.gpus
        trainable = tune.with_resources(
            tune.with_parameters(run_trial, sweep=sweep, share=share), {"cpu": cpus, "gpu": gpus}
        )
        state = sweep.folder / "tune"
        if _other_resources(sweep, cpus, gpus):
            # Ray Tune would go on with the resources that it stored; finished trials come back from their run directories.
            say("other resources than before: the search begins anew, and what is computed is taken over")
            shutil.rmtree(state, ignore_errors=True)
        if tune.Tuner.can_restore(str(state)):
            say("continuing the sweep")
            tuner = tune.Tuner.restore(
                str(state),
                trainable,
                resume_unfinished=True,
                restart_errored=True,
                param_space=search_space(sweep),
            )
        else:
            tuner = tune.Tuner(
                trainable,
                param_space=search_space(sweep),
                tune_config=_tune_config(sweep),
                run_config=tune.RunConfig(
                    name="tune",
                    storage_path=str(sweep.folder),
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=sweep.base.runtime.max_failures),
                    callbacks=[Narrator()],
                ),
            )
        results = tuner.fit()
    outcomes = [_outcome(result) for result in results]
    order = {"finished": 0, "stopped": 1, "failed": 2}
    return sorted(outcomes, key=lambda o: (order[o.status], -o.accuracy, o.name))


def _other_resources(sweep: Sweep, cpus: float, gpus: float) -> bool:
    """Whether the sweep was begun with other resources; remembers these."""
    path, now = sweep.folder / "resources.json", [cpus, gpus, sweep.config.trials_at_once]
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else now
    write_atomic(path, json.dumps(now) + "\n")
    return bool(before != now)


def _claim(sweep: Sweep) -> None:
    """Make the sweep's folder, or see that it holds this very sweep."""
    path = sweep.folder / SWEEP_FILE
    ours = {"sweep": sweep.config.identity(), "base": sweep.base.identity()}
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        differences = [
            *identity_differences(theirs["sweep"], json.loads(json.dumps(ours["sweep"]))),
            *identity_differences(completed_identity(theirs["base"]), json.loads(json.dumps(ours["base"]))),
        ]
        if differences:
            raise RunDirectoryError(
                f"{sweep.folder} holds another sweep ({'; '.join(differences[:3])}): choose another name, or undo the change to continue it"
            )
        return
    if sweep.folder.exists() and any(sweep.folder.iterdir()):
        raise RunDirectoryError(
            f"{sweep.folder} is not empty and holds no sweep: choose another name, or remove it"
        )
    with directory_errors(sweep.folder):
        sweep.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(ours, indent=1) + "\n")


def search_space(sweep: Sweep) -> dict[str, Any]:
    """Ray Tune's domain of each field."""
    return {key: _domain(parameter) for key, parameter in sweep.config.parameters.items()}


def _domain(parameter: ParameterConfig) -> Any:
    from ray import tune

    values = getattr(parameter, parameter.kind)
    if parameter.kind == "grid":
        return tune.grid_search(list(values))
    if parameter.kind == "choice":
        return tune.choice(list(values))
    low, high = values
    if parameter.kind == "randint":
        # Ours includes the upper end.
        return tune.randint(low, high + 1)
    return (tune.uniform if parameter.kind == "uniform" else tune.loguniform)(low, high)


def _tune_config(sweep: Sweep) -> Any:
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    config = sweep.config
    scheduler = None
    if config.stopping is not None:
        scheduler = ASHAScheduler(
            time_attr="round",
            # Above the last round, so that no trial is stopped with its last report.
            max_t=sweep.most_rounds + 1,
            grace_period=config.stopping.grace_rounds,
            reduction_factor=config.stopping.reduction_factor,
        )
    return tune.TuneConfig(
        metric=METRIC,
        mode="max",
        num_samples=config.samples,
        max_concurrent_trials=config.trials_at_once if config.search == "optuna" else None,
        scheduler=scheduler,
        search_alg=search_algorithm(sweep),
    )


def search_algorithm(sweep: Sweep) -> Any:
    """Who draws the values of the next trial.

    Raises:
        ConfigError: the package that it needs is missing.
    """
    config = sweep.config
    if config.search == "optuna":
        try:
            import optuna
        except ImportError:
            raise ConfigError(
                'search optuna needs the package optuna: pip install "ensemw2s[sweep]", or use search random'
            ) from None
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        return OptunaSearch(seed=config.seed)
    # This generator limits itself; it ignores the limit of TuneConfig.
    from ray.tune.search.basic_variant import BasicVariantGenerator

    return BasicVariantGenerator(random_state=config.seed, max_concurrent=config.trials_at_once or 0)


def _outcome(result: Any) -> TrialOutcome:
    metrics = result.metrics or {}
    name = trial_name(str(metrics.get("trial_id", "unknown")))
    values = dict(result.config or {})
    if result.error is not None or METRIC not in metrics:
        reason = str(result.error).strip().splitlines()[-1] if result.error else "no report"
        return TrialOutcome(name, values, 0.0, int(metrics.get("round", 0)), "failed", reason)
    status = "finished" if metrics["finished"] else "stopped"
    if metrics["failure"]:
        return TrialOutcome(name, values, 0.0, int(metrics["round"]), "failed", str(metrics["failure"]))
    return TrialOutcome(name, values, float(metrics[METRIC]), int(metrics["round"]), status)


def as_rows(outcomes: list[TrialOutcome]) -> list[dict[str, Any]]:
    """Plain data, for JSON."""
    return [asdict(outcome) for outcome in outcomes]
