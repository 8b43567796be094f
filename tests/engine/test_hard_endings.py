"""A full disk, a read-only one, a clock that jumps, signals: a clear ending, and a run that can be continued to the same results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.results import comparable
from ensemw2s.engine.tasks import ProgressEvent
from ensemw2s.errors import RunDirectoryError

pytestmark = pytest.mark.timeout(600)
MakeConfig = Callable[..., dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "weak__training__learning_rate": 2e-2,
    "strong__training__epochs": 1,
    "boosting": {"rounds": 2, "prior": "unigram", "max_weight": 20.0},
}


def run(config: dict[str, Any], progress: Any = lambda event: None) -> dict[str, Any]:
    return comparable(api.run(ExperimentConfig.model_validate(config), progress=progress).results)


@pytest.fixture(scope="module")
def undisturbed(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(make_tiny(tmp_path_factory.mktemp("undisturbed"), **SETTINGS))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        pytest.skip("a file system can only be mounted by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("moment", ["committed prior-0", "committed select"])
def test_the_disk_is_full_in_the_middle(
    undisturbed: dict[str, Any],
    make_tiny: MakeConfig,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    """While a member's weights or a table are written."""
    monkeypatch.setattr("ensemw2s.engine.prepare.check_disk", lambda *arguments: None)
    filler = small_disk / "filler"

    def fill(event: ProgressEvent) -> None:
        if event.task == moment and not filler.exists():
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass

    config = make_tiny(small_disk, **SETTINGS)
    with pytest.raises(
        RunDirectoryError,
        match=r"cannot write the run directory .*/tiny: No space left .* what was committed is kept",
    ):
        run(config, fill)
    filler.unlink()
    assert run(config) == undisturbed


def test_a_read_only_disk(make_tiny: MakeConfig, small_disk: Path) -> None:
    config = make_tiny(small_disk, **SETTINGS)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(RunDirectoryError, match=r"cannot write the run directory .*: Read-only file system"):
        run(config)


def test_a_clock_that_jumps(
    undisturbed: dict[str, Any], make_tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A day forward, a day back, at every look."""
    real, looks = time.time, iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: real() + (-86_400.0) ** (1 + next(looks) % 2))
    assert run(make_tiny(tmp_path, **SETTINGS)) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_middle(
    undisturbed: dict[str, Any], make_tiny: MakeConfig, tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(make_tiny(tmp_path, **SETTINGS)), encoding="utf-8")
    command = [sys.executable, "-m", "ensemw2s.cli", "run", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in its background with Ctrl-C ignored, and so would what that starts.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "committed member-00" in line:
                process.send_signal(number)
                break
        rest = process.stderr.read()
    assert process.returncode == 130
    assert rest.endswith("interrupted: what was committed is kept; the same command continues\n")
    assert "Traceback" not in rest
    assert run(yaml.safe_load(path.read_text())) == undisturbed
