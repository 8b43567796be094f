"""What the page may ask."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ensemw2s.serving.errors import ApiError, invalid
from ensemw2s.serving.protocol import ServedModel
from ensemw2s.serving.schemas import Body, Count, Text, TokenIds

Weight = Annotated[float, Field(ge=0.0, le=1000.0)]
Weights = Annotated[list[Weight | None], Field(fail_fast=True, max_length=1024)]


class Weighted(Body):
    """A question to some of a model's members.

    Attributes:
        model: of whom.
        weights: one a member, null or 0 for one that does not vote; left out: the run's own.
    """

    model: Text = "ensemble"
    weights: Weights | None = None

    def votes(self, model: ServedModel) -> tuple[float, ...] | None:
        """(T,) weights of which the largest is 1, or None for the run's own.

        Raises:
            ApiError: another number of weights than of members, or nobody votes.
        """
        if self.weights is None:
            return None
        if len(self.weights) != len(model.members):
            raise invalid(
                "weights",
                f"weights: {len(self.weights)} for the {len(model.members)} members of {model.name}: give one each",
            )
        values = [w or 0.0 for w in self.weights]
        largest = max(values)
        if largest == 0.0:
            raise invalid("weights", "weights: at least one member must vote")
        # Only their proportions count; the smallest numbers would lose theirs in products with probabilities.
        return tuple(value / largest for value in values)


class AnswerRequest(Weighted):
    """A text to be continued, token by token.

    Attributes:
        prompt: the text itself, or
        question: what fills the run's own prompt.
        max_tokens: longest answer; the run's own where left out.
        top: most probable tokens to report of each member and of the vote.
        forced: token ids that the answer begins with, whatever the vote says.
        earlier: token ids of an answer given before, behind the forced ones: kept up to the first that the vote would
            not give (or that ended the answer), so that only what differs is decoded anew.
    """

    prompt: Annotated[Text, Field(min_length=1)] | None = None
    question: Annotated[Text, Field(min_length=1)] | None = None
    max_tokens: Count | None = None
    top: Count = 5
    forced: TokenIds = Field(default_factory=list)
    earlier: TokenIds = Field(default_factory=list)

    def check(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            ApiError: both or none of prompt and question.
        """
        if (self.prompt is None) == (self.question is None):
            raise ApiError(400, "give either a prompt or a question", code="invalid_value", param="prompt")


class ChooseRequest(Weighted):
    """A question with choices."""

    question: Annotated[Text, Field(min_length=1)]
    choices: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(fail_fast=True, min_length=2)]
