"""The sweep file: which fields of an experiment vary, over what, and how the trials are chosen and stopped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ensemw2s.config import ExperimentConfig, Section
from ensemw2s.config.base import NonNegativeFloat, PositiveFloat, PositiveInt, check_gpus
from ensemw2s.errors import ConfigError
from ensemw2s.settings import assignments, config_from_mapping, read_base, read_study, split_study

Bounds = tuple[float, float]
Value = int | float | str | bool | None | list[Any] | dict[str, Any]
KINDS = ("grid", "choice", "uniform", "loguniform", "randint")


class ParameterConfig(Section):
    """What one field varies over; exactly one kind."""

    grid: Annotated[tuple[Value, ...], Field(min_length=1)] | None = Field(
        None, description="every one of these values, with every one of the other grids"
    )
    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = Field(
        None, description="one of these values, by chance"
    )
    uniform: Bounds | None = Field(None, description="[low, high], a number between them")
    loguniform: Bounds | None = Field(None, description="[low, high], its logarithm is uniform")
    randint: tuple[int, int] | None = Field(None, description="[low, high], a whole number, both included")

    @model_validator(mode="after")
    def _one_kind(self) -> ParameterConfig:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}")
        for kind in KINDS[2:]:
            bounds = getattr(self, kind)
            if bounds is None:
                continue
            low, high = bounds
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                raise ValueError(f"{kind} [{low:g}, {high:g}]: the first number must be below the second")
            if kind == "loguniform" and low <= 0:
                raise ValueError(f"loguniform [{low:g}, {high:g}]: both numbers must be above 0")
        return self

    @property
    def kind(self) -> str:
        """Which of the kinds it is."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    def ends(self) -> list[Any]:
        """Values that stand for all in a check: each of a list; both ends of a range, and a number between them."""
        values = list(getattr(self, self.kind))
        if self.kind in ("uniform", "loguniform"):
            values.append(values[0] + (values[1] - values[0]) * 0.37)
        return values


class StoppingConfig(Section):
    """Asynchronous successive halving (ASHA, arXiv 1810.05934): weak trials end early, after a boosting round."""

    grace_rounds: PositiveInt = Field(1, description="no trial is stopped before this round")
    reduction_factor: Annotated[float, Field(gt=1.0)] = Field(
        3.0, description="the best 1 / reduction_factor of the trials go on from each rung"
    )


class SweepConfig(Section):
    """A sweep over one experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="name of the sweep's folder"
    )
    base: str = Field(description="YAML file of the experiment, relative to this file")
    set: dict[str, Value] = Field(
        default_factory=dict, description="fields of the experiment that have another value in all trials"
    )
    parameters: Annotated[dict[str, ParameterConfig], Field(min_length=1)] = Field(
        description="dotted name of a field -> what it varies over"
    )
    samples: PositiveInt = Field(1, description="trials of each grid point; without a grid, trials in all")
    search: Literal["random", "optuna"] = Field(
        "random",
        description="random: grid and independent draws; optuna: draws that learn from the trials before",
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="seed of the draws")
    until: Literal["labels", "results"] = Field(
        "labels", description="labels: trials end with the ensemble; results: students are trained, too"
    )
    stopping: StoppingConfig | None = Field(
        None, description="stop weak trials early; default: none is stopped"
    )
    trials_at_once: PositiveInt | None = Field(
        None, description="at most so many trials at a time; default: as many as the resources hold"
    )
    cpus_per_trial: PositiveFloat | None = Field(
        None,
        description="logical CPUs of a trial; default: a GPU's share, or all CPUs of a node without GPUs",
    )
    gpus_per_trial: NonNegativeFloat | None = Field(
        None, description="GPUs (or a fraction) of a trial; default: 1 where there are GPUs"
    )

    @model_validator(mode="after")
    def _gpus_are_given_so(self) -> SweepConfig:
        check_gpus("gpus_per_trial", self.gpus_per_trial)
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> SweepConfig:
        if self.search == "optuna" and any(p.grid is not None for p in self.parameters.values()):
            raise ValueError("search optuna draws its values: write choice instead of grid")
        both = sorted(set(self.set) & set(self.parameters))
        if both:
            raise ValueError(f"{', '.join(both)} stands under set and under parameters: keep one")
        return self

    def identity(self) -> dict[str, Any]:
        """What makes this sweep what it is; resources may change when it goes on."""
        return self.model_dump(
            mode="json", exclude={"trials_at_once", "cpus_per_trial", "gpus_per_trial", "base", "name"}
        )


@dataclass(frozen=True)
class Sweep:
    """A sweep that can begin: its configuration and the experiment, with absolute paths."""

    config: SweepConfig
    base: ExperimentConfig

    @property
    def folder(self) -> Path:
        """Where everything of the sweep lies."""
        return Path(self.base.runs_dir) / self.config.name

    @property
    def cache(self) -> str:
        """Folder of the work that trials share: the experiment's own cache where it names one."""
        return self.base.runtime.cache or str(self.folder / "cache")

    @property
    def most_rounds(self) -> int:
        """Rounds of the longest trial."""
        swept = self.config.parameters.get("boosting.rounds")
        return self.base.boosting.rounds if swept is None else max(int(v) for v in swept.ends())

    def trial(self, values: dict[str, Any], *, name: str) -> ExperimentConfig:
        """The experiment with one trial's values, in the sweep's folder."""
        placed = [f"name={name}", f"runs_dir={self.folder / 'trials'}"]
        return config_from_mapping(self.base.model_dump(mode="json"), [*assignments(values), *placed])


def load_sweep(path: Path | str, overrides: Sequence[str] = ()) -> Sweep:
    """Read a sweep file and its experiment, and check every value that a trial can get.

    Args:
        path: a YAML file.
        overrides: ``key=value`` for fields of the experiment, and of the sweep (``samples=20``, ``name=...``); ``seed`` is the
            experiment's.

    Raises:
        ConfigError: with one line for every problem.
    """
    changes, of_experiment = split_study(SweepConfig, overrides)
    config = read_study(path, SweepConfig, "sweep", changes)
    sweep = Sweep(config, read_base(path, config.base, config.set, of_experiment))
    _check_values(sweep)
    return sweep


def _check_values(sweep: Sweep) -> None:
    """Try every listed value and every end of a range, each alone."""
    problems: list[str] = []
    for key, parameter in sweep.config.parameters.items():
        if key.split(".")[0] in ("runtime", "name", "runs_dir", "seed") and key != "seed":
            problems.append(f"parameters.{key}: it does not change what a trial computes: leave it out")
            continue
        for value in parameter.ends():
            try:
                sweep.trial({key: value}, name="check")
            except ConfigError as error:
                problems += [f"parameters.{key}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    stopping = sweep.config.stopping
    if stopping is not None and stopping.grace_rounds > sweep.most_rounds:
        raise ConfigError(
            f"stopping.grace_rounds: {stopping.grace_rounds} is more than the {sweep.most_rounds} rounds of a trial: "
            "no trial would be stopped"
        )
