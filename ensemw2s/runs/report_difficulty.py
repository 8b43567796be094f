"""The report's part on difficulty: its distribution, accuracy by difficulty, and the questions at both ends.

From ``difficulty`` of results.json and the stored splits; runs whose samples carry no difficulty have none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ensemw2s.runs.figures_style import (
    Theme,
    label_axes,
    legend_below,
    new_figure,
    one_line,
    percent_axis,
    plain,
)
from ensemw2s.runs.report_format import count, percent, printable, shorten
from ensemw2s.runs.report_systems import BY_KEY, Results, ordered_splits, split_colors
from ensemw2s.runs.report_tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = {"weak_single": "o", "weak_ensemble": "s", "student_ensemble": "D", "ceiling": "^"}
"""systems whose accuracy by difficulty is shown, and their markers"""
PER_END = 4


def known(results: Results) -> bool:
    """Whether samples of the run carry a difficulty."""
    return bool((results.get("difficulty") or {}).get("splits"))


def distribution(results: Results) -> Table | None:
    """Quartiles of the difficulty, by split."""
    if not known(results):
        return None
    splits = results["difficulty"]["splits"]
    rows = [
        [name, count(splits[name]["n"]), *(f"{q:.3g}" for q in splits[name]["quartiles"])]
        for name in ordered_splits(splits)
    ]
    header = ["questions", "rated", "easiest", "25 %", "median", "75 %", "hardest"]
    missing = {name: own["unrated"] for name, own in splits.items() if own["unrated"]}
    notes = [f"{count(n)} questions of {name} have no difficulty." for name, n in missing.items()]
    for name, rating in (results["difficulty"].get("ratings") or {}).items():
        what = ", ".join(
            f"{k} {printable(str(v))}" for k, v in rating.items() if isinstance(v, str | int | float)
        )
        notes.append(f"Difficulties of {name} were rated before: {shorten(what, 200)}.")
    return Table("Difficulty of the questions", header, rows, frozenset(range(1, 7)), notes)


def by_difficulty(results: Results) -> Table | None:
    """Accuracy on bins of difficulty, easiest first, by test split."""
    rows = []
    accuracy = (results.get("difficulty") or {}).get("accuracy") or {}
    systems = [s for s in SHOWN if all(s in row["systems"] for own in accuracy.values() for row in own)]
    for name in ordered_splits(accuracy):
        for row in accuracy[name]:
            reach = (
                f"{row['low']:.3g}" if row["low"] == row["high"] else f"{row['low']:.3g} to {row['high']:.3g}"
            )
            rows.append([name, reach, count(row["n"]), *(percent(row["systems"][s]) for s in systems)])
    header = ["questions", "difficulty", "n", *(BY_KEY[s].label for s in systems)]
    return Table("Accuracy by difficulty", header, rows, frozenset(range(1, len(header)))) if rows else None


def both_ends(run_dir: Path, results: Results) -> Table | None:
    """The easiest and the hardest questions of all splits, ties by id."""
    if not known(results):
        return None
    import pyarrow.parquet as pq

    found: list[tuple[float, str, str, str, str]] = []
    for name in ordered_splits(results["difficulty"]["splits"]):
        path = run_dir / "splits" / f"{name}.parquet"
        if path.is_file():
            table = pq.read_table(path, columns=["id", "question", "answer", "difficulty"])
            found += [
                (row["difficulty"], row["id"], name, row["question"], row["answer"])
                for row in table.to_pylist()
                if row["difficulty"] is not None
            ]
    found.sort(key=lambda row: row[:2])
    n = min(PER_END, len(found) // 2)
    if not n:
        return None
    chosen = [("easiest", row) for row in found[:n]] + [("hardest", row) for row in found[-n:][::-1]]
    rows = [
        [end, f"{value:.3g}", name, _short(question, 240), _short(answer or "", 80)]
        for end, (value, _, name, question, answer) in chosen
    ]
    header = ["end", "difficulty", "questions", "question", "answer"]
    return Table("The easiest and the hardest questions", header, rows, frozenset({1}))


def _short(text: str, limit: int) -> str:
    return shorten(printable(text.strip()), limit)


def draw(results: Results, theme: Theme) -> Figure:
    """Share of each split's questions by difficulty, and below it the accuracy on each test split."""
    difficulty, colors = results["difficulty"], split_colors(results)
    tests = ordered_splits(difficulty["accuracy"])
    figure, [top, *panels] = new_figure(theme, [3.4] + [3.4] * len(tests))
    edges = difficulty["edges"]
    for name in ordered_splits(difficulty["splits"]):
        own = difficulty["splits"][name]
        shares = [n / own["n"] for n in own["counts"]]
        top.stairs(shares, edges, color=colors.get(name, theme.muted), linewidth=1.8, label=plain(name))
    _percents(top)
    label_axes(top, theme, title="How hard the questions are", x="difficulty", y="share of the questions")
    legend_below(top, theme, columns=3)
    for axes, name in zip(panels, tests, strict=True):
        rows = difficulty["accuracy"][name]
        every = []
        for system, marker in SHOWN.items():
            y = [row["systems"][system] for row in rows if system in row["systems"]]
            if len(y) == len(rows):
                x, color = [row["median"] for row in rows], BY_KEY[system].color
                axes.plot(
                    x,
                    y,
                    marker=marker,
                    markersize=6,
                    linewidth=1.8,
                    color=color,
                    label=plain(BY_KEY[system].label),
                )
                every += y
        percent_axis(axes, min(every), max(every))
        title = f"Accuracy by difficulty: {one_line(name)}"
        label_axes(axes, theme, title=title, x="difficulty (median of the bin)", y="answered right")
        legend_below(axes, theme, columns=2)
    return figure


def _percents(axes: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axes.set_ylim(bottom=0.0)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))


def alt(results: Results) -> str:
    """The figure in words and numbers."""
    difficulty = results["difficulty"]
    parts = []
    for name in ordered_splits(difficulty["splits"]):
        low, _, middle, _, high = difficulty["splits"][name]["quartiles"]
        parts.append(f"{name}: {low:.3g} to {high:.3g}, median {middle:.3g}")
    for name in ordered_splits(difficulty["accuracy"]):
        for system in SHOWN:
            shown = [
                percent(r["systems"][system]) for r in difficulty["accuracy"][name] if system in r["systems"]
            ]
            if shown:
                parts.append(f"{BY_KEY[system].label} on {name}, easiest first: {', '.join(shown)}")
    return f"Distribution of the difficulty and accuracy by difficulty. {'; '.join(parts)}."
