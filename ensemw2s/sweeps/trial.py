"""One trial: an ordinary run that reports the accuracy on easy_val after every boosting round."""

from __future__ import annotations

import json
from typing import Any

from ensemw2s.cluster.shares import Share, in_one_process
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.errors import ResourceError, RunDirectoryError, UserError
from ensemw2s.sweeps.config import Sweep

METRIC = "easy_val_accuracy"


def trial_name(trial_id: str) -> str:
    """Name of a trial's run, from Ray Tune's id, whose last part counts the trials."""
    return f"trial-{trial_id.rsplit('_', 1)[-1]}"


def run_trial(values: dict[str, Any], sweep: Sweep, share: Share) -> None:
    """Run by Ray Tune in a process of its own.

    A trial that cannot give a result (its training diverged, no member is better than the prior) reports accuracy 0 and
    why; it does not end the sweep.
    """
    from ray import tune

    from ensemw2s import api
    from ensemw2s.runs.store import RunStore

    name = trial_name(tune.get_context().get_trial_id())
    rounds = 0

    def note(event: ProgressEvent) -> None:
        nonlocal rounds
        if METRIC in event.metrics:
            rounds = int(event.metrics["round"])
            tune.report({"round": rounds, METRIC: event.metrics[METRIC], "finished": False, "failure": ""})

    try:
        config = sweep.trial(values, name=name)
        config = config.model_copy(update={"runtime": in_one_process(config.runtime, share, sweep.cache)})
        result = api.run(config, progress=note, until=sweep.config.until)
    except (ResourceError, RunDirectoryError):
        # Of the machine, not of the settings: the same sweep tries this trial again.
        raise
    except UserError as error:
        tune.report({"round": rounds + 1, METRIC: 0.0, "finished": True, "failure": str(error)})
        return
    chosen = RunStore(result.run_dir).require("select").info
    selected = int(chosen["selected"])
    final = {"round": config.boosting.rounds, METRIC: float(chosen["scores"][selected - 1])}
    tune.report({**final, "members": selected, "finished": True, "failure": ""})


def shown(value: Any) -> str:
    """A value in a table."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
