"""What a sweep says, also when it goes on in another process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ray import cloudpickle

from ensemw2s.sweeps import narrator
from ensemw2s.sweeps.trial import METRIC


def trial(number: int, *, over: bool, result: dict[str, Any] | None = None) -> Any:
    return SimpleNamespace(
        trial_id=f"x_{number:05d}",
        config={"boosting.learning_rate": 0.3},
        last_result=result or {},
        local_path=f"/somewhere/trial_{number}",
        is_finished=lambda: over,
    )


def test_a_stored_one_speaks_to_who_goes_on(monkeypatch: Any) -> None:
    before: list[str] = []
    said: list[str] = []
    monkeypatch.setattr(narrator, "_say", before.append)
    stored = cloudpickle.dumps(narrator.Narrator())
    narrator.listen(said.append)
    again = cloudpickle.loads(stored)
    # Tune calls before it marks the trial as finished.
    ending = trial(1, over=False, result={METRIC: 0.625, "finished": True})
    stopped = trial(2, over=False, result={METRIC: 0.4, "finished": False})
    trials = [trial(0, over=True), ending, stopped]
    again.on_trial_result(0, trials, ending, {METRIC: 0.5, "round": 2, "finished": False})
    again.on_trial_result(0, trials, ending, {METRIC: 0.625, "round": 3, "finished": True})
    again.on_trial_complete(0, trials, ending)
    again.on_trial_complete(0, trials, stopped)
    again.on_trial_error(0, trials, ending)
    assert before == []
    assert [line.partition(": ")[2] for line in said] == [
        "round 2, 50.0% of easy_val right",
        "finished at 62.5% (2 of 3 so far)",
        "stopped early at 40.0% (2 of 3 so far)",
        "its process failed; see trial_1/error.txt",
    ]
    assert all("boosting.learning_rate=0.3" in line for line in said)
