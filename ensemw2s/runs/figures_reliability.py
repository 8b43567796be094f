"""The reliability plot: accuracy against confidence, a panel for each set of questions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ensemw2s.runs.figures_style import DASHES, Theme, label_axes, legend_below, new_figure, one_line, plain
from ensemw2s.runs.report_diagnostics import LABELS, reliability_splits
from ensemw2s.runs.report_format import percent
from ensemw2s.runs.report_systems import BY_KEY, Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHOWN = ("weak_single", "weak_ensemble", "student_ensemble", "ceiling")
_MARKERS = {"weak_single": "o", "weak_ensemble": "s", "student_ensemble": "D", "ceiling": "^"}


def reliability(results: Results, theme: Theme) -> Figure:
    """Accuracy in bins of confidence; a point's area grows with the questions in its bin."""
    from matplotlib.ticker import PercentFormatter

    splits = reliability_splits(results)
    figure, panels = new_figure(theme, [3.9] * len(splits))
    for axes, split in zip(panels, splits, strict=True):
        axes.plot([0, 1], [0, 1], color=theme.muted, linestyle=DASHES, linewidth=1.2, label="calibrated")
        for system, points in _curves(results, split):
            color, n = BY_KEY[system].color, sum(b["n"] for b in points)
            x, y = [b["confidence"] for b in points], [b["accuracy"] for b in points]
            axes.plot(x, y, color=color, linewidth=1.4)
            sizes = [12.0 + 220.0 * b["n"] / n for b in points]
            marker = _MARKERS.get(system, "o")
            axes.scatter(
                x, y, s=sizes, color=color, marker=marker, label=plain(BY_KEY[system].label), zorder=3
            )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
        axes.set_xlim(0.0, 1.0)
        axes.set_ylim(-0.02, 1.04)
        title = "Pseudo-labels of the hard questions" if split == LABELS else one_line(split)
        label_axes(axes, theme, title=title, x="confidence", y="answered right")
        legend_below(axes, theme, columns=2)
    return figure


def alt_reliability(results: Results) -> str:
    """The figure in words and numbers."""
    parts = []
    for split in reliability_splits(results):
        for system, points in _curves(results, split):
            shown = ", ".join(
                f"{percent(b['confidence'])} sure: {percent(b['accuracy'])} right of {b['n']}" for b in points
            )
            parts.append(f"{split}, {BY_KEY[system].label}: {shown}")
    return f"Accuracy against confidence. {'; '.join(parts)}."


def _curves(results: Results, split: str) -> list[tuple[str, list[dict[str, Any]]]]:
    found = results["diagnostics"]["calibration"][split]
    return [(system, [b for b in found[system]["bins"] if b["n"]]) for system in _SHOWN if system in found]
