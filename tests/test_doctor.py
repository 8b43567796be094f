"""The doctor: each finding on a machine made to have it, and what the user sees."""

from __future__ import annotations

import http.server
import importlib.machinery
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.doctor import Check, collect, diagnose, exit_code, machine, reach, render, software
from ensemw2s.errors import ConfigError
from ensemw2s.settings import config_from_mapping
from tests.s3_server import S3


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


@pytest.fixture
def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture
def listening_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield int(server.getsockname()[1])


@pytest.fixture
def web_server() -> Iterator[str]:
    """A web server on loopback that answers 404 to everything."""
    server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


class TestMachine:
    def test_an_old_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert machine.check_python().status == "ok"
        monkeypatch.setattr(machine, "MIN_PYTHON", (99, 0))
        assert machine.check_python().status == "bad"
        assert "99.0" in machine.check_python().remedy

    @pytest.mark.parametrize(("needed", "status"), [(True, "bad"), (False, "warn")])
    def test_a_missing_compiler_is_bad_only_where_it_is_needed(
        self, monkeypatch: pytest.MonkeyPatch, needed: bool, status: str
    ) -> None:
        monkeypatch.setenv("CXX", "no-such-compiler")
        check = machine.check_compiler(needed)
        assert (check.status, check.detail) == (status, "no-such-compiler is not on the PATH")
        assert "apt-get install g++" in check.remedy

    def test_a_compiler_that_does_not_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CXX", "false")
        assert machine.check_compiler(True).status == "bad"

    def test_missing_headers(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(machine.sysconfig, "get_path", lambda name: str(tmp_path))
        assert machine.check_headers(True).status == "bad"
        (tmp_path / "Python.h").touch()
        assert machine.check_headers(True) == Check("Python headers", "ok", str(tmp_path / "Python.h"))

    def test_instruction_sets_are_named(self, tmp_path: Path) -> None:
        cpuinfo = tmp_path / "cpuinfo"
        cpuinfo.write_text("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f amx_bf16 amx_tile\n")
        detail = machine.check_processor(cpuinfo).detail
        assert detail.startswith("Some CPU, ")
        assert detail.endswith("avx2 avx512f amx_bf16")

    def test_too_little_memory_and_disk(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in ("MIN_MEMORY_GIB", "MIN_DISK_GIB", "MIN_SHARED_MEMORY_GIB"):
            monkeypatch.setattr(machine, name, 1e9)
        checks = (machine.check_memory(), machine.check_disk(tmp_path), machine.check_shared_memory(tmp_path))
        assert [check.status for check in checks] == ["warn"] * 3
        assert all(check.remedy for check in checks)

    def test_a_runs_folder_that_is_not_there_yet(self, tmp_path: Path) -> None:
        assert machine.check_disk(tmp_path / "a" / "b").detail.endswith(f"free in {tmp_path}")

    def test_a_runs_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        check = machine.check_disk(tmp_path / "file")
        assert (check.status, check.detail) == ("bad", f"{tmp_path / 'file'} is a file, not a folder")


class TestPackages:
    def test_the_installed_ones_fit(self) -> None:
        (check,) = software.check_packages()
        assert check.status == "ok"
        assert f"numpy {metadata.version('numpy')}" in check.detail

    def test_missing_and_old_ones_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lines = ["numpy>=999", "no-such-package>=1", "packaging", "other; extra == 'dev'"]
        monkeypatch.setattr(software.metadata, "requires", lambda name: lines)
        (check,) = software.check_packages()
        version = metadata.version("numpy")
        assert (check.status, check.detail) == (
            "bad",
            f"numpy {version} is not >=999; no-such-package is missing",
        )

    def test_demo_packages_are_found_without_importing_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(software, "_DEMO", (("here", "json"), ("gone", "no_such_module")))
        assert [check.status for check in software.check_demo_packages()] == ["ok", "warn"]

    def test_no_gpu_is_bad_only_where_one_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(software.shutil, "which", lambda name: None)
        assert software.check_gpus(needed=False).status == "ok"
        assert software.check_gpus(needed=True).status == "bad"
        monkeypatch.setattr(software.shutil, "which", lambda name: "/bin/nvidia-smi")
        assert software.check_gpus(needed=False).status == "warn"


class TestRay:
    def test_no_cluster_named(self) -> None:
        (check,) = software.check_ray(None, deep=False)
        assert check.status == "ok"

    @pytest.mark.parametrize("deep", [False, True])
    @pytest.mark.parametrize("form", ["{}", "ray://{}"])
    def test_a_cluster_that_does_not_answer(self, free_port: int, deep: bool, form: str) -> None:
        address = form.format(f"127.0.0.1:{free_port}")
        (check,) = software.check_ray(address, deep=deep)
        assert check.status == "bad"
        assert f"nothing answers at {address}" in check.detail

    def test_a_cluster_that_listens(self, listening_port: int) -> None:
        assert software.check_ray(f"127.0.0.1:{listening_port}", deep=False)[0].status == "ok"

    @pytest.mark.slow
    def test_deep_runs_a_task(self, ray_cluster: None) -> None:
        import ray

        (check,) = software.check_ray(None, deep=True)
        assert check.status == "ok"
        assert "ran a task" in check.detail
        assert ray.is_initialized(), "a Ray that was there before is left running"


class TestHub:
    @pytest.fixture
    def online(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
        from huggingface_hub import constants

        def use(endpoint: str) -> None:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(constants, "ENDPOINT", endpoint)

        return use

    def test_offline_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert "HF_HUB_OFFLINE" in reach.check_hub().detail

    def test_any_answer_will_do(self, online: Callable[[str], None], web_server: str) -> None:
        online(web_server)
        check = reach.check_hub()
        assert check.status == "ok"
        assert "answers" in check.detail

    def test_no_answer(self, online: Callable[[str], None], free_port: int) -> None:
        online(f"http://127.0.0.1:{free_port}")
        assert reach.check_hub().status == "warn"

    def test_an_answer_that_is_no_http(self, online: Callable[[str], None]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:

            def talk() -> None:
                client, _ = server.accept()
                with client:
                    client.recv(1000)
                    client.sendall(b"220 mail.example.org ready\r\n")

            thread = threading.Thread(target=talk)
            thread.start()
            online(f"http://127.0.0.1:{server.getsockname()[1]}")
            check = reach.check_hub()
            thread.join()
        assert check.status == "warn"
        assert "does not answer" in check.detail

    @pytest.mark.parametrize("endpoint", ["", "ftp://127.0.0.1", "http://", "hub"])
    def test_an_endpoint_that_is_no_web_address(self, online: Callable[[str], None], endpoint: str) -> None:
        online(endpoint)
        assert reach.check_hub().status == "warn"

    def test_the_cache_is_counted(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        from huggingface_hub import constants

        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        assert "not there yet" in reach.check_cache().detail
        for name in ("models--a--b", "models--c", "datasets--d", "version.txt"):
            (tmp_path / "hub" / name).mkdir(parents=True)
        assert "2 models and 1 data sets" in reach.check_cache().detail


class TestConfig:
    def test_models_and_data_that_are_there(
        self, tmp_path: Path, make_tiny: Callable[..., dict[str, Any]]
    ) -> None:
        config = config_from_mapping(
            make_tiny(tmp_path, data__test={"kind": "reasoning_gym", "task": "basic_arithmetic"})
        )
        checks = by_name(reach.check_config(config))
        assert list(checks) == ["weak model 0", "strong model", "data pool", "data test"]
        assert {check.status for check in checks.values()} == {"ok"}
        assert "LlamaForCausalLM" in checks["weak model 0"].detail
        assert "168 samples" in checks["data pool"].detail

    @pytest.mark.parametrize("offline", [True, False])
    def test_a_copy_of_a_builtin_set_is_read_with_and_without_a_hub(
        self,
        tmp_path: Path,
        make_tiny: Callable[..., dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
        offline: bool,
    ) -> None:
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq
        from huggingface_hub import constants

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        row = {"question": "is it", "answer": False, "passage": "It is."}
        (tmp_path / "boolq").mkdir()
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "boolq" / "train-00000-of-00001.parquet")
        for place, status, detail in (
            ("boolq", "ok", f"boolq in {tmp_path}/boolq: 1 samples"),
            ("gone", "bad", f"boolq train: path {tmp_path}/gone does not exist: give the folder of a copy"),
        ):
            source = {"kind": "builtin", "name": "boolq", "path": str(tmp_path / place)}
            checks = by_name(reach.check_config(config_from_mapping(make_tiny(tmp_path, data__test=source))))
            assert checks["data test"].status == status
            assert checks["data test"].detail.startswith(detail)

    def test_each_one_that_is_not(self, tmp_path: Path, make_tiny: Callable[..., dict[str, Any]]) -> None:
        broken = tmp_path / "broken.jsonl"
        broken.write_text('{"question": "q"\n')
        data = make_tiny(
            tmp_path,
            weak__models=[{"path": str(tmp_path / "no-model")}, {"path": "package:no-such-package"}],
            data__test={"kind": "file", "path": str(broken)},
            data__extra_tests={"gym": {"kind": "reasoning_gym", "task": "no_such_task"}},
        )
        checks = by_name(reach.check_config(config_from_mapping(data)))
        bad = [name for name, check in checks.items() if check.status == "bad"]
        assert bad == ["weak model 0", "weak model 1", "data test", "data gym"]
        assert "broken.jsonl" in checks["data test"].detail
        assert all(check.remedy for check in checks.values() if check.status == "bad")

    def test_what_the_configuration_asks_of_the_machine(
        self, tmp_path: Path, make_tiny: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import torch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setenv("CXX", "no-such-compiler")
        local = by_name(collect(config_from_mapping(make_tiny(tmp_path))))
        assert "Ray" not in local
        assert local["C++ compiler"].status == "warn"
        assert local["GPUs"].status != "bad"
        data = make_tiny(tmp_path, runtime__executor="ray", runtime__device="cuda")
        on_ray = by_name(collect(config_from_mapping(data)))
        assert on_ray["Ray"].status == "ok"
        assert on_ray["C++ compiler"].status == "bad"
        assert on_ray["GPUs"].status == "bad"

    @pytest.mark.parametrize("installed", [True, False])
    def test_what_a_second_stage_needs(
        self,
        installed: bool,
        tmp_path: Path,
        make_tiny: Callable[..., dict[str, Any]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        from ensemw2s.training import preference

        found = importlib.machinery.ModuleSpec("trl", None) if installed else None
        monkeypatch.setattr(preference.importlib.util, "find_spec", lambda name: found)
        assert "preference" not in by_name(collect(config_from_mapping(make_tiny(tmp_path))))
        data = make_tiny(tmp_path, strong__preference={}, labels={"keep_by": "agreement", "keep": 0.6})
        check = by_name(collect(config_from_mapping(data)))["preference"]
        assert check.status == ("ok" if installed else "bad")
        if not installed:
            assert check.detail == "strong.preference needs the package trl"
            assert check.remedy == 'pip install "ensemw2s[preference]"'


class TestOutput:
    CHECKS = (
        Check("one", "ok", "fine"),
        Check("second", "warn", "so so", "do this"),
        Check("three", "bad", "words " * 30, "do that"),
    )

    def test_a_table_with_remedies_and_a_sum(self) -> None:
        lines = render(self.CHECKS, width=60).splitlines()
        assert lines[0] == "ok    one     fine"
        assert lines[1] == "warn  second  so so"
        assert lines[2] == "              -> do this"
        assert lines[-1] == "1 ok, 1 to be aware of, 1 bad"
        assert all(len(line) <= 60 for line in lines)

    def test_the_exit_code_is_1_when_anything_is_bad(self) -> None:
        assert exit_code(self.CHECKS) == 1
        assert exit_code(self.CHECKS[:2]) == 0
        assert exit_code([]) == 0

    def test_a_configuration_that_cannot_be_used(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="no such file"):
            diagnose(tmp_path / "no.yaml")

    def test_a_good_configuration(
        self, tmp_path: Path, make_tiny: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(make_tiny(tmp_path)))
        assert diagnose(path) == 0
        assert "ok    strong model" in capsys.readouterr().out

    def test_a_bad_one_from_the_command_line(
        self, tmp_path: Path, make_tiny: Callable[..., dict[str, Any]]
    ) -> None:
        path = tmp_path / "config.yaml"
        path.write_text(json.dumps(make_tiny(tmp_path)))
        command = [sys.executable, "-m", "ensemw2s.cli", "doctor", str(path)]
        command.append("strong.model.path=package:no-such-package")
        answer = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert answer.returncode == 1, answer.stderr
        assert "no-such-package" in answer.stdout


def test_storage_is_asked_for_an_answer(s3: S3) -> None:
    bucket = s3.bucket()
    assert reach.check_storage(s3.uri(f"{bucket}/runs")) == Check(
        "storage", "ok", f"s3://{bucket}/runs answers"
    )
    missing = reach.check_storage(s3.uri("no-such-bucket/runs"))
    assert missing.status == "bad"
    assert "there is no bucket 'no-such-bucket'" in missing.detail
    assert list((s3.data / bucket).iterdir()) == []
