"""What a sweep says while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray.tune import Callback

from ensemw2s.sweeps.trial import METRIC, shown, trial_name

Say = Callable[[str], None]

_say: Say = print


def listen(say: Say) -> None:
    """From now on narrators of this process speak to `say`."""
    global _say
    _say = say


class Narrator(Callback):
    """Says one line for each round and each ended trial.

    Ray Tune stores its callbacks with the sweep and takes them out again when it goes on, so that one has nothing of the process that made
    it: it speaks to whoever listens in its own.
    """

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any) -> None:
        """A round."""
        if not result.get("finished"):
            _say(f"{describe(trial)}: round {result['round']}, {result[METRIC]:.1%} of easy_val right")

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """The last one."""
        last = trial.last_result or {}
        # Tune marks this one as finished only after this call.
        done = sum(t is trial or t.is_finished() for t in trials)
        what = "stopped early" if not last.get("finished") else (last.get("failure") or "finished")
        text = f"{what} at {last.get(METRIC, float('nan')):.1%} ({done} of {len(trials)} so far)"
        _say(f"{describe(trial)}: {text}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """No round came of it."""
        folder = Path(trial.local_path or "").name
        _say(f"{describe(trial)}: its process failed; see {folder}/error.txt")


def describe(trial: Any) -> str:
    """A trial's name and values."""
    values = ", ".join(f"{key}={shown(value)}" for key, value in trial.config.items())
    return f"{trial_name(trial.trial_id)} ({values})"
