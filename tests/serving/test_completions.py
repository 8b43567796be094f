"""Completions: the members' vote as OpenAI's clients see it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ensemw2s import api
from ensemw2s.core.voting import mixture
from ensemw2s.models.storage import load_saved
from ensemw2s.serving.backend import VoteBackend

PROMPT = "Question: the cat in the barn\nAnswer:"
Complete = Callable[..., dict[str, Any]]


@pytest.fixture
def complete(client: Any) -> Complete:
    """Greedy completions of the ensemble, unless told otherwise."""

    def ask(**body: Any) -> dict[str, Any]:
        body = {"model": "ensemble", "prompt": PROMPT, "temperature": 0, **body}
        answer = client.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    return ask


@pytest.fixture
def streamed(client: Any) -> Callable[..., list[dict[str, Any]]]:
    """The events of a streamed completion."""

    def ask(**body: Any) -> list[dict[str, Any]]:
        body = {"model": "ensemble", "prompt": PROMPT, "temperature": 0, "stream": True, **body}
        answer = client.post("/v1/completions", body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    return ask


@pytest.fixture(scope="module")
def members(served_run: Path, backend: VoteBackend) -> list[Any]:
    """The ensemble's models, loaded apart from the server."""
    folders = [ref.folder for ref in backend._run.ensembles["ensemble"].refs]
    assert len(folders) == 2
    return [load_saved(folder, device="cpu", dtype=torch.float32) for folder in folders]


def dense(members: list[Any], alphas: np.ndarray, ids: list[int]) -> np.ndarray:
    """(n - 1, V) log of the voted distributions after each token but the last, straight from the models."""
    with torch.no_grad():
        rows = [m(torch.tensor([ids])).logits[0, :-1].float().softmax(-1).numpy() for m in members]
    return np.log(mixture(np.stack(rows), alphas))


def encode(backend: VoteBackend, text: str) -> list[int]:
    ids: list[int] = backend.models["ensemble"].tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def test_it_is_what_the_ensemble_says_without_a_server(served_run: Path, complete: Complete) -> None:
    expected = api.load_ensemble(served_run).generate(PROMPT, raw=True, max_new_tokens=12).text
    answer = complete(max_tokens=12, stop="\n")
    assert answer["object"] == "text_completion"
    assert answer["model"] == "ensemble"
    assert answer["choices"][0]["text"].strip() == expected
    assert answer["ensemw2s"] == {"members": 2, "voted": 2}


def test_the_student_is_an_ensemble_of_one(complete: Complete) -> None:
    answer = complete(model="student", max_tokens=4)
    assert answer["ensemw2s"] == {"members": 1, "voted": 1}


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 20},
        {"max_tokens": 20, "n": 3, "temperature": 1.0, "seed": 5},
        {"max_tokens": 20, "prompt": [PROMPT, "hiss low roar"], "temperature": 0.8, "top_p": 0.9, "seed": 1},
        {"max_tokens": 20, "logprobs": 3, "stop": ["o", " far"], "temperature": 1.0, "seed": 2},
    ],
)
def test_streamed_is_the_same(complete: Complete, streamed: Any, body: dict[str, Any]) -> None:
    whole = complete(**body)
    events = streamed(**body, stream_options={"include_usage": True})
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert len({event["id"] for event in events}) == 1
    for choice in whole["choices"]:
        parts = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert "".join(part["text"] for part in parts) == choice["text"]
        assert [p["finish_reason"] for p in parts if p["finish_reason"]] == [choice["finish_reason"]]
        if choice["logprobs"] is not None:
            for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
                joined = [value for part in parts if part["logprobs"] for value in part["logprobs"][key]]
                assert joined == choice["logprobs"][key]


def test_stop_strings_are_no_part_of_the_answer(complete: Complete) -> None:
    free = complete(max_tokens=20)["choices"][0]
    stop = free["text"][6:8]
    cut = complete(max_tokens=20, stop=[stop, "never there"], logprobs=0)["choices"][0]
    assert cut["text"] == free["text"][: free["text"].index(stop)]
    assert cut["finish_reason"] == "stop"
    assert "".join(cut["logprobs"]["tokens"]).startswith(cut["text"])


def test_length_and_usage(complete: Complete, backend: VoteBackend) -> None:
    answer = complete(max_tokens=3, n=2, temperature=1.0, seed=0, stop=[])
    n = len(encode(backend, PROMPT))
    assert [c["finish_reason"] for c in answer["choices"]] == ["length", "length"]
    assert answer["usage"] == {"prompt_tokens": n, "completion_tokens": 6, "total_tokens": n + 6}


def test_the_seed_decides(complete: Complete) -> None:
    body = {"max_tokens": 12, "temperature": 1.0, "n": 3}
    first, again, other = (complete(**body, seed=seed)["choices"] for seed in (7, 7, 70))
    assert first == again
    assert [c["text"] for c in first] != [c["text"] for c in other]
    assert len({c["text"] for c in first}) > 1
    # n does not change the first answer.
    assert complete(max_tokens=12, temperature=1.0, seed=7)["choices"][0]["text"] == first[0]["text"]


def test_token_ids_are_the_same_prompt(complete: Complete, backend: VoteBackend) -> None:
    texts = [PROMPT, "Question: the dog in the cave\nAnswer:"]
    from_text = complete(prompt=texts, max_tokens=6)["choices"]
    from_ids = complete(prompt=[encode(backend, t) for t in texts], max_tokens=6)["choices"]
    assert from_text == from_ids
    assert (
        complete(prompt=encode(backend, texts[1]), max_tokens=6)["choices"][0]["text"] == from_text[1]["text"]
    )


class TestEcho:
    TEXTS = ("Question: the eel in the lake\nAnswer: roar far", "the ant", "hen hen hen hen hen hen hen hen")

    def test_scores_are_those_of_the_models(
        self, complete: Complete, backend: VoteBackend, members: list[Any]
    ) -> None:
        ids = [encode(backend, t) for t in self.TEXTS]
        alphas = backend._run.ensembles["ensemble"].alphas
        answer = complete(prompt=ids, echo=True, logprobs=2, max_tokens=0)
        tokenizer = backend.models["ensemble"].tokenizer
        for row, choice in zip(ids, answer["choices"], strict=True):
            expected = dense(members, alphas, row)
            got = choice["logprobs"]
            assert got["token_logprobs"][0] is None
            own = expected[np.arange(len(row) - 1), row[1:]]
            np.testing.assert_allclose(got["token_logprobs"][1:], own, atol=1e-4)
            best = [max(top.values()) for top in got["top_logprobs"][1:]]
            np.testing.assert_allclose(best, expected.max(-1), atol=1e-4)
            names = [max(top, key=top.__getitem__) for top in got["top_logprobs"][1:]]
            assert names == [tokenizer.decode([int(i)]) for i in expected.argmax(-1)]
            ends = [*got["text_offset"][1:], len(choice["text"])]
            pieces = [choice["text"][a:b] for a, b in zip(got["text_offset"], ends, strict=True)]
            assert "".join(pieces) == choice["text"]
            # Letters and spaces are a character a byte: the pieces are the tokens.
            assert pieces == got["tokens"]
        assert [c["text"] for c in answer["choices"]] == list(self.TEXTS)
        assert answer["usage"]["completion_tokens"] == 0

    def test_one_token_more_as_an_evaluation_harness_asks(
        self, complete: Complete, backend: VoteBackend, members: list[Any]
    ) -> None:
        ids = [encode(backend, t) for t in self.TEXTS]
        alphas = backend._run.ensembles["ensemble"].alphas
        answer = complete(prompt=ids, echo=True, logprobs=1, max_tokens=1, seed=1234)
        for row, choice in zip(ids, answer["choices"], strict=True):
            got = choice["logprobs"]
            assert len(got["token_logprobs"]) == len(row) + 1
            # "Greedy" there is exact equality with the best of the top log-probabilities.
            pairs = zip(got["token_logprobs"][1:-1], got["top_logprobs"][1:-1], strict=True)
            greedy = [value == max(top.values()) for value, top in pairs]
            assert greedy == (dense(members, alphas, row).argmax(-1) == row[1:]).tolist()

    def test_one_token_more_is_there_when_the_text_ends(
        self, complete: Complete, backend: VoteBackend
    ) -> None:
        """The harness leaves the last token out unseen: it must be there, be it end-of-text."""
        text = PROMPT + complete(model="student", max_tokens=20)["choices"][0]["text"]
        ids = encode(backend, text)
        choice = complete(model="student", prompt=[ids], echo=True, logprobs=1, max_tokens=1)["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["text"] == text
        assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1

    def test_an_answer_scored_afterwards_has_its_own_probabilities(
        self, complete: Complete, backend: VoteBackend
    ) -> None:
        ids = encode(backend, PROMPT)
        said = complete(max_tokens=8, logprobs=0)["choices"][0]
        again = complete(prompt=ids, max_tokens=8, logprobs=0, echo=True)["choices"][0]
        assert again["text"] == PROMPT + said["text"]
        assert again["logprobs"]["tokens"][len(ids) :] == said["logprobs"]["tokens"]
        whole = ids + encode(backend, said["text"])
        scored = complete(prompt=whole, max_tokens=0, logprobs=0, echo=True)["choices"][0]["logprobs"]
        if scored["tokens"] == again["logprobs"]["tokens"]:
            np.testing.assert_allclose(
                scored["token_logprobs"][1:], again["logprobs"]["token_logprobs"][1:], atol=1e-4
            )
        else:
            # The same text may have other tokens than were voted; then only the prompt's can be compared.
            assert scored["token_logprobs"][: len(ids)] == again["logprobs"]["token_logprobs"][: len(ids)]

    @pytest.mark.parametrize("model", ["ensemble", "student"])
    def test_the_alternatives_that_are_shown_do_not_change_the_scores(
        self, complete: Complete, model: str
    ) -> None:
        texts = list(self.TEXTS)
        asked = [
            complete(model=model, prompt=texts, echo=True, logprobs=n, max_tokens=0)["choices"]
            for n in (0, 1, 3)
        ]
        for choices in zip(*asked, strict=True):
            first, *others = [choice["logprobs"]["token_logprobs"] for choice in choices]
            for other in others:
                np.testing.assert_allclose(first[1:], other[1:], atol=1e-6)

    def test_a_single_token(self, complete: Complete) -> None:
        choice = complete(prompt=[5], echo=True, logprobs=1, max_tokens=0)["choices"][0]
        assert choice["logprobs"]["token_logprobs"] == [None]


def test_many_at_once_are_the_same_as_one_by_one(client: Any, complete: Complete) -> None:
    prompts = [f"the {a} in the {p}" for a in ("ant", "cat", "fox", "jay") for p in ("den", "lake", "shed")]
    bodies = [{"model": "ensemble", "prompt": p, "temperature": 0, "max_tokens": 10} for p in prompts]
    futures = [client.begin("POST", "/v1/completions", json=body) for body in bodies]
    together = [f.result(60).json()["choices"][0]["text"] for f in futures]
    assert together == [complete(prompt=p, max_tokens=10)["choices"][0]["text"] for p in prompts]
