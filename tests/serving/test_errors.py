"""What clients are told when they ask for what cannot be had: OpenAI's shape, the right status, the parameter."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ensemw2s.serving.schemas import ChatRequest, CompletionRequest, LabelRequest

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]


def refused(answer: Any, status: int, param: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["param"] == param
    assert "Traceback" not in answer.text
    return error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (TEXT, {"prompt": "a", "temperature": 3}, "temperature"),
        (TEXT, {"prompt": "a", "temperature": "warm"}, "temperature"),
        (TEXT, {"prompt": "a", "top_p": 0}, "top_p"),
        (TEXT, {"prompt": "a", "n": 0}, "n"),
        (TEXT, {"prompt": "a", "n": 17}, "n"),
        (TEXT, {"prompt": "a", "max_tokens": "5"}, "max_tokens"),
        (TEXT, {"prompt": "a", "max_tokens": 0}, "max_tokens"),
        (TEXT, {"prompt": "a", "max_tokens": 5000}, "max_tokens"),
        (TEXT, {"prompt": "a", "logprobs": 21}, "logprobs"),
        (TEXT, {"prompt": "a", "stop": ["a", ""]}, "stop"),
        (TEXT, {"prompt": "a", "best_of": 2}, "best_of"),
        (TEXT, {"prompt": "a", "suffix": "z"}, "suffix"),
        (TEXT, {"prompt": "a", "echo": True, "stream": True}, "echo"),
        (TEXT, {"prompt": "a", "presence_penalty": 0.5}, "presence_penalty"),
        (TEXT, {"prompt": "a", "logit_bias": {"5": 1}}, "logit_bias"),
        (TEXT, {"prompt": "a", "logit_bias": {"5": "x", "6": "x"}}, "logit_bias"),
        (TEXT, {"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options"),
        (TEXT, {"prompt": "a", "no_such_thing": 1}, "no_such_thing"),
        (TEXT, {"prompt": ""}, "prompt"),
        (TEXT, {"prompt": []}, "prompt"),
        (TEXT, {"prompt": [[1], []]}, "prompt"),
        (TEXT, {"prompt": [-1]}, "prompt"),
        (TEXT, {"prompt": [360]}, "prompt"),
        (TEXT, {"prompt": ["a", 1]}, "prompt"),
        (TEXT, {"prompt": {"text": "a"}}, "prompt"),
        (TEXT, {}, "prompt"),
        (TEXT, {"prompt": "a" * 500}, "prompt"),
        (TEXT, {"prompt": ["a"] * 129}, "prompt"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"role": "tool", "content": "a"}]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        (CHAT, {"messages": [*HI, {"role": "assistant", "content": "a"}]}, "messages"),
        (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, "tools"),
        (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, "response_format"),
        (CHAT, {"messages": HI, "top_logprobs": 3}, "top_logprobs"),
        (CHAT, {"messages": [{"role": "user", "content": "long " * 200}]}, "messages"),
        ("/v1/label", {"input": []}, "input"),
        ("/v1/label", {"input": {"question": "a", "choices": ["one"]}}, "input"),
        ("/v1/label", {"input": [{"question": "a", "choices": ["x", "y"]}] * 129}, "input"),
        ("/v1/label", {"input": {"question": "a", "choices": ["x"] * 2049}}, "input"),
        ("/v1/label", {"input": [{"question": "a", "choices": ["x"] * 1025}] * 2}, "input"),
        # Read once a choice, before its length is known.
        ("/v1/label", {"input": {"question": "a" * 2001, "choices": ["x"] * 500}}, "input"),
        ("/v1/label", {"question": "a"}, "input"),
        (TEXT, {"prompt": "a", **{f"unknown{i}": i for i in range(1000)}}, "unknown0"),
    ],
)
def test_a_bad_parameter_is_named(client: Any, path: str, body: dict[str, Any], param: str) -> None:
    error = refused(client.post(path, {"model": "ensemble", **body}), 400, param)
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 400


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (CompletionRequest, {"prompt": [1.5] * 1000}),
        (CompletionRequest, {"prompt": [[1.5] * 1000] * 3}),
        (CompletionRequest, {"prompt": [[1]] * 1000 + [[1.5] * 1000]}),
        (CompletionRequest, {"prompt": "a", "stop": [1] * 16}),
        (CompletionRequest, {"prompt": "a", **{f"unknown{i}": i for i in range(1000)}}),
        (ChatRequest, {"messages": [{}] * 1000}),
        (ChatRequest, {"messages": [{"role": "user", "content": [1] * 1000}]}),
        (LabelRequest, {"input": [1] * 1000}),
        (LabelRequest, {"input": {"question": "a", "choices": [1] * 1000}}),
    ],
)
def test_many_mistakes_are_few_errors(schema: type[BaseModel], body: dict[str, Any]) -> None:
    """Thousands would be made, and sorted, while every other request waits."""
    with pytest.raises(ValidationError) as caught:
        schema.model_validate({"model": "ensemble", **body})
    assert caught.value.error_count() <= 8


def test_neutral_values_are_taken(client: Any) -> None:
    body = {
        "model": "ensemble",
        "prompt": "a",
        "max_tokens": 1,
        "best_of": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "user": "somebody",
        "suffix": None,
        "logprobs": None,
        "stop": None,
        "seed": -5,
    }
    assert client.post(TEXT, body).status_code == 200


def test_models_paths_and_methods(client: Any) -> None:
    error = refused(client.post(TEXT, {"model": "gpt", "prompt": "a"}), 404, "model")
    assert error["code"] == "model_not_found"
    refused(client.get("/v1/models/gpt"), 404, "model")
    refused(client.get("/v1/nothing"), 404)
    refused(client.get(TEXT), 405)


@pytest.mark.parametrize("text", [b"{", b"", b"[1]", b'"a"', b"\xff\xfe", b'{"prompt": NaN}', b"[" * 20000])
def test_what_is_no_json_object(client: Any, text: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = client.request("POST", TEXT, content=text, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


def test_half_a_surrogate_is_no_text(client: Any) -> None:
    content = b'{"model": "ensemble", "prompt": "\\ud800"}'
    answer = client.request("POST", TEXT, content=content, headers={"content-type": "application/json"})
    refused(answer, 400, "prompt")


def test_a_failure_tells_the_client_nothing(
    client: Any, backend: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*args: Any) -> Any:
        raise ZeroDivisionError("the secret text of a user")

    monkeypatch.setattr(backend, "score", fail)
    body = {"model": "ensemble", "prompt": "abc", "echo": True, "logprobs": 1, "max_tokens": 0}
    answer = client.post(TEXT, body)
    error = refused(answer, 500)
    assert answer.headers["x-request-id"] in error["message"]
    assert "secret" not in answer.text
    logged = caplog.text
    assert "ZeroDivisionError" in logged
    assert "secret" not in logged
