"""Label models: from the members' votes to one answer a question, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ensemw2s.core._checks import check_choice
from ensemw2s.core.label_models.dawid_skene import dawid_skene
from ensemw2s.core.label_models.filters import agreement, keep_best
from ensemw2s.core.label_models.glad import glad
from ensemw2s.core.label_models.pools import (
    MixtureFit,
    best_single,
    em_weights,
    fit_mixture_weights,
    geometric,
    plurality,
    uniform,
    weighted,
)
from ensemw2s.core.label_models.votes import ChoiceVotes, Labels, TokenVotes, Validation

__all__ = [
    "LABEL_MODELS",
    "ChoiceVotes",
    "LabelModel",
    "Labels",
    "MixtureFit",
    "TokenVotes",
    "Validation",
    "agreement",
    "best_single",
    "dawid_skene",
    "em_weights",
    "fit_mixture_weights",
    "geometric",
    "glad",
    "keep_best",
    "label",
    "plurality",
    "uniform",
    "weighted",
]


@dataclass(frozen=True)
class LabelModel:
    """A way to make labels of votes.

    Attributes:
        function: takes ChoiceVotes, then Validation where it needs truth, then its options as keywords.
        needs_truth: fitted to the truth of easy_val.
    """

    function: Callable[..., Labels]
    needs_truth: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options."""
        parameters = inspect.signature(self.function).parameters.values()
        return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


LABEL_MODELS: dict[str, LabelModel] = {
    "weighted": LabelModel(weighted),
    "uniform": LabelModel(uniform),
    "plurality": LabelModel(plurality),
    "geometric": LabelModel(geometric),
    "best_single": LabelModel(best_single, needs_truth=True),
    "em_weights": LabelModel(em_weights, needs_truth=True),
    "dawid_skene": LabelModel(dawid_skene),
    "glad": LabelModel(glad),
}


def label(name: str, votes: ChoiceVotes, validation: Validation | None = None, **options: Any) -> Labels:
    """Label questions with the label model of this name.

    Args:
        name: a key of `LABEL_MODELS`.
        votes: the members' votes on the questions.
        validation: the same members' votes on labelled questions; needed where the model `needs_truth`.
        options: of that label model.

    Raises:
        ValueError: an unknown name or option, validation missing or of other members, or a bad value.
    """
    model = LABEL_MODELS[check_choice(name, tuple(LABEL_MODELS), "label model")]
    for option in options:
        if option not in model.options:
            allowed = ", ".join(model.options) or "none"
            raise ValueError(f"label model {name} has no option {option!r}; its options: {allowed}")
    if not model.needs_truth:
        return model.function(votes, **options)
    if validation is None:
        raise ValueError(f"label model {name} is fitted to labelled questions: give validation")
    if validation.votes.n_members != votes.n_members:
        raise ValueError(
            f"validation must hold the same {votes.n_members} members, got {validation.votes.n_members}"
        )
    return model.function(votes, validation, **options)
