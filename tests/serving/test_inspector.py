"""What the page at ``/`` asks for: its files, the run's questions and story, and answers voted again with other weights."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.runs.report_systems import SYSTEMS
from ensemw2s.serving.backend import VoteBackend
from ensemw2s.serving.inspector.files import FOLDER, NAMES, PREFIX
from ensemw2s.serving.inspector.plans import question_prompt
from ensemw2s.serving.inspector.story import story
from ensemw2s.serving.opening import open_run
from tests.serving.conftest import Client, MakeConfig
from tests.serving.test_guard import KEY, bearer, write

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


class TestFiles:
    def test_the_page(self, client: Client) -> None:
        page = client.get("/")
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert (
            client.get(f"{PREFIX}index.html").content == page.content == (FOLDER / "index.html").read_bytes()
        )

    @pytest.mark.parametrize("name", sorted(NAMES))
    def test_a_file_and_its_headers(self, client: Client, name: str) -> None:
        reply = client.get(PREFIX + name)
        assert (reply.status_code, reply.content) == (200, (FOLDER / name).read_bytes())
        kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
        assert reply.headers["content-type"].partition(";")[0] == kinds[name.rpartition(".")[2]]
        policy = dict(
            part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == policy["frame-ancestors"] == policy["trusted-types"] == "'none'"
        assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["x-frame-options"] == "DENY"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "access-control-allow-origin" not in reply.headers

    def test_nothing_comes_from_elsewhere(self) -> None:
        """Every file that a file names is here; the only address in them is the name of a vocabulary of XML."""
        for name in NAMES:
            text = (FOLDER / name).read_text(encoding="utf-8")
            assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}, name
            named = re.findall(r'(?:from |import\()"\./([^"]+)"', text)
            named += [n.removeprefix("inspector/page/") for n in re.findall(r'(?:src|href)="([^"#]+)"', text)]
            assert set(named) <= NAMES, name
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), (
                name
            )
            assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=\"|\sstyle=", text), name

    @pytest.mark.parametrize("name", ["other.js", "..%2Ffiles.py", "%2Fetc%2Fpasswd", "index.html%00", ""])
    def test_nothing_else_is_given(self, client: Client, name: str) -> None:
        assert client.get(PREFIX + name).status_code == 404

    def test_the_openai_document_does_not_tell_of_it(self, client: Client) -> None:
        paths = client.get("/openapi.json").json()["paths"]
        assert "/v1/completions" in paths
        assert [path for path in paths if "inspector" in path or path == "/"] == []


class TestWhoMayLook:
    def test_a_key_is_asked_for_what_tells_of_the_run(self, serve: Any, tmp_path: Path) -> None:
        client = serve(host="0.0.0.0", api_keys=write(tmp_path / "keys", KEY))
        assert client.get("/").status_code == 200
        assert client.get(f"{PREFIX}main.js").status_code == 200
        for path in ("run", "story", "samples?split=test", "truth?split=test&id=x"):
            assert client.get(f"/inspector/{path}").status_code == 401, path
        for path in ("answer", "choose"):
            assert client.post(f"/inspector/{path}", {"question": QUESTION}).status_code == 401, path
        assert client.get("/inspector/run", headers=bearer(KEY)).status_code == 200

    def test_without_keys_only_this_machine(self, client: Client) -> None:
        """A page on the web whose name leads to this machine sees neither the page nor the run."""
        for path in ("/", "/inspector/run"):
            assert client.get(path, headers={"host": "example.org"}).status_code == 403

    def test_a_form_on_another_site_cannot_ask(self, client: Client) -> None:
        reply = client.request(
            "POST", "/inspector/answer", content=b'{"question": "a"}', headers={"content-type": "text/plain"}
        )
        assert reply.status_code == 415

    def test_a_full_queue(self, serve: Any, held: Callable[[], None]) -> None:
        client = serve(max_concurrent=1, max_queue=0)
        first = client.begin("POST", "/inspector/answer", json={"question": QUESTION})
        while not client._http._transport.app.state.admission.active:
            time.sleep(0.01)
        for path, more in (("answer", {}), ("choose", {"choices": CHOICES})):
            reply = client.post(f"/inspector/{path}", {"question": QUESTION, **more})
            assert (reply.status_code, "retry-after" in reply.headers) == (429, True)
        held()
        assert first.result(60).status_code == 200


class TestRun:
    def test_what_is_served(self, client: Client) -> None:
        run = client.get("/inspector/run").json()
        assert run["name"] == "tiny"
        assert run["prompt"] == "Question: {question}\nAnswer:"
        assert [m["name"] for m in run["models"]] == ["ensemble", "student"]
        members = run["models"][0]["members"]
        assert [m["name"] for m in members] == ["member-00", "member-01"]
        assert sum(m["weight"] for m in members) == pytest.approx(1.0, abs=1e-12)
        assert run["max_tokens"] == 6

    def test_questions_come_without_their_answers(self, client: Client) -> None:
        splits = client.get("/inspector/run").json()["splits"]
        assert set(splits) == {"easy_train", "easy_val", "hard_train", "test"}
        seen: list[dict[str, Any]] = []
        while len(seen) < splits["test"]:
            page = client.get(
                "/inspector/samples", params={"split": "test", "offset": len(seen), "limit": 7}
            ).json()
            assert page["total"] == splits["test"]
            assert 0 < len(page["data"]) <= 7
            seen += page["data"]
        assert len({s["id"] for s in seen}) == len(seen) == splits["test"]
        assert all(set(s) == {"id", "question", "choices"} for s in seen)
        sample = seen[0]
        truth = client.get("/inspector/truth", params={"split": "test", "id": sample["id"]}).json()
        animals = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu", "hen", "ibis", "jay", "koi", "lynx"]
        right = animals.index(sample["question"].split()[1]) % 4
        assert (truth["choice"], truth["answer"]) == (right, CHOICES[right])

    def test_finding_questions(self, client: Client) -> None:
        page = client.get(
            "/inspector/samples", params={"split": "test", "find": "THE CAT", "limit": 50}
        ).json()
        assert page["total"] == len(page["data"]) > 0
        assert all(s["question"].startswith("the cat") for s in page["data"])
        page = client.get("/inspector/samples", params={"split": "test", "find": "no such animal"}).json()
        assert (page["total"], page["data"]) == (0, [])

    @pytest.mark.parametrize(
        ("path", "query", "status", "param"),
        [
            ("samples", {"split": "tests"}, 404, "split"),
            ("samples", {"split": "../splits/test"}, 404, "split"),
            ("samples", {}, 400, "split"),
            ("samples", {"split": "test", "offset": -1}, 400, "offset"),
            ("samples", {"split": "test", "limit": 51}, 400, "limit"),
            ("truth", {"split": "test", "id": "nobody"}, 404, "id"),
        ],
    )
    def test_what_is_not_there(
        self, client: Client, path: str, query: dict[str, Any], status: int, param: str
    ) -> None:
        reply = client.get(f"/inspector/{path}", params=query)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param), reply.text

    def test_the_story_is_that_of_the_results(self, client: Client, served_run: Path) -> None:
        told = client.get("/inspector/story").json()
        results = json.loads((served_run / "results.json").read_text())
        assert told["finished"]
        (test,) = [part for part in told["comparison"] if part["split"] == "test"]
        assert {s["key"] for s in test["systems"]} >= {
            "student_ensemble",
            "student_single",
            "ceiling",
            "weak_ensemble",
        }
        for shown in test["systems"]:
            stored = results[shown["key"]]["test"]
            assert [shown[k] for k in ("value", "low", "high")] == [
                stored[k] for k in ("value", "low", "high")
            ]
        assert [m["alpha"] for m in told["members"]] == [m["alpha"] for m in results["members"]]
        assert told["staged"] == results["staged"]
        assert told["effective"] == results["effective_sample_size"]
        labels = [system.label for system in SYSTEMS]
        assert {row[0] for row in told["tables"]["comparison"]["rows"]} <= set(labels)

    def test_the_story_of_a_run_that_is_not_finished(self, make_tiny: MakeConfig, tmp_path: Path) -> None:
        config = make_tiny(tmp_path, weak__training__epochs=1, boosting__rounds=1)
        run_dir = api.run(ExperimentConfig.model_validate(config), until="labels").run_dir
        ctx = open_run(run_dir).ctx
        told = story(ctx)
        assert told["finished"] is False
        assert told["stages"] == list(ctx.store.stages())
        (member,) = told["members"]
        record = ctx.store.stages()["member-00"].info["record"]
        assert {k: member[k] for k in ("round", "alpha", "kept")} == {
            k: record[k] for k in ("round", "alpha", "kept")
        }


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
