"""Sweep files: what is refused, and with which words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemw2s.errors import ConfigError
from ensemw2s.sweeps.config import ParameterConfig, load_sweep

MakeConfig = Callable[..., dict[str, Any]]
GRID = {"boosting.learning_rate": {"grid": [0.5, 1.0]}}


def write(folder: Path, make_tiny: MakeConfig, **sweep: Any) -> Path:
    (folder / "base.yaml").write_text(yaml.safe_dump(make_tiny(folder)))
    path = folder / "sweep.yaml"
    content = {"name": "s", "base": "base.yaml", "parameters": GRID, **sweep}
    path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}))
    return path


def test_a_trial_is_the_base_with_its_values(make_tiny: MakeConfig, tmp_path: Path) -> None:
    sweep = load_sweep(write(tmp_path, make_tiny, set={"boosting.rounds": 3}), ["seed=9"])
    trial = sweep.trial({"boosting.learning_rate": 0.5, "weak.models.0.drop_layers": None}, name="trial-1")
    assert (trial.boosting.rounds, trial.boosting.learning_rate, trial.seed) == (3, 0.5, 9)
    assert trial.runs_dir == str(tmp_path / "runs" / "s" / "trials")
    assert sweep.trial({"boosting.learning_rate": 1.0}, name="a").identity() == sweep.base.identity()
    assert sweep.cache == str(tmp_path / "runs" / "s" / "cache")
    own = load_sweep(tmp_path / "sweep.yaml", ["samples=4", "name=other", "trials_at_once=2"])
    assert (own.config.samples, own.config.trials_at_once, own.config.seed) == (4, 2, 0)
    assert own.trial({"boosting.learning_rate": 0.5}, name="a").runs_dir == str(
        tmp_path / "runs" / "other" / "trials"
    )
    given = load_sweep(tmp_path / "sweep.yaml", ["runtime.cache=/elsewhere/work"])
    assert given.cache == "/elsewhere/work"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameters": {}}, "parameters: .* at least 1"),
        (
            {"parameters": {"boosting.learning_rat": {"grid": [1.0]}}},
            r"parameters\.boosting\.learning_rat: .*learning_rate",
        ),
        (
            {"parameters": {"boosting.rounds": {"randint": [0, 3]}}},
            r"parameters\.boosting\.rounds: boosting\.rounds",
        ),
        (
            {"parameters": {"boosting.rounds": {"grid": [1], "choice": [2]}}},
            "exactly one of .* not grid and choice",
        ),
        ({"parameters": {"boosting.learning_rate": {"uniform": [2.0, 1.0]}}}, "first number must be below"),
        ({"parameters": {"boosting.learning_rate": {"loguniform": [0.0, 1.0]}}}, "above 0"),
        ({"parameters": {"runtime.threads": {"grid": [1, 2]}}}, "does not change what a trial computes"),
        ({"set": {"boosting.learning_rate": 1.0}}, "under set and under parameters"),
        ({"set": {"runs_dir": "s3://bucket/runs"}}, r"'s3://bucket/runs' is a URI: runs of a sweep"),
        ({"stopping": {"grace_rounds": 9}}, "grace_rounds: 9 is more than the 2 rounds"),
        (
            {"parameters": {"boosting.rounds": {"uniform": [2, 4]}}},
            r"parameters\.boosting\.rounds: boosting\.rounds: 2\.7",
        ),
        ({"search": "optuna"}, "write choice instead of grid"),
        ({"name": None}, "name: it is missing"),
        ({"trails": 3}, "trails: there is no such field: the fields are name, base"),
        ({"base": "nowhere.yaml"}, "there is no such file"),
    ],
)
def test_mistakes(make_tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_sweep(write(tmp_path, make_tiny, **changes))


def test_an_experiment_is_no_sweep(make_tiny: MakeConfig, tmp_path: Path) -> None:
    write(tmp_path, make_tiny)
    with pytest.raises(ConfigError, match="is an experiment, not a sweep"):
        load_sweep(tmp_path / "base.yaml")


def test_ends_of_a_range_stand_for_it() -> None:
    assert ParameterConfig(randint=(1, 4)).ends() == [1, 4]
    assert ParameterConfig(choice=("a", None)).ends() == ["a", None]
    assert ParameterConfig(uniform=(0.0, 1.0)).ends() == [0.0, 1.0, 0.37]


def test_optuna_draws_from_the_same_ranges(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """The search that Ray Tune is given: values inside the ranges, the same for a seed, and others after results."""
    from ensemw2s.sweeps.tuning import METRIC, search_algorithm, search_space

    def draw(name: str, seed: int) -> list[dict[str, Any]]:
        (tmp_path / name).mkdir()
        sweep = load_sweep(
            write(
                tmp_path / name,
                make_tiny,
                samples=12,
                search="optuna",
                seed=seed,
                parameters={
                    "boosting.learning_rate": {"uniform": [0.1, 1.0]},
                    "weak.training.learning_rate": {"loguniform": [1e-5, 1e-2]},
                    "boosting.rounds": {"randint": [1, 3]},
                    "boosting.reweight": {"choice": ["loss", "token_bootstrap"]},
                },
            )
        )
        search = search_algorithm(sweep)
        assert search.set_search_properties(METRIC, "max", search_space(sweep))
        values = []
        for i in range(12):
            values.append(search.suggest(f"t{i}"))
            search.on_trial_complete(f"t{i}", {METRIC: values[-1]["boosting.learning_rate"]})
        return values

    drawn = draw("a", 0)
    assert drawn == draw("b", 0)
    assert drawn != draw("c", 1)
    assert all(0.1 <= v["boosting.learning_rate"] <= 1.0 for v in drawn)
    assert all(1e-5 <= v["weak.training.learning_rate"] <= 1e-2 for v in drawn)
    assert {v["boosting.rounds"] for v in drawn} == {1, 2, 3}
    assert {v["boosting.reweight"] for v in drawn} == {"loss", "token_bootstrap"}
