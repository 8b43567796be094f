"""The figures of a report, drawn from results.json: title, words for those who cannot see it, PNG, SVG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ensemw2s.runs import report_difficulty
from ensemw2s.runs.figures_draw import comparison_bars, member_weights, staged_accuracy, token_weight
from ensemw2s.runs.figures_reliability import alt_reliability, reliability
from ensemw2s.runs.figures_style import DARK, LIGHT, Theme, to_png, to_svg
from ensemw2s.runs.report_diagnostics import reliability_splits
from ensemw2s.runs.report_format import number, percent, percent_interval
from ensemw2s.runs.report_systems import Results, ordered_splits
from ensemw2s.runs.tables import comparison_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ReportFigure:
    """One drawn figure.

    Attributes:
        name: file name without its ending.
        title: caption.
        alt: what it shows, in words and numbers, for those who do not see it.
        png: image on white.
        svg_light, svg_dark: the same for light and dark pages, with nothing behind it.
        width, height: size in CSS pixels.
    """

    name: str
    title: str
    alt: str
    png: bytes
    svg_light: str
    svg_dark: str
    width: int
    height: int


@dataclass(frozen=True)
class _Plan:
    name: str
    title: str
    applies: Callable[[Results], bool]
    draw: Callable[[Results, Theme], Figure]
    alt: Callable[[Results], str]


def draw_figures(results: Results) -> list[ReportFigure]:
    """Every figure that applies to the run; a stage that did not run has none."""
    return [_render(plan, results) for plan in _PLANS if plan.applies(results)]


def figure_names() -> list[str]:
    """File names, without ending, of all figures that a run can have."""
    return [plan.name for plan in _PLANS]


def _render(plan: _Plan, results: Results) -> ReportFigure:
    light, dark = plan.draw(results, LIGHT), plan.draw(results, DARK)
    width, height = (round(inches * 96) for inches in light.get_size_inches())
    svgs = to_svg(light), to_svg(dark)
    return ReportFigure(plan.name, plan.title, plan.alt(results), to_png(light), *svgs, width, height)


def _alt_comparison(results: Results) -> str:
    parts = []
    for row in comparison_table(results):
        shown = [f"{split} {percent_interval(vars(score))}" for split, score in row.scores.items() if score]
        parts.append(f"{row.label}: {', '.join(shown)}")
    return "Bars of the share of questions answered right, with intervals. " + "; ".join(parts) + "."


def _alt_staged(results: Results) -> str:
    staged, chosen = results["staged"], results.get("selected_rounds")
    lines = [
        f"{name}: {', '.join(percent(value) for value in staged[name])}" for name in ordered_splits(staged)
    ]
    mark = f" T = {chosen} is marked as the number that votes." if chosen else ""
    return f"Lines of the ensemble's accuracy after 1, 2, ... members. {'; '.join(lines)}.{mark}"


def _alt_members(results: Results) -> str:
    parts = [
        f"round {m['round']}: error {percent(m['error'])}, prior error {percent(m['prior_error'])}, "
        f"alpha {number(m['alpha'])}{'' if m['kept'] else ', dropped'}"
        for m in results["members"]
    ]
    return f"Errors and vote weights of the members by round. {'; '.join(parts)}."


def _alt_token_weight(results: Results) -> str:
    text = "Where the weight went."
    weights = results.get("token_weight") or {}
    x, curves = weights.get("curve_x") or (), weights.get("curves") or ()
    if x and curves:
        place = min(range(len(x)), key=lambda i: abs(x[i] - 0.1))
        held = ", ".join(f"round {t}: {percent(curve[place])}" for t, curve in enumerate(curves, start=1))
        text += f" Share of the total weight on the heaviest {percent(x[place])} after each round: {held}."
    sizes, n_units = results.get("effective_sample_size") or (), results.get("n_units")
    if sizes and n_units:
        shown = ", ".join(f"round {t}: {percent(size / n_units)}" for t, size in enumerate(sizes, start=1))
        text += f" Effective sample size, as a share of all: {shown}."
    return text


_PLANS = (
    _Plan(
        "comparison",
        "Questions answered right by each system, with intervals",
        lambda results: bool(comparison_table(results)),
        comparison_bars,
        _alt_comparison,
    ),
    _Plan(
        "accuracy_by_members",
        "Accuracy of the ensemble as members join",
        lambda results: any((results.get("staged") or {}).values()),
        staged_accuracy,
        _alt_staged,
    ),
    _Plan(
        "members",
        "Errors of the members and their weight in the vote",
        lambda results: bool(results.get("members")),
        member_weights,
        _alt_members,
    ),
    _Plan(
        "token_weight",
        "Where the boosting weight went",
        lambda results: bool(
            (results.get("token_weight") or {}).get("curves") or results.get("effective_sample_size")
        ),
        token_weight,
        _alt_token_weight,
    ),
    _Plan(
        "reliability",
        "Is a confidence worth its number: accuracy against confidence; larger points have more questions",
        lambda results: bool(reliability_splits(results)),
        reliability,
        alt_reliability,
    ),
    _Plan(
        "difficulty",
        "Difficulty of the questions, and accuracy on easier and harder ones",
        report_difficulty.known,
        report_difficulty.draw,
        report_difficulty.alt,
    ),
)
