"""A sweep on a real Ray Tune: trials share work, weak ones are stopped, a killed sweep continues."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemw2s import api, cli
from ensemw2s.config import ExperimentConfig
from ensemw2s.errors import ResourceError, RunDirectoryError
from ensemw2s.runs.store import RunStore
from ensemw2s.settings import load_config
from ensemw2s.sweeps.config import load_sweep
from ensemw2s.sweeps.tuning import run_sweep

pytestmark = pytest.mark.timeout(600)
MakeConfig = Callable[..., dict[str, Any]]
LEARNS = {
    "weak__training__epochs": 6,
    "weak__training__learning_rate": 2e-2,
    "boosting__prior": "unigram",
    "vote__rounds": "all",
}


@pytest.fixture(scope="module")
def sweep_file(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "base.yaml").write_text(yaml.safe_dump(make_tiny(folder, **LEARNS)))
    sweep = {
        "name": "rates",
        "base": "base.yaml",
        # The last one learns nothing: that trial fails, the sweep goes on.
        "parameters": {
            "boosting.learning_rate": {"grid": [0.3, 1.0]},
            "weak.training.learning_rate": {"grid": [2e-2, 1e-9]},
        },
        # Two at a time: the second of two equal trainings waits for the first.
        "trials_at_once": 2,
        "cpus_per_trial": 1,
        "gpus_per_trial": 0,
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return folder / "sweep.yaml"


@pytest.fixture(scope="module")
def swept(ray_cluster: None, sweep_file: Path) -> Path:
    assert cli.main(["sweep", str(sweep_file)]) == 0
    return sweep_file.parent / "runs" / "rates"


def test_the_table_holds_every_trial(swept: Path) -> None:
    trials = json.loads((swept / "trials.json").read_text())
    assert len(trials) == 4
    states = {
        (t["values"]["boosting.learning_rate"], t["values"]["weak.training.learning_rate"]): t for t in trials
    }
    for rate in (0.3, 1.0):
        good, bad = states[rate, 2e-2], states[rate, 1e-9]
        assert (good["status"], good["rounds"]) == ("finished", 2)
        assert bad["status"] == "failed"
        assert "no weak supervisor is better than the prior" in bad["detail"]
        chosen = RunStore(swept / "trials" / good["name"]).require("select").info
        assert good["accuracy"] == chosen["scores"][-1]
    assert [t["status"] for t in trials] == ["finished", "finished", "failed", "failed"]
    assert trials[0]["accuracy"] >= trials[1]["accuracy"]
    html = (swept / "sweep.html").read_text()
    assert all(t["name"] in html for t in trials)


def test_trials_share_the_first_member(swept: Path) -> None:
    """Another shrinkage changes the second round only."""
    found = []
    good = [t for t in json.loads((swept / "trials.json").read_text()) if t["status"] == "finished"]
    for trial in good:
        log = swept / "trials" / trial["name"] / "events.jsonl"
        lines = log.read_text().splitlines() if log.is_file() else []
        found += [e["work"] for e in map(json.loads, lines) if e["event"] == "found_in_cache"]
    assert [work for work in found if work.endswith("training")] == ["round 1 of 2: training"]


def test_the_best_configuration_runs(swept: Path) -> None:
    """It is the best trial's experiment, and its ensemble is computed already."""
    best = json.loads((swept / "trials.json").read_text())[0]
    config = load_config(swept / "best.yaml")
    assert config.boosting.learning_rate == best["values"]["boosting.learning_rate"]
    assert config.name == "rates-best"
    result = api.run(swept / "best.yaml", "runtime.executor=local")
    assert result.results["staged"]["easy_val"][-1] == best["accuracy"]


def test_a_finished_sweep_is_shown_again(
    swept: Path, sweep_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = json.loads((swept / "trials.json").read_text())
    assert cli.main(["sweep", str(sweep_file)]) == 0
    assert json.loads((swept / "trials.json").read_text()) == before
    assert "trial-00000" in capsys.readouterr().out


def test_another_sweep_of_the_same_name_is_refused(swept: Path, sweep_file: Path) -> None:
    with pytest.raises(RunDirectoryError, match=r"holds another sweep \(seed: 3 -> 4\)"):
        run_sweep(load_sweep(sweep_file, ["seed=4"]), lambda text: None)


def test_a_trial_that_fits_nowhere(ray_cluster: None, sweep_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(sweep_file.read_text()) | {"gpus_per_trial": 9, "name": "big"}
    path = sweep_file.with_name("big.yaml")
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ResourceError, match=r"needs 1 CPU and 9 GPU, and the largest node has .* 4 GPU"):
        run_sweep(load_sweep(path), lambda text: None)


def test_the_base_runs_alone(sweep_file: Path) -> None:
    """The sweep's base is an ordinary experiment."""
    assert isinstance(load_config(sweep_file.parent / "base.yaml"), ExperimentConfig)
