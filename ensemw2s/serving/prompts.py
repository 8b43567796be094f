"""From what a client sends to token ids, and from token ids to what a client reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ensemw2s.serving.errors import ApiError, invalid
from ensemw2s.serving.protocol import ServedModel
from ensemw2s.serving.schemas import ChatMessage
from ensemw2s.serving.settings import ServeSettings


def encode_text(model: ServedModel, text: str) -> np.ndarray:
    """(p,) int32 token ids, encoded as the run encodes its questions: no special tokens but the configured first one."""
    ids = list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    if model.add_bos:
        ids = [int(model.tokenizer.bos_token_id), *ids]
    return np.asarray(ids, dtype=np.int32)


def completion_prompts(
    model: ServedModel, prompt: str | list[str] | list[int] | list[list[int]]
) -> list[np.ndarray]:
    """The prompts of a completion request; token ids are taken as they are.

    Raises:
        ApiError: no prompt, an empty one, or a token id outside the vocabulary.
    """
    if isinstance(prompt, str):
        found = [encode_text(model, prompt)]
    elif not prompt:
        raise invalid("prompt", "prompt: an empty list has nothing to complete")
    elif isinstance(prompt[0], str):
        found = [encode_text(model, str(text)) for text in prompt]
    else:
        rows: Any = [prompt] if isinstance(prompt[0], int) else prompt
        for row in rows:
            if row and max(row) >= model.vocab_size:
                raise invalid("prompt", f"prompt: token ids must be below {model.vocab_size}, got {max(row)}")
        found = [np.asarray(row, dtype=np.int32) for row in rows]
    if any(len(ids) == 0 for ids in found):
        raise invalid("prompt", "prompt: a prompt without tokens cannot be completed")
    return found


def chat_prompt(model: ServedModel, messages: Sequence[ChatMessage], how: str) -> np.ndarray:
    """The prompt of a chat, ending where the assistant is to speak.

    Args:
        model: whose tokenizer and prompt are used.
        messages: the chat so far.
        how: ``tokenizer`` (the tokenizer's chat template), ``plain`` (see :func:`plain_chat`), or ``auto``: the first
            where there is one.

    Raises:
        ApiError: there is no template, or it refuses the messages.
    """
    template = getattr(model.tokenizer, "chat_template", None)
    if how == "plain" or (how == "auto" and not template):
        return encode_text(model, plain_chat(model.prompt, messages))
    if not template:
        raise invalid(
            "model",
            f"the tokenizer of {model.name} has no chat template: start the server with chat_template=plain",
        )
    from jinja2 import TemplateError

    turns = [{"role": "system" if m.role == "developer" else m.role, "content": m.text} for m in messages]
    try:
        text = model.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise invalid("messages", f"messages: the model's chat template refuses them: {error}") from None
    # The template writes its special tokens itself.
    return np.asarray(
        model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"], dtype=np.int32
    )


def plain_chat(prompt: str, messages: Sequence[ChatMessage]) -> str:
    """A chat as the run's own prompts: every user's message fills the template, the assistant's answers follow.

    >>> plain_chat("Question: {question}\\nAnswer:", [ChatMessage(role="user", content="2 + 2?")])
    'Question: 2 + 2?\\nAnswer:'

    Messages of the system stand before what follows, and turns are separated by an empty line.
    """
    text = ""
    for message in messages:
        if message.role == "assistant":
            text = f"{text.rstrip()} {message.text.strip()}\n\n"
        else:
            filled = prompt.replace("{question}", message.text) if message.role == "user" else message.text
            text = f"{text}{filled}\n\n"
    return text.rstrip()


def check_lengths(
    model: ServedModel,
    prompts: Sequence[np.ndarray],
    max_new: int | None,
    settings: ServeSettings,
    param: str,
) -> int:
    """How many tokens each prompt may be continued by.

    Args:
        max_new: what the client asks for; None is as much as allowed.
        param: ``prompt`` or ``messages``, for errors.

    Raises:
        ApiError: a prompt is too long, or too long together with the answer.
    """
    longest = max(len(p) for p in prompts)
    room = model.context
    if longest > settings.max_prompt_tokens:
        raise invalid(
            param,
            f"{param}: {longest} tokens, this server takes at most {settings.max_prompt_tokens}",
            "context_length_exceeded",
        )
    if max_new is not None and max_new > settings.max_output_tokens:
        raise invalid(
            "max_tokens", f"max_tokens: {max_new}, this server gives at most {settings.max_output_tokens}"
        )
    if room is not None and longest + (1 if max_new is None else max_new) > room:
        raise invalid(
            param,
            f"{param}: {longest} tokens and {max_new or 1} for the answer, the model's context holds {room}",
            "context_length_exceeded",
        )
    if max_new is not None:
        return max_new
    return settings.max_output_tokens if room is None else min(settings.max_output_tokens, room - longest)


def token_text(model: ServedModel, token: int) -> str:
    """One token as text; a token that holds part of a character gives the replacement character."""
    return str(model.tokenizer.decode([token], skip_special_tokens=False))


def check_model(models: dict[str, ServedModel] | Any, name: str) -> ServedModel:
    """The model that a client asks for.

    Raises:
        ApiError: 404.
    """
    found: ServedModel | None = models.get(name)
    if found is None:
        raise ApiError(
            404,
            f"the model {name[:100]!r} does not exist here; there is {', '.join(models)}",
            code="model_not_found",
            param="model",
        )
    return found
