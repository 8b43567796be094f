"""Rating a data set by difficulty: read it, have it rated where the configuration says, write it again."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ensemw2s.config import ExperimentConfig
from ensemw2s.data.samples import Sample
from ensemw2s.data.writing import check_output, write_table
from ensemw2s.engine.rating.options import RatingOptions, load_samples
from ensemw2s.engine.rating.output import Rating, rated_table
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.opening import Show, locked_run, open_run, supervisors
from ensemw2s.settings import absolute_paths


@dataclass(frozen=True, eq=False)
class RatedFile:
    """A rated data set: its file, (n,) difficulty in the order of its samples, and where the ratings come from."""

    path: Path
    difficulty: np.ndarray
    provenance: dict[str, Any]


def rate_file(config: ExperimentConfig, options: RatingOptions, output: Path, progress: Show) -> RatedFile:
    """Rate and write; nothing is written at the output before all samples are rated.

    Work goes in the order of the ids, so that the order of a file changes nothing but the order of the output.

    Raises:
        UserError: something that the user gave cannot be used; nothing was written because of it.
    """
    target = check_output(output)
    given = load_samples(absolute_paths(config).data, options, target)
    order = sorted(range(len(given)), key=lambda i: given[i].id)
    samples = [given[i] for i in order]
    if options.trains:
        rating = _by_folds(config, options, samples, target, progress)
    elif options.run is not None:
        rating = _by_members(config, options.run, samples, progress)
    else:
        from ensemw2s.engine.rating.rate import by_responses

        rating = by_responses(options, samples)
    if rating.details.get("converged") is False:
        progress(
            ProgressEvent("warning: the item response model did not converge; its ratings are rough", 1, 1)
        )
    place = np.argsort(order)
    write_table(rated_table(samples, rating).take(place), target)
    if options.trains:
        from ensemw2s.engine.rating.plan import work_folder

        shutil.rmtree(work_folder(target))
    return RatedFile(target, rating.difficulty[place], rating.provenance)


def _by_folds(
    config: ExperimentConfig, options: RatingOptions, samples: list[Sample], output: Path, progress: Show
) -> Rating:
    from ensemw2s.engine.rating.plan import begin_work, plan_folds, work_folder
    from ensemw2s.engine.rating.rate import by_folds

    plan = plan_folds(config, options, samples)
    with locked_run(plan.config, work_folder(output), progress) as ctx:
        begin_work(plan, ctx.store)
        with supervisors(ctx, len(plan.jobs)) as pool:
            return by_folds(ctx, pool, plan)


def _by_members(config: ExperimentConfig, run: Path, samples: list[Sample], progress: Show) -> Rating:
    from ensemw2s.engine.rating.members import rating_members
    from ensemw2s.engine.rating.rate import by_members

    ctx = open_run(run, progress)
    # Where and how fast is for who rates to say, not for who trained.
    ctx.config = ctx.config.model_copy(update={"runtime": config.runtime})
    ensemble = rating_members(ctx, samples)
    with supervisors(ctx, len(ensemble.refs)) as pool:
        return by_members(ctx, pool, ensemble, samples)
