"""What the page at ``/`` asks for: its files, and the run's questions and story."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.runs.report_systems import SYSTEMS
from ensemw2s.serving.inspector.files import FOLDER, NAMES, PREFIX
from ensemw2s.serving.inspector.story import story
from ensemw2s.serving.opening import open_run
from tests.serving.conftest import Client, MakeConfig
from tests.serving.test_guard import KEY, bearer, write

CHOICES = ["buzz loud", "hiss low", "roar far", "chirp high"]
QUESTION = "the cat in the barn"
PROMPT = f"Question: {QUESTION}\nAnswer:"


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
