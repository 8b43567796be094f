"""Who is let in, how much one may ask for, and what is logged."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.errors import ConfigError
from ensemw2s.serving.app import build_app
from ensemw2s.serving.keys import ApiKeys
from ensemw2s.serving.settings import ServeSettings, is_loopback

KEY, OTHER = "a-key-of-somebody-1", "a-key-of-another-22"
TEXT = "/v1/completions"
BODY = {"model": "ensemble", "prompt": "the cat", "max_tokens": 3}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def write(path: Path, *lines: str) -> Path:
    """Replaces the file, so that the change is seen however coarse the clock is."""
    new = path.with_suffix(".new")
    new.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(new, path)
    return path


class TestKeys:
    def test_added_and_revoked_without_a_restart(self, tmp_path: Path) -> None:
        path = write(tmp_path / "keys", "# mine", "", KEY)
        keys = ApiKeys(path)
        assert (keys.allows(KEY), keys.allows(OTHER)) == (True, False)
        write(path, KEY, OTHER)
        assert (keys.allows(KEY), keys.allows(OTHER)) == (True, True)
        write(path, OTHER)
        assert (keys.allows(KEY), keys.allows(OTHER)) == (False, True)

    @pytest.mark.parametrize("wrong", ["", KEY[:-1], KEY + "x", KEY.upper(), "ü" * 20, "\udce4"])
    def test_nothing_else_fits(self, tmp_path: Path, wrong: str) -> None:
        assert not ApiKeys(write(tmp_path / "keys", KEY)).allows(wrong)

    def test_nobody_is_let_in_when_the_file_is_bad(self, tmp_path: Path) -> None:
        path = write(tmp_path / "keys", KEY)
        keys = ApiKeys(path)
        path.unlink()
        assert not keys.allows(KEY)
        write(path, KEY, "short")
        assert not keys.allows(KEY)
        write(path, "# nobody")
        assert not keys.allows(KEY)
        write(path, KEY)
        assert keys.allows(KEY)

    @pytest.mark.parametrize(
        ("line", "part"),
        [("", "no API key"), ("short", ":1"), ("two words of a key", ":1"), ("ü" * 20, "ASCII")],
    )
    def test_a_bad_file_is_refused_at_the_start(self, tmp_path: Path, line: str, part: str) -> None:
        with pytest.raises(ConfigError, match=part):
            ApiKeys(write(tmp_path / "keys", line))

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            ApiKeys(tmp_path / "none")


class TestWhoMayAsk:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
    def test_off_loopback_keys_are_needed(self, backend: Any, host: str) -> None:
        with pytest.raises(ConfigError, match="--api-keys"):
            build_app(backend, ServeSettings(host=host))

    @pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
    def test_loopback(self, host: str) -> None:
        assert is_loopback(host)
        ServeSettings(host=host).check_exposure()

    def test_a_key_opens(self, serve: Any, tmp_path: Path) -> None:
        path = write(tmp_path / "keys", KEY)
        client = serve(api_keys=path, host="0.0.0.0")
        for headers in ({}, bearer(OTHER), {"authorization": KEY}, {"authorization": f"Basic {KEY}"}):
            answer = client.post(TEXT, BODY, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["error"]["code"] == "invalid_api_key"
        assert client.get("/metrics").status_code == 401
        assert client.get("/openapi.json").status_code == 401
        assert client.get("/health").status_code == 200
        assert client.post(TEXT, BODY, headers=bearer(KEY)).status_code == 200
        write(path, OTHER)
        assert client.post(TEXT, BODY, headers=bearer(KEY)).status_code == 401
        assert client.post(TEXT, BODY, headers=bearer(OTHER)).status_code == 200

    def test_without_keys_a_foreign_host_name_is_refused(self, client: Any) -> None:
        assert client.get("/health", headers={"host": "evil.example"}).status_code == 403
        assert client.get("/health", headers={"host": "127.0.0.1:8000"}).status_code == 200
        assert client.get("/health", headers={"host": "[::1]:8000"}).status_code == 200

    def test_what_a_foreign_page_can_send_is_refused(self, client: Any) -> None:
        content = b'{"model": "ensemble", "prompt": "a"}'
        headers = {"content-type": "text/plain", "origin": "http://evil.example"}
        assert client.request("POST", TEXT, content=content, headers=headers).status_code == 415
        asked = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        preflight = client.request("OPTIONS", TEXT, headers=asked)
        assert preflight.status_code == 405
        good = client.post(TEXT, BODY, headers={"origin": "http://evil.example"})
        for answer in (preflight, good):
            assert not [name for name in answer.headers if name.startswith("access-control")]


class TestLimits:
    def test_a_large_body(self, serve: Any) -> None:
        client = serve(max_body_bytes=200)
        answer = client.post(TEXT, {**BODY, "prompt": "a" * 200})
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

        async def pieces() -> Any:
            for _ in range(10):
                yield b" " * 50

        # Without a length in the head.
        headers = {"content-type": "application/json"}
        assert client.request("POST", TEXT, content=pieces(), headers=headers).status_code == 413
        assert client.post(TEXT, BODY).status_code == 200

    @pytest.mark.parametrize(
        ("settings", "param"),
        [
            ({"max_prompt_tokens": 2}, "prompt"),
            ({"max_output_tokens": 2}, "max_tokens"),
            ({"max_rows": 1}, "prompt"),
            ({"max_n": 1}, "n"),
        ],
    )
    def test_one_request(self, serve: Any, settings: dict[str, int], param: str) -> None:
        answer = serve(**settings).post(TEXT, {**BODY, "n": 2})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)

    def test_the_queue(self, serve: Any, held: Any, backend: Any) -> None:
        client = serve(max_concurrent=1, max_queue=1)
        first = client.begin("POST", TEXT, json=BODY)
        wait_until(lambda: backend._loop.texts == 1)
        second = client.begin("POST", TEXT, json={**BODY, "stream": True})
        wait_until(lambda: "requests_waiting 1.0" in client.get("/metrics").text)
        third = client.post(TEXT, BODY)
        assert third.status_code == 429
        assert int(third.headers["retry-after"]) >= 1
        assert third.json()["error"]["type"] == "rate_limit_error"
        held()
        assert first.result(60).status_code == second.result(60).status_code == 200
        assert client.post(TEXT, BODY).status_code == 200

    @pytest.mark.parametrize("stream", [False, True])
    def test_time(self, serve: Any, held: Any, backend: Any, stream: bool) -> None:
        client = serve(request_seconds=0.2)
        answer = client.post(TEXT, {**BODY, "stream": stream})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
        assert backend._loop.texts == 0
        held()
        wait_until(lambda: backend.health().rows == 0)
        assert "requests_active 0.0" in client.get("/metrics").text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_row(client: Any, held: Any, backend: Any, stream: bool) -> None:
    future = client.begin("POST", TEXT, json={**BODY, "n": 3, "stream": stream})
    wait_until(lambda: backend._loop.texts == 3)
    future.cancel()
    wait_until(lambda: backend._loop.texts == 0)
    held()
    wait_until(lambda: backend.health().rows == 0)
    assert "requests_active 0.0" in client.get("/metrics").text


def test_counters(client: Any) -> None:
    client.post(TEXT, BODY)
    client.get("/no/such/path")
    text = client.get("/metrics").text
    for line in (
        'ensemw2s_requests_total{route="/v1/completions",status="200"} 1.0',
        'ensemw2s_requests_total{route="other",status="404"} 1.0',
        'ensemw2s_tokens_total{kind="completion",model="ensemble"} 3.0',
        'ensemw2s_members_alive{model="ensemble"} 2.0',
    ):
        assert line in text


def test_no_text_in_the_log_unless_asked(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    serve().post(TEXT, {**BODY, "prompt": "the secret ibis"})
    serve().post(TEXT, {**BODY, "prompt": "the secret ibis", "stop": ["", "secret"]})
    assert "/v1/completions 200" in caplog.text
    assert "secret" not in caplog.text
    serve(log_text=True).post(TEXT, {**BODY, "prompt": "the secret ibis"})
    assert "secret" in caplog.text


def wait_until(condition: Any) -> None:
    import time

    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
