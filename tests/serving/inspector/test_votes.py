"""Answers and choices voted with other weights, as the page at ``/`` asks for them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest

from ensemw2s.serving.backend import VoteBackend
from ensemw2s.serving.inspector.plans import question_prompt
from tests.serving.conftest import Client

CHOICES = ["buzz loud", "hiss low", "roar far", "chirp high"]
QUESTION = "the cat in the barn"
PROMPT = f"Question: {QUESTION}\nAnswer:"
WEIGHTS = ([None, 1.0], [1.0, None], [3.0, 1.0])


def answer(client: Client, **body: Any) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """The opening, the tokens and the end of an answer."""
    if "prompt" not in body:
        body.setdefault("question", QUESTION)
    reply = client.post("/inspector/answer", body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"].startswith("text/event-stream")
    parts = reply.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    events = [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]
    assert [e["type"] for e in events] == ["begin", *["token"] * (len(events) - 2), "end"]
    return events[0], events[1:-1], events[-1]


def ids(tokens: list[dict[str, Any]]) -> list[int]:
    return [token["id"] for token in tokens]


class TestAnswer:
    @pytest.mark.parametrize("model", ["ensemble", "student"])
    def test_it_is_the_endpoints_own(self, client: Client, model: str) -> None:
        begin, tokens, end = answer(client, model=model, prompt=PROMPT, max_tokens=9, top=4)
        assert (begin["prompt"], begin["kept"], begin["forced"]) == (PROMPT, 0, 0)
        body = {"model": model, "prompt": PROMPT, "max_tokens": 9, "temperature": 0, "logprobs": 4}
        choice = client.post(
            "/v1/completions", {**body, "stop": client.get("/inspector/run").json()["stop"]}
        ).json()
        (choice,) = choice["choices"]
        assert end["text"] == choice["text"]
        values = choice["logprobs"]["token_logprobs"]
        assert np.log([t["probability"] for t in tokens[: len(values)]]) == pytest.approx(values, abs=1e-9)

    def test_a_question_is_asked_in_the_runs_prompt(self, client: Client) -> None:
        begin, tokens, end = answer(client)
        assert begin["prompt"] == PROMPT
        asked = answer(client, prompt=PROMPT, max_tokens=6)
        assert (ids(tokens), end["text"]) == (ids(asked[1]), asked[2]["text"])

    def test_the_vote_is_the_members_mixture(self, client: Client) -> None:
        begin, tokens, end = answer(client, top=20, max_tokens=4)
        assert end["ensemw2s"] == {"members": 2, "voted": 2}
        for token in tokens:
            shares = [w * say["voted"] for w, say in zip(begin["weights"], token["members"], strict=True)]
            assert token["probability"] == pytest.approx(sum(shares), abs=1e-6)
            assert token["top"][0][0] == token["id"]
            for say in token["members"]:
                chances = [chance for _, _, chance in say["top"]]
                # What they sent: the run's vote.top_k.
                assert len(chances) == 8
                assert chances == sorted(chances, reverse=True)
                said = {t: c for t, _, c in say["top"]}
                assert said.get(token["id"], say["voted"]) == say["voted"]

    def test_a_member_that_is_switched_off_does_not_vote(self, client: Client) -> None:
        for place in (0, 1):
            weights = [None, None]
            weights[place] = 0.5
            begin, tokens, end = answer(client, weights=weights)
            assert begin["weights"] == [1.0 - place, float(place)]
            for token in tokens:
                assert token["members"][1 - place] is None
                assert token["probability"] == pytest.approx(token["members"][place]["voted"], abs=1e-12)
                assert token["members"][place]["top"][0][0] == token["id"]
            assert end["ensemw2s"] == {"members": 2, "voted": 1}

    def test_only_the_proportions_of_weights_count(self, client: Client) -> None:
        own = [m["weight"] for m in client.get("/inspector/run").json()["models"][0]["members"]]
        _, tokens, _ = answer(client)
        for factor in (1.0, 7.0, 1e-300):
            _, again, _ = answer(client, weights=[w * factor for w in own])
            assert ids(again) == ids(tokens)
            assert [t["probability"] for t in again] == pytest.approx(
                [t["probability"] for t in tokens], rel=1e-9
            )

    def test_voting_again_gives_what_a_fresh_answer_gives(self, client: Client) -> None:
        """Kept as far as the vote is the same, and decoded anew behind."""
        kept = []
        for weights, prompt in itertools.product(WEIGHTS, ("the cat", "a", PROMPT)):
            body = {"prompt": prompt, "max_tokens": 10}
            _, before, _ = answer(client, **body)
            fresh_begin, fresh, fresh_end = answer(client, **body, weights=weights)
            begin, again, end = answer(client, **body, weights=weights, earlier=ids(before))
            same = 0
            while same < min(len(before), len(fresh)) and ids(before)[same] == ids(fresh)[same]:
                same += 1
            # The last one may have ended the answer, so it is voted again in any case.
            assert begin["kept"] == min(same, len(before) - 1)
            assert [t["kept"] for t in again] == [i < begin["kept"] for i in range(len(again))]
            for one, other in zip(again, fresh, strict=True):
                assert {k: one[k] for k in ("id", "text", "special")} == {
                    k: other[k] for k in ("id", "text", "special")
                }
                assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)
            assert (end, begin["weights"]) == (fresh_end, fresh_begin["weights"])
            kept.append((same, len(fresh)))
        # Some answers change in the middle, some at once or not at all.
        assert any(0 < same < total for same, total in kept)
        assert any(same in (0, total) for same, total in kept)

    def test_going_on_with_another_token(self, client: Client, backend: VoteBackend) -> None:
        end_of_text = backend.models["ensemble"].tokenizer.eos_token_id
        _, before, _ = answer(client, max_tokens=8, top=5)
        other, _, share = next(t for t in before[1]["top"][1:] if t[0] != end_of_text)
        forced = [before[0]["id"], other]
        begin, tokens, end = answer(client, max_tokens=8, forced=forced)
        assert (begin["forced"], begin["kept"], ids(tokens)[:2]) == (2, 2, forced)
        assert [t["path"] == "forced" for t in tokens] == [True, True, *[False] * (len(tokens) - 2)]
        assert tokens[1]["probability"] == pytest.approx(share, rel=1e-4)
        # The same as a text that goes on behind them.
        model = backend.models["ensemble"]
        prompt = [*question_prompt(model, QUESTION).tolist(), *forced]
        (rest,) = client.post(
            "/v1/completions",
            {
                "model": "ensemble",
                "prompt": prompt,
                "max_tokens": 6,
                "temperature": 0,
                "logprobs": 0,
                "stop": ["\n"],
            },
        ).json()["choices"]
        values = rest["logprobs"]["token_logprobs"]
        assert np.log([t["probability"] for t in tokens[2:]][: len(values)]) == pytest.approx(
            values, abs=1e-4
        )
        assert end["text"] == model.tokenizer.decode(forced) + rest["text"]

    def test_the_text_of_kept_tokens_is_not_lost(self, client: Client) -> None:
        _, tokens, end = answer(client, max_tokens=8)
        for count in range(1, len(tokens)):
            _, again, again_end = answer(client, max_tokens=8, forced=ids(tokens)[:count])
            assert ids(again) == ids(tokens)
            assert again_end["text"] == end["text"]

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({}, "prompt"),
            ({"question": "a", "prompt": "b"}, "prompt"),
            ({"question": ""}, "question"),
            ({"prompt": "a " * 400}, "prompt"),
            ({"question": "a " * 400}, "question"),
            ({"question": "a", "weights": [1.0]}, "weights"),
            ({"question": "a", "weights": [0.0, None]}, "weights"),
            ({"question": "a", "weights": [-1.0, 1.0]}, "weights"),
            ({"question": "a", "weights": ["1", 1.0]}, "weights"),
            ({"question": "a", "weights": [1001.0, 1.0]}, "weights"),
            ({"question": "a", "top": 21}, "top"),
            ({"question": "a", "max_tokens": 0}, "max_tokens"),
            ({"question": "a", "max_tokens": 3, "forced": [1, 2, 3]}, "forced"),
            ({"question": "a", "forced": [360]}, "forced"),
            ({"question": "a", "earlier": [360]}, "earlier"),
            ({"question": "a", "earlier": [-1]}, "earlier"),
            ({"question": "a", "forced": [0]}, "forced"),
            ({"question": "a", "loud": True}, "loud"),
        ],
    )
    def test_what_is_refused(self, client: Client, body: dict[str, Any], param: str) -> None:
        reply = client.post("/inspector/answer", body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text

    def test_no_such_model(self, client: Client) -> None:
        for path in ("answer", "choose"):
            body = {"model": "teacher", "question": "a"} | ({"choices": CHOICES} if path == "choose" else {})
            assert client.post(f"/inspector/{path}", body).status_code == 404


class TestChoose:
    def test_it_is_the_label(self, client: Client) -> None:
        own = client.post("/v1/label", {"input": {"question": QUESTION, "choices": CHOICES}}).json()["data"][
            0
        ]
        chosen = client.post("/inspector/choose", {"question": QUESTION, "choices": CHOICES}).json()
        assert {k: chosen[k] for k in own} == own
        assert [int(np.argmax(shares)) for shares in chosen["members"]] == list(own["votes"].values())
        assert sum(chosen["weights"]) == pytest.approx(1.0)

    def test_another_vote(self, client: Client) -> None:
        body = {"question": QUESTION, "choices": CHOICES}
        whole = client.post("/inspector/choose", body).json()
        for place in (0, 1):
            weights = [None, None]
            weights[place] = 2.0
            alone = client.post("/inspector/choose", {**body, "weights": weights}).json()
            assert alone["scores"] == pytest.approx(whole["members"][place], abs=1e-9)
            assert alone["members"][1 - place] is None
            assert alone["choice"] == list(whole["votes"].values())[place]
            assert alone["ensemw2s"] == {"members": 2, "voted": 1}

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"choices": CHOICES}, "question"),
            ({"question": "a"}, "choices"),
            ({"question": "a", "choices": ["one"]}, "choices"),
            ({"question": "a", "choices": ["one", ""]}, "choices"),
            ({"question": "a", "choices": CHOICES, "weights": [0, 0]}, "weights"),
        ],
    )
    def test_what_is_refused(self, client: Client, body: dict[str, Any], param: str) -> None:
        reply = client.post("/inspector/choose", body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text
