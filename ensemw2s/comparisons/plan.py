"""What a comparison will do: every variant is prepared before anything is run, and counted."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from ensemw2s.comparisons.config import Comparison
from ensemw2s.config import ExperimentConfig
from ensemw2s.errors import ConfigError, UserError

#: Fields of the vote that say how several members agree.
_OF_SEVERAL = {"rounds", "label_model", "combine", "merge_density"}
#: Stages that do not depend on the variant: one for each seed.
COMMON = ("models as they are", "few-shot", "student ceiling", "student on_easy")


@dataclass(frozen=True)
class VariantPlan:
    """What one variant adds for one seed; stages that a variant before it has done are left out."""

    name: str
    stages: int
    tokens: int
    seconds: float
    disk: int


def check_variants(comparison: Comparison) -> None:
    """See that every variant that is not finished can begin, before the first one does.

    Raises:
        ConfigError: a line for each variant that cannot.
    """
    from ensemw2s.engine.prepare import prepare

    problems: list[str] = []
    for name in comparison.config.variants:
        if all(comparison.is_finished(name, seed) for seed in comparison.config.seeds):
            continue
        print(f"checking {name}", file=sys.stderr, flush=True)
        try:
            prepare(comparison.run(name, comparison.config.seeds[0]))
        except UserError as error:
            problems += _lines(name, error)
    if problems:
        raise ConfigError(problems)


def plan(comparison: Comparison, flops_per_second: float) -> list[VariantPlan]:
    """The variants with what each adds for one seed, on one device of the measured speed.

    Raises:
        ConfigError: a line for each variant that cannot begin.
    """
    from ensemw2s.engine.estimate import estimate
    from ensemw2s.engine.prepare import prepare

    plans: list[VariantPlan] = []
    problems: list[str] = []
    done: set[str] = set()
    for name in comparison.config.variants:
        config = comparison.run(name, comparison.config.seeds[0])
        try:
            lines = estimate(prepare(config), flops_per_second)
        except UserError as error:
            problems += _lines(name, error)
            continue
        keys = [work_key(line.stage, name, config) for line in lines]
        new = [line for line, key in zip(lines, keys, strict=True) if key not in done]
        done.update(keys)
        total = (sum(line.tokens for line in new), sum(line.seconds for line in new))
        plans.append(VariantPlan(name, len(new), *total, sum(line.disk for line in new)))
    if problems:
        raise ConfigError(problems)
    return plans


def work_key(stage: str, variant: str, config: ExperimentConfig) -> str:
    """Equal for stages of two variants that are computed once. Of members only those are taken for equal whose whole boosting is
    the same, or that are the first of the same models (all samples, all weights 1)."""
    if stage in COMMON:
        if not stage.startswith("student"):
            return stage
        from ensemw2s.engine.students import truth_training

        plain = truth_training(config.strong.training)
        return f"{stage} {json.dumps([plain.loss, plain.loss_options], sort_keys=True)}"
    boosting = config.boosting
    weak, whole = config.weak.model_dump(mode="json"), boosting.model_dump(mode="json", exclude={"rounds"})
    # The first member sees all samples once, whatever is reweighted later.
    first: list[Any] = [weak["models"][0], weak["training"]]
    if boosting.method == "bagging":
        first = [weak, whole]
    parts: list[Any] = [variant]
    if stage == "member 1":
        parts = first
    elif stage == "student single":
        from ensemw2s.engine.teaching import asks_teacher

        # Its labels are those of the first member.
        vote = config.vote.model_dump(mode="json", exclude=_OF_SEVERAL)
        if not asks_teacher(config) and config.labels.keep_by == "all":
            # A temperature changes how sure the single model is, and not what it says.
            del vote["calibrate"]
        taught = [config.strong.training.loss, config.strong.training.loss_options]
        parts = [first, config.labels.model_dump(mode="json"), vote, taught]
    elif stage.startswith("prior"):
        parts = [weak if boosting.prior == "warmup" else weak["models"], boosting.prior, boosting.unit]
    elif stage.startswith(("member", "soft labels")):
        parts = [weak, whole]
    return f"{stage} {json.dumps(parts, sort_keys=True)}"


def _lines(name: str, error: UserError) -> list[str]:
    lines = error.problems if isinstance(error, ConfigError) else [str(error)]
    return [f"variant {name!r}: {line}" for line in lines]
