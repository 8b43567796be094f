"""`ensemw2s serve` refuses in one line what it cannot do, before anything is loaded."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from ensemw2s import cli
from ensemw2s.errors import ConfigError, UserError
from ensemw2s.serving.admission import Admission
from ensemw2s.serving.command import settings_from
from ensemw2s.serving.errors import ApiError
from ensemw2s.serving.loop import VoteLoop
from ensemw2s.serving.opening import open_run
from ensemw2s.serving.settings import ServeSettings


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = cli.main(["serve", *arguments])
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert (code, captured.out) == (2, "")
    assert all(line.startswith("error: ") for line in lines)
    return "\n".join(lines)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "part"),
        [
            (("--host", "0.0.0.0"), "--api-keys"),
            (("--api-keys", "no-such-file"), "no-such-file"),
            (("max_queue=-1",), "max_queue"),
            (("max_queues=1",), "max_queue,"),
            (("fast",), "key=value"),
            (("--port", "99999"), "port"),
            (("quorum=3",), "quorum 3"),
        ],
    )
    @pytest.mark.parametrize("executor", ["local", "ray"])
    def test_settings(
        self,
        served_run: Path,
        capsys: pytest.CaptureFixture[str],
        arguments: tuple[str, ...],
        part: str,
        executor: str,
    ) -> None:
        assert part in refused(capsys, str(served_run), "--executor", executor, *arguments)

    @pytest.mark.parametrize("executor", ["local", "ray"])
    def test_no_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], executor: str) -> None:
        assert "not a run directory" in refused(capsys, str(tmp_path), "--executor", executor)

    def test_ray_takes_no_port_by_itself(self, served_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "--port" in refused(capsys, str(served_run), "--executor", "ray", "--port", "0")

    def test_every_problem_at_once(self) -> None:
        with pytest.raises(ConfigError) as caught:
            settings_from({"port": -1}, ["max_n=0", "--request_seconds=nan"])
        assert len(caught.value.problems) == 3


def test_settings_from_texts() -> None:
    settings = settings_from({"host": "::1"}, ["max_queue=0", "quorum=2", "api_keys=null", "log_text=true"])
    assert (settings.max_queue, settings.quorum, settings.api_keys, settings.log_text) == (0, 2, None, True)
    assert settings.on_loopback


def test_keys_are_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vote's process of Ray works elsewhere; a link is followed when the file is read, not before."""
    (tmp_path / "first").write_text("a-key-of-somebody-1\n")
    (tmp_path / "keys").symlink_to("first")
    monkeypatch.chdir(tmp_path)
    given: list[ServeSettings] = []
    monkeypatch.setattr(
        "ensemw2s.serving.command.serve_local", lambda run, models, settings: given.append(settings)
    )
    assert cli.main(["serve", "a-run", "--executor", "local", "--api-keys", "keys"]) == 0
    assert [settings.api_keys for settings in given] == [tmp_path / "keys"]


def test_a_part_of_a_run_can_be_served(served_run: Path) -> None:
    both = open_run(served_run)
    assert list(both.ensembles) == ["ensemble", "student"]
    assert (both.slots("ensemble"), both.slots("student")) == ([0, 1], [2])
    alone = open_run(served_run, ("student",))
    assert (list(alone.ensembles), alone.slots("student")) == (["student"], [0])
    with pytest.raises(UserError, match="ensemble, student"):
        open_run(served_run, ("teacher",))


def test_a_server_stops_though_a_client_went_away() -> None:
    """Work that waited for the thread, of which one was given up, is failed; the thread ends."""
    loop, entered, release = VoteLoop({}, 1.0), threading.Event(), threading.Event()

    def hold() -> None:
        entered.set()
        release.wait(60)

    loop.call(hold)
    assert entered.wait(60)
    given_up, waiting = loop.call(lambda: 1), loop.call(lambda: 2)
    given_up.cancel()
    timer = threading.Timer(0.1, release.set)
    timer.start()
    loop.close(0.0)
    timer.join()
    assert "shutting down" in str(waiting.exception(60))
    assert not loop._thread.is_alive()


class TestAdmission:
    """Places are given in the order of arrival and none is lost, however requests end."""

    def test_first_come_first_served(self) -> None:
        async def scenario() -> list[int]:
            admission, order = Admission(1, 2), []
            first = await admission.enter()

            async def wait(number: int) -> None:
                ticket = await admission.enter()
                order.append(number)
                ticket.release()
                ticket.release()

            tasks = [asyncio.create_task(wait(n)) for n in (1, 2)]
            await asyncio.sleep(0)
            with pytest.raises(ApiError) as caught:
                await admission.enter()
            assert caught.value.status == 429
            first.release()
            await asyncio.gather(*tasks)
            assert (admission.active, admission.waiting) == (0, 0)
            return order

        assert asyncio.run(scenario()) == [1, 2]

    @pytest.mark.parametrize("given", [False, True])
    def test_a_request_that_goes_away_while_it_waits(self, given: bool) -> None:
        async def scenario() -> Admission:
            admission = Admission(1, 2)
            first = await admission.enter()
            waiting = asyncio.create_task(admission.enter())
            await asyncio.sleep(0)
            if given:
                # Its place comes in the same moment.
                first.release()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            first.release()
            return admission

        admission = asyncio.run(scenario())
        assert (admission.active, admission.waiting) == (0, 0)

    def test_draining(self) -> None:
        async def scenario() -> Any:
            admission = Admission(2, 2)
            ticket = await admission.enter()
            assert not await admission.drain(0.0)
            with pytest.raises(ApiError) as caught:
                await admission.enter()
            ticket.release()
            return caught.value.status, await admission.drain(5.0)

        assert asyncio.run(scenario()) == (503, True)
