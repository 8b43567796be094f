"""The report of a run: figures/*.png, report.md and report.html from results.json and the stored predictions.

Nothing is measured or chosen here: the same stored results give the same report, byte for byte.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensemw2s.config import ModelConfig
from ensemw2s.errors import ArtifactError, RunDirectoryError
from ensemw2s.runs import report_diagnostics as diagnostics
from ensemw2s.runs import report_difficulty as difficulty
from ensemw2s.runs import report_sentences as sentences
from ensemw2s.runs import report_tables as tables
from ensemw2s.runs.figures import ReportFigure, draw_figures, figure_names
from ensemw2s.runs.report_examples import Disagreement, disagreements
from ensemw2s.runs.report_format import printable
from ensemw2s.runs.report_render import render_html, render_markdown
from ensemw2s.runs.report_systems import MAIN_SPLIT, Results

SCHEMA = 1

_TASKS = {"multiple_choice": "multiple choice", "generation": "free answers"}


@dataclass(frozen=True)
class ReportPaths:
    """The files that were written."""

    markdown: Path
    html: Path
    figures: tuple[Path, ...]


@dataclass(frozen=True)
class Report:
    """Everything that both forms of the report show, as plain text that is not escaped yet.

    Attributes:
        tables: by the name of the function of ``report_tables``; None where a stage did not apply.
        figures: by file name without its ending; a figure that does not apply is missing.
        config: config.yaml as it is stored, or None.
    """

    name: str
    subtitle: str
    question: str
    answers: Sequence[str]
    caveats: Sequence[str]
    warnings: Sequence[str]
    pgr: Sequence[str]
    labels: str | None
    selection: str
    shared_errors: Sequence[tables.Table]
    tables: Mapping[str, tables.Table | None]
    figures: Mapping[str, ReportFigure]
    examples: Sequence[Disagreement]
    config: str | None


def write_report(run_dir: Path) -> ReportPaths:
    """Write figures, report.md and report.html of a run; files of an earlier report are replaced.

    Args:
        run_dir: holds results.json and, where they exist, predictions/test.parquet and config.yaml.

    Raises:
        RunDirectoryError: there is no results.json, or one of another schema.
        ArtifactError: a stored file cannot be read.
    """
    run_dir = Path(run_dir)
    results = load_results(run_dir)
    report = build_report(
        results, _config_text(run_dir), _examples(run_dir, results), difficulty.both_ends(run_dir, results)
    )
    folder = run_dir / "figures"
    folder.mkdir(exist_ok=True)
    written = []
    for name in figure_names():
        path = folder / f"{name}.png"
        if name in report.figures:
            _replace(path, report.figures[name].png)
            written.append(path)
        else:
            # An earlier report of this run may have had it.
            path.unlink(missing_ok=True)
    paths = ReportPaths(run_dir / "report.md", run_dir / "report.html", tuple(written))
    _replace(paths.markdown, render_markdown(report).encode("utf-8"))
    _replace(paths.html, render_html(report).encode("utf-8"))
    return paths


def load_results(run_dir: Path) -> dict[str, Any]:
    """results.json of a run, checked for its schema.

    Raises:
        RunDirectoryError: there is none, or it has another schema.
        ArtifactError: it is not JSON.
    """
    path = Path(run_dir) / "results.json"
    if not path.is_file():
        raise RunDirectoryError(
            f"{path} does not exist: give the directory of a finished run, or finish it with `ensemw2s run`"
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(
            f"{path} is not valid JSON ({error}): run `ensemw2s run CONFIG` again to restore it"
        ) from error
    schema = results.get("schema") if isinstance(results, dict) else None
    if schema != SCHEMA:
        raise RunDirectoryError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA}: use the version that made it"
        )
    return dict(results)


def build_report(
    results: Results,
    config: str | None,
    examples: Sequence[Disagreement],
    ends: tables.Table | None = None,
) -> Report:
    """The content of the report.

    Args:
        results: content of results.json.
        config: text of config.yaml, for the level of the intervals and the strong model's name.
        examples: questions to show.
        ends: the easiest and the hardest questions, where samples carry a difficulty.
    """
    settings = _settings(config)
    level = _interval_level(settings)
    task = _TASKS.get(results["task"], results["task"])
    return Report(
        name=printable(results["name"]),
        subtitle=f"{task}, seed {results['seed']}",
        question=sentences.question(results, _strong_name(settings)),
        answers=sentences.answers(results, level),
        caveats=sentences.caveats(results, level),
        warnings=[printable(text) for text in results.get("warnings") or ()],
        pgr=sentences.pgr_sentences(results),
        labels=sentences.label_sentence(results),
        selection=" ".join(filter(None, [sentences.selection(results), diagnostics.rounds(results)])),
        tables={
            "comparison": tables.comparison(results),
            "systems": tables.systems(results),
            "differences": tables.differences(results, level),
            "members": tables.members(results),
            "token_weight": tables.token_weight(results),
            "heaviest": tables.heaviest(results),
            "splits": tables.splits(results),
            "cost": tables.cost(results),
            "versions": tables.versions(results),
            "calibration": diagnostics.calibration(results),
            "diversity": diagnostics.diversity(results),
            "imitation": diagnostics.imitation(results),
            "choice_scores": diagnostics.choice_scores(results),
            "votes": diagnostics.votes(results),
            "difficulty": difficulty.distribution(results),
            "by_difficulty": difficulty.by_difficulty(results),
            "both_ends": ends,
        },
        shared_errors=diagnostics.shared(results),
        figures={figure.name: figure for figure in draw_figures(results)},
        examples=examples,
        config=config,
    )


def _examples(run_dir: Path, results: Results) -> list[Disagreement]:
    path = run_dir / "predictions" / f"{MAIN_SPLIT}.parquet"
    if not path.is_file():
        return []
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        predictions = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ArtifactError(
            f"{path} is no Parquet file: run `ensemw2s run CONFIG` again to restore it"
        ) from error
    return [kind for kind in disagreements(predictions, results["task"]) if kind.total]


def _config_text(run_dir: Path) -> str | None:
    path = run_dir / "config.yaml"
    return printable(path.read_text(encoding="utf-8")) if path.is_file() else None


def _settings(config: str | None) -> Mapping[str, Any]:
    import yaml

    if config is None:
        return {}
    try:
        settings = yaml.safe_load(config)
    except yaml.YAMLError as error:
        raise ArtifactError(
            f"config.yaml of the run is not valid YAML ({type(error).__name__}): restore it"
        ) from error
    return settings if isinstance(settings, dict) else {}


def _interval_level(settings: Mapping[str, Any]) -> float:
    # The configuration's own default, for runs stored without their config.yaml.
    return float((settings.get("evaluation") or {}).get("level", 0.95))


def _strong_name(settings: Mapping[str, Any]) -> str | None:
    model = (settings.get("strong") or {}).get("model") or {}
    if not isinstance(model.get("path"), str):
        return None
    # Not validated: a report of an older run is still written when a field has been renamed since.
    names: dict[str, Any] = {key: model.get(key) for key in ("path", "label", "drop_layers", "keep_layers")}
    return ModelConfig.model_construct(**names).display_name


def _replace(path: Path, content: bytes) -> None:
    # Written beside and moved, so that a reader never sees half a file.
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    os.replace(temporary, path)
