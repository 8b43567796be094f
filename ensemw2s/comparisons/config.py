"""The comparison file: one experiment, its variants, and the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from ensemw2s.config import ExperimentConfig, Section
from ensemw2s.config.base import check_gpus
from ensemw2s.errors import ConfigError
from ensemw2s.settings import (
    absolute_paths,
    assignments,
    config_from_mapping,
    read_base,
    read_study,
    split_study,
)

Value = int | float | str | bool | None | list[Any] | dict[str, Any]
Changes = dict[str, Value]

VARIANTS: dict[str, Changes] = {
    "EnsemW2S": {},
    "Bagging": {"boosting.method": "bagging"},
    "Seeds only": {"boosting.method": "seeds"},
    "EnsemW2S, uniform vote": {"vote.label_model": "uniform"},
}
"""what is compared when the file names no variants"""


class ComparisonConfig(Section):
    """A comparison of variants of one experiment."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        description="name of the comparison's folder"
    )
    base: str = Field(description="YAML file of the experiment, relative to this file")
    set: dict[str, Value] = Field(
        default_factory=dict, description="fields of the experiment that have another value in all variants"
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = Field(
        (0,), description="seeds of training and draws; the splits stay the same"
    )
    runs_at_once: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1,
        description="1: one run after another, each with the executor of the experiment. More: on Ray, each run in one process, with plain "
        "PyTorch in the place of DeepSpeed; auto: as many as the cluster's GPUs hold, without GPUs one a node, or as cpus_per_run says",
    )
    cpus_per_run: Annotated[float, Field(gt=0)] | None = Field(
        None,
        description="logical CPUs of a run, with more than one at once; none given: the share of its GPUs, or what runs_at_once leaves "
        "each of a node",
    )
    gpus_per_run: Annotated[float, Field(ge=0)] | None = Field(
        None, description="GPUs of a run, with more than one at once; none given: 1 where the cluster has any"
    )
    variants: Annotated[dict[str, Changes], Field(min_length=1)] = Field(
        VARIANTS, description="name in the table -> fields that differ from the experiment"
    )

    @model_validator(mode="after")
    def _gpus_are_given_so(self) -> ComparisonConfig:
        check_gpus("gpus_per_run", self.gpus_per_run)
        return self

    @model_validator(mode="after")
    def _no_repeats(self) -> ComparisonConfig:
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice: each counts as an independent run, so give different ones")
        for key, instead in (("seed", "seeds"), ("name", "the comparison's name")):
            if key in self.set:
                raise ValueError(f"set may not have {key}: {instead} says it for all runs")
        for name, changes in self.variants.items():
            # The ceiling and the other references are those of the first variant.
            fixed = ("runtime", "name", "runs_dir", "seed", "data", "strong", "evaluation")
            shared = sorted(k for k in changes if k.split(".")[0] in fixed and not _of_labels(k))
            if shared:
                raise ValueError(
                    f"variant {name!r} changes {', '.join(shared)}: variants share data, seeds, runtime and the strong model but "
                    "its loss and its second stage (strong.preference); put it under set"
                )
        return self


def _of_labels(field: str) -> bool:
    """How students learn from labels may differ: the references are still those of the first variant."""
    return field.startswith(("strong.training.loss", "strong.preference"))


@dataclass(frozen=True)
class Comparison:
    """A comparison that can begin: its configuration and the experiment, with absolute paths."""

    config: ComparisonConfig
    base: ExperimentConfig

    @property
    def folder(self) -> Path:
        """Where everything of the comparison lies."""
        return Path(self.base.runs_dir) / self.config.name

    @property
    def runs(self) -> list[tuple[str, int]]:
        """All runs, as variants and seeds, in order."""
        return [(variant, seed) for variant in self.config.variants for seed in self.config.seeds]

    def is_finished(self, variant: str, seed: int) -> bool:
        """Whether this run has results."""
        run = self.run(variant, seed)
        return (Path(run.runs_dir) / run.name / "results.json").is_file()

    def run(self, variant: str, seed: int) -> ExperimentConfig:
        """One run of the comparison, sharing equal work with the others."""
        index = list(self.config.variants).index(variant)
        placed = [
            f"name=variant-{index:02d}-seed-{seed}",
            f"seed={seed}",
            f"runs_dir={self.folder / 'runs'}",
            f"runtime.cache={self.base.runtime.cache or self.folder / 'cache'}",
        ]
        if index:
            # The table takes them from the first variant's runs; a student of random noise for each would be a training for nothing.
            placed.append("evaluation.baselines=[]")
        changes = [*assignments(self.config.variants[variant]), *placed]
        # A variant may name models of its own.
        return absolute_paths(config_from_mapping(self.base.model_dump(mode="json"), changes))


def load_comparison(path: Path | str, overrides: Sequence[str] = ()) -> Comparison:
    """Read a comparison file and its experiment, and check every variant.

    Args:
        path: a YAML file.
        overrides: ``key=value`` for fields of the experiment, and of the comparison (``seeds=[0,1]``, ``name=...``).

    Raises:
        ConfigError: with one line for every problem.
    """
    one_for_all = {"seed": "a comparison has seeds for all its runs: give seeds=[0, 1], for example"}
    changes, of_experiment = split_study(ComparisonConfig, overrides, one_for_all)
    config = read_study(path, ComparisonConfig, "comparison", changes)
    comparison = Comparison(config, read_base(path, config.base, config.set, of_experiment))
    problems: list[str] = []
    for name in config.variants:
        try:
            comparison.run(name, config.seeds[0])
        except ConfigError as error:
            problems += [f"variant {name!r}: {line}" for line in error.problems]
    if problems:
        raise ConfigError(problems)
    return comparison
