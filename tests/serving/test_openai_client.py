"""The official client against a real server on a real socket."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from ensemw2s.serving.command import listen

KEY = "a-key-of-somebody-1"
PROMPT = "Question: the cat in the barn\nAnswer:"
CHAT: list[Any] = [{"role": "user", "content": "the cat in the barn"}]


@pytest.fixture(scope="module")
def url(serve_real: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> str:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY + "\n", encoding="utf-8")
    return serve_real(api_keys=keys, max_body_bytes=5000)


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_models(api: openai.OpenAI) -> None:
    assert [m.id for m in api.models.list()] == ["ensemble", "student"]
    assert api.models.retrieve("student").owned_by == "ensemw2s"


def test_completions(api: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "ensemble", "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
    whole = api.completions.create(**options, logprobs=2, stop=["\n"])
    chunks = list(api.completions.create(**options, stop=["\n"], stream=True))
    assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
    assert whole.choices[0].logprobs is not None
    assert len(whole.choices[0].logprobs.tokens or []) > 0
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > 0


def test_chat(api: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "student", "messages": CHAT, "max_tokens": 12, "seed": 4, "n": 2}
    whole = api.chat.completions.create(**options, logprobs=True, top_logprobs=1)
    stream = api.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    texts, usage = ["", ""], None
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [c.message.content for c in whole.choices]
    assert usage == whole.usage


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "gpt"}, openai.NotFoundError),
        ({"temperature": 9}, openai.BadRequestError),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, openai.BadRequestError),
        ({"messages": [{"role": "user", "content": "a" * 6000}]}, openai.APIStatusError),
    ],
)
def test_errors_are_the_clients_own(
    api: openai.OpenAI, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error) as caught:
        api.chat.completions.create(**{"model": "ensemble", "messages": CHAT, **options})
    assert isinstance(caught.value, openai.APIStatusError)
    assert caught.value.body


def test_a_wrong_key(url: str) -> None:
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


@pytest.mark.parametrize("stream", [True, False])
def test_a_closed_connection_frees_its_rows(
    api: openai.OpenAI, backend: Any, held: Any, stream: bool
) -> None:
    options: dict[str, Any] = {"model": "ensemble", "prompt": PROMPT, "max_tokens": 100, "n": 4}
    impatient = api.with_options(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        impatient.completions.create(**options, stream=stream)
    wait_until(lambda: backend._loop.texts == 0)
    held()
    wait_until(lambda: backend.health().rows == 0)
    assert api.completions.create(**{**options, "n": 1, "max_tokens": 1}).choices


def test_a_stream_that_is_left_early_frees_its_row(api: openai.OpenAI, backend: Any) -> None:
    before = backend._voters["ensemble"].engine.counts.decisions
    stream = api.completions.create(model="ensemble", prompt=PROMPT, max_tokens=110, n=16, stream=True)
    next(iter(stream))
    stream.close()
    wait_until(lambda: backend._loop.texts == 0 and backend.health().rows == 0)
    assert backend._voters["ensemble"].engine.counts.decisions > before


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_the_address_must_be_free(url: str) -> None:
    from ensemw2s.errors import UserError

    port = int(url.rpartition(":")[2].partition("/")[0])
    with pytest.raises(UserError, match="--port"):
        listen("127.0.0.1", port)
