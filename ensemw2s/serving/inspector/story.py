"""What the page tells of the run: who is served, and what results.json and the manifest hold, ready to be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ensemw2s.engine.context import RunContext
from ensemw2s.runs import report_sentences as sentences
from ensemw2s.runs import report_tables as tables
from ensemw2s.runs.report_systems import (
    SYSTEMS,
    Results,
    chance_name,
    compared_splits,
    ordered_splits,
    score_of,
    weight_unit,
)
from ensemw2s.serving.inspector.samples import Samples
from ensemw2s.serving.protocol import ServedModel
from ensemw2s.serving.settings import ServeSettings


def about(
    ctx: RunContext, models: Mapping[str, ServedModel], samples: Samples, settings: ServeSettings
) -> dict[str, Any]:
    """The run, its models and members, its splits, and the limits of the server."""
    vote = ctx.config.vote
    return {
        "name": ctx.config.name,
        "prompt": ctx.config.data.prompt,
        "stop": list(vote.stop),
        "max_tokens": min(vote.max_new_tokens, settings.max_output_tokens),
        "limits": {
            "max_tokens": settings.max_output_tokens,
            "top": settings.max_logprobs,
            "choices": settings.max_choices,
        },
        "splits": samples.sizes(),
        "models": [
            {
                "name": model.name,
                "members": [
                    {"name": name, "weight": weight}
                    for name, weight in zip(model.members, model.weights, strict=True)
                ],
                "cannot_choose": model.unanswerable,
            }
            for model in models.values()
        ],
    }


def story(ctx: RunContext) -> dict[str, Any]:
    """The run's results, or what its manifest tells of a run that is not finished.

    Raises:
        ArtifactError: results.json is damaged.
    """
    stages = ctx.store.stages()
    common = {"name": ctx.config.name, "stages": list(stages), "level": ctx.config.evaluation.level}
    if "results" not in stages:
        records = [stage.info["record"] for name, stage in stages.items() if name.startswith("member-")]
        records.sort(key=lambda record: int(record["attempt"]))
        return {**common, "finished": False, "members": [_member(record) for record in records]}
    from ensemw2s.runs.report import load_results

    ctx.store.require("results")
    return {**common, "finished": True, **_finished(load_results(ctx.run_dir), ctx.config.evaluation.level)}


def _finished(results: Results, level: float) -> dict[str, Any]:
    shown = {
        "comparison": tables.comparison(results),
        "differences": tables.differences(results, level),
        "members": tables.members(results),
        "splits": tables.splits(results),
        "effective": tables.token_weight(results),
    }
    return {
        "question": sentences.question(results),
        "answers": sentences.answers(results, level),
        "notes": [*sentences.pgr_sentences(results), *sentences.caveats(results, level)],
        "selection": sentences.selection(results),
        "warnings": list(results.get("warnings") or ()),
        "members": [_member(member) for member in results["members"]],
        "selected": results.get("selected_rounds"),
        "staged": {name: results["staged"][name] for name in ordered_splits(results["staged"])},
        "effective": list(results.get("effective_sample_size") or ()),
        "units": results.get("n_units"),
        "unit": weight_unit(results),
        "chance_name": chance_name(results),
        "comparison": [_scores(results, split) for split in compared_splits(results)],
        "tables": {name: _table(table) for name, table in shown.items() if table is not None},
    }


def _scores(results: Results, split: str) -> dict[str, Any]:
    systems = []
    for system in SYSTEMS:
        score = score_of(results, system.key, split)
        if score is not None:
            systems.append({"key": system.key, "label": system.label, "group": system.group, **score})
    return {"split": split, "chance": results["splits"][split].get("chance"), "systems": systems}


def _member(record: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("round", "base", "error", "errors", "prior_error", "alpha", "kept", "reason")
    return {key: record[key] for key in keys}


def _table(table: tables.Table) -> dict[str, Any]:
    return {**asdict(table), "numeric": sorted(table.numeric), "marked": sorted(table.marked)}
