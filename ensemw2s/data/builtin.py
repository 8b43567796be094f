"""Where the data sets that have a name here lie, on the hub or in a copy, and how their rows become samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ensemw2s.config import BuiltinSource, ColumnsConfig, HubSource
from ensemw2s.data.binary import MAPPINGS

_LABELLED = ColumnsConfig(
    question="question", choices="choices", answer="answerKey", answer_labels="choices.label", id="id"
)

_DATASETS: dict[str, dict[str, Any]] = {
    "arc_easy": {"path": "allenai/ai2_arc", "name": "ARC-Easy", "columns": _LABELLED},
    "arc_challenge": {"path": "allenai/ai2_arc", "name": "ARC-Challenge", "columns": _LABELLED},
    "sciq": {
        "path": "allenai/sciq",
        "columns": ColumnsConfig(
            question="question",
            distractors=("distractor1", "distractor2", "distractor3"),
            answer="correct_answer",
        ),
    },
    # The hub's own Parquet copy: it does not depend on a loading script in the repository, which datasets 4
    # dropped.
    "quartz": {"path": "allenai/quartz", "revision": "refs/convert/parquet", "columns": _LABELLED},
    "sciq_binary": {"path": "allenai/sciq"},
    "boolq": {"path": "google/boolq"},
    "amazon_polarity": {"path": "fancyzhx/amazon_polarity"},
    "cosmosqa": {"path": "allenai/cosmos_qa", "revision": "refs/convert/parquet"},
    "anthropic_hh": {"path": "Anthropic/hh-rlhf"},
}
#: Their test sets have no published truth, so that their validation sets serve, as in openai/weak-to-strong.
_VALIDATION_AS_TEST = ("boolq", "cosmosqa")


def hub_source(source: BuiltinSource) -> HubSource:
    """The hub data set that a built-in name stands for, or its copy in the folder ``path``.

    The questions of QuaRTz are taken without their background paragraph.
    """
    split = "validation" if source.split == "test" and source.name in _VALIDATION_AS_TEST else source.split
    where = dict(_DATASETS[source.name])
    if source.path is not None:
        # A folder is one revision, whichever was copied.
        where |= {"path": source.path, "revision": None}
    return HubSource(split=split, limit=source.limit, balance=source.balance, **where)


def row_mapping(name: str) -> Callable[[dict[str, Any]], dict[str, Any]] | None:
    """What makes question, choices and answer of a row, where columns alone do not."""
    return MAPPINGS.get(name)
