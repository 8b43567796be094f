"""Figures: what is drawn is what results.json holds; looked at through matplotlib's own objects."""

from __future__ import annotations

import io
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.image import imread

from ensemw2s.runs import figures_draw as draw
from ensemw2s.runs.figures import draw_figures, figure_names
from ensemw2s.runs.figures_style import DARK, LIGHT, one_line, plain
from ensemw2s.runs.report_systems import BY_KEY, SYSTEMS, split_colors
from ensemw2s.runs.tables import comparison_table

SIMULATIONS = {
    "protan": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deutan": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
}
"""Machado, Oliveira and Fernandes (2009), severity 1, for linear RGB."""


def labels_of(figure: Figure, panel: int) -> list[str]:
    legend = figure.axes[panel].get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_bars_start_at_0_and_have_their_intervals(results: dict[str, Any]) -> None:
    figure = draw.comparison_bars(results, LIGHT)
    test, harder = figure.axes
    rows = comparison_table(results)
    for axes, split in ((test, "test"), (harder, "harder")):
        assert [bar.get_x() for bar in axes.patches] == [0.0] * 8
        assert [bar.get_width() for bar in axes.patches] == [
            results[row.system][split]["value"] for row in rows
        ]
        assert [bar.get_facecolor() for bar in axes.patches] == [
            to_rgba(BY_KEY[row.system].color) for row in rows
        ]
        assert axes.get_xlim()[0] == 0.0
    intervals = [container for container in test.containers if isinstance(container, ErrorbarContainer)]
    ends = [container.lines[2][0].get_segments()[0][:, 0] for container in intervals]
    expected = [[results[row.system]["test"]["low"], results[row.system]["test"]["high"]] for row in rows]
    np.testing.assert_allclose(ends, expected, rtol=0, atol=1e-12)
    assert test.get_title(loc="left") == "test: 520 questions"
    assert "61.2 %" in texts(figure)
    assert texts(figure).count("guessing") == 2


def test_a_free_task_names_its_chance_line(one_member_results: dict[str, Any]) -> None:
    figure = draw.comparison_bars(one_member_results, LIGHT)
    assert texts(figure) == ["38.0 %", "38.0 %"]
    one_member_results["splits"]["test"]["chance"] = 0.1
    assert "giving the commonest answer" in texts(draw.comparison_bars(one_member_results, LIGHT))


def test_a_system_missing_on_one_split_has_no_bar_there(results: dict[str, Any]) -> None:
    del results["ceiling"]["harder"]
    test, harder = draw.comparison_bars(results, LIGHT).axes
    assert (len(test.patches), len(harder.patches)) == (8, 7)


def test_staged_lines_and_the_selected_number(results: dict[str, Any]) -> None:
    figure = draw.staged_accuracy(results, LIGHT)
    [axes] = figure.axes
    lines = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert list(lines) == ["easy_val", "hard_train", "test", "harder"]
    for name, line in lines.items():
        assert line.get_xdata().tolist() == [1, 2]
        assert list(line.get_ydata()) == results["staged"][name]
        assert line.get_color() == split_colors(results)[name]
    assert "selected: T = 2" in texts(figure)
    low, high = axes.get_ylim()
    assert low < 0.402 < 0.571 < high


def test_dropped_members_are_hollow(results: dict[str, Any]) -> None:
    errors, alphas = draw.member_weights(results, LIGHT).axes
    bars = alphas.patches
    assert [bar.get_height() for bar in bars] == [0.91, 0.55, -0.2]
    assert [bar.get_facecolor()[3] for bar in bars] == [1.0, 1.0, 0.0]
    assert [label.get_text() for label in alphas.get_xticklabels()] == ["1", "2", "3\ndropped"]
    assert alphas.get_ylim()[0] < -0.2
    points = [line for line in errors.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1]
    assert [line.get_ydata()[0] for line in points] == [0.31, 0.42, 0.84]
    filled = [line.get_markerfacecolor() != LIGHT.background for line in points]
    assert filled == [True, True, False]
    squares = [line for line in errors.lines if line.get_marker() == "s" and len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in squares] == [(2, 0.47)]


def test_legend_of_errors_names_only_what_is_there(
    results: dict[str, Any], one_member_results: dict[str, Any]
) -> None:
    names = labels_of(draw.member_weights(results, LIGHT), 0)
    assert names == ["on train", "on out_of_bag", "on easy_val", "prior error", "hollow: dropped"]
    assert labels_of(draw.member_weights(one_member_results, LIGHT), 0) == [
        "on train",
        "on easy_val",
        "prior error",
    ]


def test_two_attempts_at_one_round_stand_beside_each_other(results: dict[str, Any]) -> None:
    results["members"][2]["round"] = results["members"][1]["round"] = 2
    alphas = draw.member_weights(results, LIGHT).axes[1]
    assert [label.get_text() for label in alphas.get_xticklabels()] == ["1", "2", "2\ndropped"]


def test_token_weight_curves_and_effective_sizes(
    results: dict[str, Any], one_member_results: dict[str, Any]
) -> None:
    curves, sizes = draw.token_weight(results, LIGHT).axes
    equal, *rounds = curves.lines
    assert list(equal.get_xdata()) == list(equal.get_ydata()) == [0, 1]
    assert [list(line.get_ydata()) for line in rounds] == results["token_weight"]["curves"]
    np.testing.assert_allclose(
        [bar.get_height() for bar in sizes.patches], [2905.5 / 3600, 1804 / 3600, 1804 / 3600]
    )
    assert "3,600 target tokens" in sizes.get_title(loc="left")
    [only] = draw.token_weight(one_member_results, LIGHT).axes
    assert len(only.patches) == 1


def test_many_rounds_keep_the_legend_short(results: dict[str, Any]) -> None:
    results["token_weight"]["curves"] *= 6
    results["effective_sample_size"] = [1000.0] * 18
    figure = draw.token_weight(results, LIGHT)
    assert labels_of(figure, 0) == ["all equal", "after round 1", "after round 9", "after round 18"]
    assert len(figure.axes[1].get_xticks()) <= 12


def test_nothing_applies_to_a_run_of_nothing(one_member_results: dict[str, Any]) -> None:
    nothing = one_member_results | {
        "members": [],
        "staged": {},
        "effective_sample_size": [],
        "weak_single": None,
    }
    assert draw_figures(nothing | {"weak_ensemble": None}) == []


def test_images_are_images_and_alt_texts_hold_the_numbers(results: dict[str, Any]) -> None:
    made = {figure.name: figure for figure in draw_figures(results)}
    assert list(made) == figure_names()
    for figure in made.values():
        image = imread(io.BytesIO(figure.png))
        assert image.shape[1] == 800
        assert image.std() > 0.05
        assert figure.svg_light != figure.svg_dark
        assert figure.svg_light.rstrip().endswith("</svg>")
        assert "<script" not in figure.svg_light
        assert DARK.ink in figure.svg_dark
        assert LIGHT.ink in figure.svg_light
    assert "Student of the ensemble: test 61.2 % (57.2-65.2), harder 47.1 %" in made["comparison"].alt
    assert "easy_val: 55.0 %, 57.1 %" in made["accuracy_by_members"].alt
    assert "round 3: error 84.0 %, prior error 81.0 %, alpha -0.200, dropped" in made["members"].alt
    assert "round 2: 31.6 %" in made["token_weight"].alt


def test_names_of_strangers_do_not_break_a_figure(results: dict[str, Any]) -> None:
    name = "$\\frac{</svg>&\n" + "long" * 30
    for key in ("staged", "weak_single", "student_ensemble"):
        results[key][name] = results[key].pop("harder")
    results["splits"][name] = results["splits"].pop("harder")
    calibration = results["diagnostics"]["calibration"]
    calibration[name] = calibration.pop("test")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = draw_figures(results)
    assert len(made) == 6
    assert all(figure.svg_light.count("</svg>") == 1 for figure in made)


def test_names_are_shortened_before_they_are_escaped() -> None:
    assert one_line("a\n  b") == "a b"
    assert one_line("x" * 30, 10) == "x" * 9 + "…"
    assert plain("$x$") == r"\$x\$"


@pytest.mark.parametrize("vision", [None, "protan", "deutan"])
def test_neighbouring_systems_keep_apart_for_color_blind_eyes(vision: str | None) -> None:
    lab = [_lab(to_rgba(system.color)[:3], vision) for system in SYSTEMS]
    for before, after, first, second in zip(lab, lab[1:], SYSTEMS, SYSTEMS[1:], strict=False):
        distance = float(np.linalg.norm(np.subtract(before, after)))
        assert distance > 10, (first.key, second.key, distance)


def test_drawing_leaves_no_state_behind() -> None:
    code = (
        "import sys, matplotlib\n"
        "before = matplotlib.rcParams.copy()\n"
        "from ensemw2s.runs.figures_style import LIGHT, new_figure, to_svg, to_png\n"
        "figure, _ = new_figure(LIGHT, [2.0])\n"
        "assert to_svg(figure) and to_png(figure)\n"
        "assert matplotlib.rcParams.copy() == before\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_drawing_code_loads_no_matplotlib() -> None:
    heavy = "{'matplotlib', 'torch', 'ray', 'jinja2'}"
    code = f"import sys, ensemw2s.runs.report\nassert not {heavy} & set(sys.modules)\n"
    subprocess.run([sys.executable, "-c", code], check=True)


def _lab(rgb: tuple[float, ...], vision: str | None) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB color as a color-blind eye sees it."""
    value = np.array(rgb)
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    if vision is not None:
        linear = np.clip(np.array(SIMULATIONS[vision]) @ linear, 0, 1)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = matrix @ linear / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
