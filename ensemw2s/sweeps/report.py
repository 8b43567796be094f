"""What a sweep leaves behind: sweep.html, trials.json, best.yaml, and the table on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ensemw2s.runs.figures import ReportFigure
from ensemw2s.runs.figures_style import (
    DARK,
    LIGHT,
    Theme,
    label_axes,
    new_figure,
    percent_axis,
    to_png,
    to_svg,
)
from ensemw2s.runs.report_format import percent
from ensemw2s.runs.report_render import page
from ensemw2s.runs.store import write_atomic
from ensemw2s.settings import dump_config
from ensemw2s.sweeps.config import Sweep
from ensemw2s.sweeps.trial import shown
from ensemw2s.sweeps.tuning import TrialOutcome, as_rows

TEMPLATES = Path(__file__).parent / "templates"
BEST = "best.yaml"


def best_trial(outcomes: list[TrialOutcome]) -> TrialOutcome | None:
    """The finished trial with the highest accuracy on easy_val; ties go to the first name."""
    finished = [o for o in outcomes if o.status == "finished"]
    return min(finished, key=lambda o: (-o.accuracy, o.name)) if finished else None


def write_sweep_report(sweep: Sweep, outcomes: list[TrialOutcome]) -> None:
    """Write trials.json, sweep.html and, when a trial finished, best.yaml: the whole experiment, ready to run."""
    folder, best = sweep.folder, best_trial(outcomes)
    write_atomic(folder / "trials.json", json.dumps(as_rows(outcomes), indent=1) + "\n")
    text = ""
    if best is not None:
        config = sweep.trial(best.values, name=f"{sweep.config.name}-best")
        # The run continues from what the trials computed.
        runtime = config.runtime.model_copy(update={"cache": sweep.cache})
        text = dump_config(config.model_copy(update={"runs_dir": sweep.base.runs_dir, "runtime": runtime}))
        write_atomic(folder / BEST, text)
    keys = list(sweep.config.parameters)
    html = page(
        TEMPLATES,
        "sweep.html.j2",
        name=sweep.config.name,
        parameters=keys,
        trials=[_row(o, keys) for o in outcomes],
        best=None if best is None else {**_row(best, keys), "text": _values(best)},
        best_file=f"{sweep.config.name}/{BEST}",
        best_yaml=text,
        advice=_advice(outcomes, len(keys)),
        figures=_figures(outcomes, keys),
    )
    write_atomic(folder / "sweep.html", html)


def render_table(sweep: Sweep, outcomes: list[TrialOutcome]) -> str:
    """The trials as text, best first."""
    keys = list(sweep.config.parameters)
    rows = [["trial", *keys, "rounds", "easy_val", "state"]]
    for outcome in outcomes:
        row = _row(outcome, keys)
        rows.append([row["name"], *row["cells"], row["rounds"], row["accuracy"], row["state"]])
    widths = [max(len(r[c]) for r in rows) for c in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(r, widths, strict=True)).rstrip() for r in rows
    )


def _row(outcome: TrialOutcome, keys: list[str]) -> dict[str, Any]:
    failed = outcome.status == "failed"
    return {
        "name": outcome.name,
        "cells": [shown(outcome.values.get(key)) for key in keys],
        "rounds": str(outcome.rounds),
        "accuracy": "-" if failed else percent(outcome.accuracy),
        "state": f"failed: {outcome.detail}" if failed else outcome.status,
    }


def _values(outcome: TrialOutcome) -> str:
    return ", ".join(f"{key} {shown(value)}" for key, value in outcome.values.items())


def _advice(outcomes: list[TrialOutcome], n_parameters: int) -> str:
    accuracies = sorted((o.accuracy for o in outcomes if o.status == "finished"), reverse=True)
    if len(accuracies) < 2:
        return "One trial finished: there is nothing to compare it with."
    gap = (accuracies[0] - accuracies[1]) * 100
    return f"The next one is {gap:.1f} points behind; {len(accuracies)} trials finished, {len(outcomes) - len(accuracies)} did not."


def _figures(outcomes: list[TrialOutcome], keys: list[str]) -> list[ReportFigure]:
    finished = [o for o in outcomes if o.status == "finished"]
    return [_figure(finished, key) for key in keys] if len(finished) > 1 else []


def _figure(finished: list[TrialOutcome], key: str) -> ReportFigure:
    light, dark = _draw(finished, key, LIGHT), _draw(finished, key, DARK)
    width, height = (round(inches * 96) for inches in light.get_size_inches())
    points = "; ".join(f"{shown(o.values[key])}: {percent(o.accuracy)}" for o in finished)
    title = f"Accuracy on easy_val by {key}, one point a finished trial"
    alt = f"Points of accuracy on easy_val by {key}. {points}."
    return ReportFigure(key, title, alt, to_png(light), to_svg(light), to_svg(dark), width, height)


def _draw(finished: list[TrialOutcome], key: str, theme: Theme) -> Any:
    values, accuracies = [o.values[key] for o in finished], [o.accuracy for o in finished]
    figure, (axes,) = new_figure(theme, [2.6])
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    if numeric:
        places = [float(v) for v in values]
        if min(places) > 0 and max(places) / min(places) >= 30:
            axes.set_xscale("log")
    else:
        names = sorted({shown(v) for v in values})
        places = [float(names.index(shown(v))) for v in values]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.5, len(names) - 0.5)
    axes.plot(places, accuracies, "o", color=theme.ink, markersize=6, alpha=0.8)
    percent_axis(axes, min(accuracies), max(accuracies))
    label_axes(axes, theme, x=key, y="easy_val")
    return figure
