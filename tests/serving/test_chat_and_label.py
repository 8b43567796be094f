"""Chats in the run's own prompt, and labels with everybody's vote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ensemw2s import api
from ensemw2s.data.samples import Sample
from ensemw2s.engine.context import RunContext
from ensemw2s.serving.app import build_app
from ensemw2s.serving.backend import VoteBackend, label_batches, local_backend
from ensemw2s.serving.members import quiet
from ensemw2s.serving.opening import open_run
from ensemw2s.serving.prompts import plain_chat
from ensemw2s.serving.schemas import ChatMessage
from ensemw2s.serving.settings import ServeSettings
from tests.serving.conftest import Client

SOUNDS = ["buzz loud", "hiss low", "roar far", "chirp high"]


def test_a_chat_is_the_runs_prompt(client: Any) -> None:
    body = {"model": "ensemble", "temperature": 0, "max_tokens": 8}
    messages = [{"role": "user", "content": [{"type": "text", "text": "the cat in the barn"}]}]
    chat = client.post(
        "/v1/chat/completions", {**body, "messages": messages, "logprobs": True, "top_logprobs": 2}
    )
    assert chat.status_code == 200, chat.text
    choice = chat.json()["choices"][0]
    prompt = "Question: the cat in the barn\nAnswer:"
    text = client.post("/v1/completions", {**body, "prompt": prompt}).json()["choices"][0]["text"]
    assert choice["message"] == {"role": "assistant", "content": text, "refusal": None}
    for entry in choice["logprobs"]["content"]:
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 2
        assert entry["logprob"] == entry["top_logprobs"][0]["logprob"]


def test_a_streamed_chat_is_the_same(client: Any) -> None:
    body = {
        "model": "ensemble",
        "messages": [{"role": "user", "content": "the cat in the barn"}],
        "max_completion_tokens": 12,
        "temperature": 0.7,
        "seed": 3,
        "n": 2,
        "logprobs": True,
    }
    whole = client.post("/v1/chat/completions", body).json()
    lines = client.post("/v1/chat/completions", {**body, "stream": True}).text.splitlines()
    events = [
        json.loads(line.removeprefix("data: ")) for line in lines if line and not line.endswith("[DONE]")
    ]
    for choice in whole["choices"]:
        parts = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert parts[0]["delta"]["role"] == "assistant"
        assert "".join(p["delta"].get("content", "") for p in parts) == choice["message"]["content"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]
        content = [entry for part in parts if part["logprobs"] for entry in part["logprobs"]["content"]]
        assert content == choice["logprobs"]["content"]


def test_turns_of_a_chat() -> None:
    turns = [("system", "Be brief."), ("user", "2 + 2?"), ("assistant", " 4"), ("user", "3 + 3?")]
    messages = [ChatMessage(role=role, content=text) for role, text in turns]  # type: ignore[arg-type]
    expected = "Be brief.\n\nQ: 2 + 2?\nA: 4\n\nQ: 3 + 3?\nA:"
    assert plain_chat("Q: {question}\nA:", messages) == expected


def test_a_chat_template_is_used_where_there_is_one(
    serve: Any, backend: VoteBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = backend.models["ensemble"].tokenizer
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    body = {
        "model": "ensemble",
        "messages": [{"role": "user", "content": "hen"}],
        "max_tokens": 5,
        "temperature": 0,
    }
    templated = serve().post("/v1/chat/completions", body).json()
    plain = serve(chat_template="plain").post("/v1/chat/completions", body).json()
    n = len(tokenizer("user: hen\na:")["input_ids"])
    assert templated["usage"]["prompt_tokens"] == n
    assert plain["usage"]["prompt_tokens"] != n


def test_no_template_where_one_is_demanded(serve: Any) -> None:
    body = {"model": "ensemble", "messages": [{"role": "user", "content": "hen"}]}
    answer = serve(chat_template="tokenizer").post("/v1/chat/completions", body)
    assert answer.status_code == 400
    assert "chat template" in answer.json()["error"]["message"]


class TestLabel:
    QUESTIONS = ("the cat in the barn", "the hen in the cave", "the lynx in the tree")

    def test_choices_are_those_of_the_library(self, client: Any, served_run: Path) -> None:
        samples = [Sample(f"s{i}", q, tuple(SOUNDS), None) for i, q in enumerate(self.QUESTIONS)]
        table = api.load_ensemble(served_run).label(samples).to_pylist()
        questions = [{"id": s.id, "question": s.question, "choices": SOUNDS} for s in samples]
        answer = client.post("/v1/label", {"input": questions})
        assert answer.status_code == 200, answer.text
        for row, label in zip(table, answer.json()["data"], strict=True):
            assert (label["id"], label["choice"], label["label"]) == (
                row["id"],
                row["label"],
                row["label_text"],
            )
            assert label["confidence"] == pytest.approx(row["confidence"], abs=1e-6)
            assert list(label["votes"].values()) == row["votes"]
            assert sum(label["scores"]) == pytest.approx(1.0)
            assert max(label["scores"]) == pytest.approx(label["confidence"])
            assert label["scores"].index(max(label["scores"])) == label["choice"]

    def test_one_question_by_the_student(self, client: Any) -> None:
        body = {"model": "student", "input": {"question": self.QUESTIONS[0], "choices": SOUNDS}}
        answer = client.post("/v1/label", body).json()
        assert len(answer["data"]) == 1
        assert list(answer["data"][0]["votes"].values()) == [answer["data"][0]["choice"]]
        assert answer["ensemw2s"] == {"members": 1, "voted": 1}

    def test_a_question_without_choices_is_answered(self, client: Any, served_run: Path) -> None:
        expected = api.load_ensemble(served_run).generate(self.QUESTIONS[0])
        mixed = [{"question": self.QUESTIONS[0]}, {"question": self.QUESTIONS[1], "choices": SOUNDS}]
        answer = client.post("/v1/label", {"input": mixed}).json()
        free, chosen = answer["data"]
        assert (free["choice"], free["label"]) == (None, expected.text)
        assert free["confidence"] == pytest.approx(expected.confidence, rel=1e-5)
        assert chosen["choice"] in range(4)
        # Tokens of the answer that was generated, end-of-text or the stop string among them.
        assert answer["usage"]["completion_tokens"] >= max(1, len(expected.text.split()))
        only = client.post("/v1/label", {"input": mixed[1]}).json()["usage"]
        assert only["completion_tokens"] == 0

    def test_a_question_that_is_too_long_is_the_clients_mistake(self, client: Any) -> None:
        body = {"input": {"question": "cat " * 200, "choices": SOUNDS}}
        answer = client.post("/v1/label", body)
        assert answer.status_code == 400
        assert "max_length" in answer.json()["error"]["message"]

    def test_questions_are_scored_in_batches_of_choices(self) -> None:
        def sample(n: int, characters: int = 1) -> Sample:
            return Sample("s", "q" * characters, ("x",) * n, None)

        few, many, long = sample(4), sample(300), sample(2, 2**17)
        assert [list(b) for b in label_batches([])] == []
        assert [len(b) for b in label_batches([few] * 70)] == [32, 32, 6]
        assert [list(b) for b in label_batches([few, many, few, few])] == [[0], [1], [2, 3]]
        assert [list(b) for b in label_batches([few, long, few])] == [[0], [1], [2]]

    def test_a_student_has_no_temperature(self, served_run: Path) -> None:
        """Members do (vote.calibrate); the student's own answers are not changed by theirs."""
        run = open_run(served_run)
        vote = run.ctx.config.vote.model_copy(update={"calibrate": True})
        calibrated = RunContext(
            run.ctx.config.model_copy(update={"vote": vote}), run.ctx.store, run.ctx.report
        )
        body = {"question": self.QUESTIONS[0], "choices": SOUNDS}
        scores: dict[tuple[str, bool], list[float]] = {}
        for ctx in (run.ctx, calibrated):
            settings = ServeSettings()
            backend = local_backend(replace(run, ctx=ctx), settings)
            client = Client(build_app(backend, settings))
            try:
                for model in ("student", "ensemble"):
                    answer = client.post("/v1/label", {"model": model, "input": body})
                    scores[model, ctx is calibrated] = answer.json()["data"][0]["scores"]
            finally:
                client.run(backend.close(5.0))
                client.close()
        assert scores["student", True] == pytest.approx(scores["student", False], abs=1e-6)
        assert scores["ensemble", True] != pytest.approx(scores["ensemble", False], abs=1e-3)

    def test_label_models_that_look_at_all_questions_are_refused(
        self, served_run: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        run = open_run(served_run)
        vote = run.ctx.config.vote.model_copy(update={"label_model": "glad"})
        ctx = RunContext(run.ctx.config.model_copy(update={"vote": vote}), run.ctx.store, quiet)
        settings = ServeSettings()
        backend = local_backend(replace(run, ctx=ctx), settings)
        assert "ensemble: vote.label_model glad" in caplog.text
        client = Client(build_app(backend, settings))
        try:
            question = {"question": self.QUESTIONS[0], "choices": SOUNDS}
            answer = client.post("/v1/label", {"input": [question, {"question": self.QUESTIONS[1]}]})
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input")
            assert "vote.label_model glad" in answer.json()["error"]["message"]
            # One member needs no label model, and what is generated is voted token by token.
            assert client.post("/v1/label", {"model": "student", "input": question}).status_code == 200
            assert client.post("/v1/label", {"input": {"question": self.QUESTIONS[1]}}).status_code == 200
        finally:
            client.run(backend.close(5.0))
            client.close()


def test_models_are_described(client: Any) -> None:
    listed = client.get("/v1/models").json()["data"]
    assert [m["id"] for m in listed] == ["ensemble", "student"]
    ensemble = client.get("/v1/models/ensemble").json()
    assert ensemble == listed[0]
    assert ensemble["context_length"] == 128
    assert sum(m["weight"] for m in ensemble["members"]) == pytest.approx(1.0)
