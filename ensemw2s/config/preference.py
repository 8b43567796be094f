"""The second stage of teaching: preferences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ensemw2s.config.base import PositiveFloat, PositiveInt, Section


class PreferenceConfig(Section):
    """Preference optimisation (TRL) of the ensemble's student on the questions whose labels it was not taught."""

    loss: Literal["sigmoid", "ipo", "hinge"] = Field(
        "sigmoid", description="TRL's loss of a pair; sigmoid is that of DPO (Rafailov et al. 2023)"
    )
    beta: PositiveFloat = Field(0.1, description="how strongly the student is held to what it was (DPO)")
    least_confidence: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.5,
        description="a question is used where the student's own answer has at least this share of its choices",
    )
    epochs: PositiveInt = Field(1, description="passes over the pairs")
    learning_rate: PositiveFloat = Field(
        5e-6, description="peak learning rate; the rest of the training is as in strong.training"
    )
