"""What clients may send, as OpenAI names it. A parameter that is not named here is refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ensemw2s.core.utf8 import is_text
from ensemw2s.serving.errors import ApiError, unsupported


def _writable(text: str) -> str:
    if not is_text(text):
        raise ValueError("this text holds half a surrogate pair, which is no character")
    return text


Text = Annotated[str, AfterValidator(_writable)]
TokenId = Annotated[int, Field(ge=0)]
# A list ends at its first wrong item: a million of them would be a million errors, made in the event loop.
Texts = Annotated[list[Text], Field(fail_fast=True)]
TokenIds = Annotated[list[TokenId], Field(fail_fast=True)]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Stop = Text | Annotated[list[Text], Field(fail_fast=True, max_length=16)] | None


class Body(BaseModel):
    """A JSON object; numbers are numbers, not texts of numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _first_unknown(cls, data: Any) -> Any:
        """Leave one name that is not known, which is refused: one error says it, however many there are."""
        if not isinstance(data, dict):
            return data
        unknown = [name for name in data if name not in cls.model_fields]
        if len(unknown) < 2:
            return data
        dropped = set(unknown[1:])
        return {name: value for name, value in data.items() if name not in dropped}


class StreamOptions(Body):
    """What a stream carries beside text."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Shared(Body):
    """What completions and chat share. Some parameters are taken at their neutral value only."""

    model: Text = Field(description="`ensemble` or `student`")
    n: Count | None = 1
    temperature: Temperature | None = 1.0
    top_p: TopP | None = 1.0
    seed: Seed | None = None
    stop: Stop = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: Text | None = Field(None, description="taken and not used")
    presence_penalty: float | None = Field(None, description="0 only")
    frequency_penalty: float | None = Field(None, description="0 only")
    logit_bias: dict[str, Any] | None = Field(None, description="empty only")

    def check(self) -> None:
        """Refuse what cannot be honoured.

        Raises:
            ApiError: names the parameter.
        """
        for name in ("presence_penalty", "frequency_penalty", "logit_bias"):
            if getattr(self, name):
                raise unsupported(name)
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "stream_options goes with stream", code="invalid_value", param="stream_options"
            )

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings.

        Raises:
            ApiError: an empty one.
        """
        found = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in found:
            raise ApiError(
                400, "stop: an empty string would end every text", code="invalid_value", param="stop"
            )
        return found


class CompletionRequest(Shared):
    """``/v1/completions``."""

    prompt: Text | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    logprobs: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = False
    best_of: Count | None = Field(None, description="n only")
    suffix: Text | None = Field(None, description="null only")

    def check(self) -> None:
        super().check()
        if self.suffix:
            raise unsupported("suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", "other than n is not supported here")
        if self.echo and self.stream:
            raise unsupported("echo", "with stream is not supported here")
        if self.max_tokens == 0 and not self.echo:
            raise ApiError(400, "max_tokens 0 goes with echo only", code="invalid_value", param="max_tokens")


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], Field(fail_fast=True)]
    name: Text | None = Field(None, description="taken and not used")
    refusal: None = None

    @property
    def text(self) -> str:
        """The message's text."""
        return self.content if isinstance(self.content, str) else "".join(p.text for p in self.content)


class ChatRequest(Shared):
    """``/v1/chat/completions``."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1)]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: dict[str, Any] | None = Field(None, description='{"type": "text"} only')

    def check(self) -> None:
        super().check()
        if self.response_format is not None and self.response_format != {"type": "text"}:
            raise unsupported("response_format", 'other than {"type": "text"} is not supported here')
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs goes with logprobs", code="invalid_value", param="top_logprobs")
        if self.messages[-1].role == "assistant":
            raise ApiError(
                400, "the last message must not be the assistant's", code="invalid_value", param="messages"
            )


class Question(Body):
    """A question to be labelled."""

    question: Annotated[Text, Field(min_length=1)]
    choices: (
        Annotated[list[Annotated[Text, Field(min_length=1)]], Field(fail_fast=True, min_length=2)] | None
    ) = Field(None, description="left out: the answer is generated")
    id: Text | None = Field(None, description="given back with the label")


class LabelRequest(Body):
    """``/v1/label``: one question, or a list of them."""

    model: Text = "ensemble"
    input: Question | Annotated[list[Question], Field(fail_fast=True, min_length=1)]

    @property
    def questions(self) -> list[Question]:
        """The questions."""
        return self.input if isinstance(self.input, list) else [self.input]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An answer that is an error."""

    error: ErrorDetail
