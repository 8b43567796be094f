"""Folders on storage with a URI: S3 through pyarrow, another scheme through fsspec; what is wrong is one line, soon."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ensemw2s.config.uris import inside, shown, uri_problem
from ensemw2s.errors import RunDirectoryError
from ensemw2s.runs import remote as module
from ensemw2s.runs.remote import Remote
from tests.s3_server import S3


@pytest.fixture(params=["s3", "memory"])
def remote(request: pytest.FixtureRequest, s3: S3, tmp_path: Path) -> Remote:
    if request.param == "s3":
        return Remote(s3.uri(f"{s3.bucket()}/runs/demo"))
    return Remote(f"memory://{tmp_path.name}/runs/demo")


def test_objects_come_back_as_they_went(remote: Remote, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    # More than a chunk, and than one part of an S3 upload.
    content = bytes(range(256)) * (2 * module.CHUNK // 256 + 11)
    source.write_bytes(content)
    assert remote.entries() == {}
    assert remote.read("a/b.bin") is None
    remote.upload(source, "a/b.bin")
    remote.write("c.json", b"{}")
    assert {name: entry.size for name, entry in remote.entries().items()} == {
        "a/b.bin": len(content),
        "c.json": 2,
    }
    assert set(remote.entries("a")) == {"a/b.bin"}
    assert remote.download("a/b.bin", target)
    assert target.read_bytes() == content
    assert not remote.download("a/none", target)
    assert [p.name for p in target.parent.iterdir()] == ["target"]
    remote.write("c.json", b"[1]")
    assert remote.read("c.json") == b"[1]"
    remote.delete("c.json")
    remote.delete("c.json")
    remote.delete_all("a")
    assert remote.entries() == {}
    assert remote.entry("c.json") is None


def one_line(uri: str) -> str:
    with pytest.raises(RunDirectoryError) as found:
        Remote(uri)
    (line,) = str(found.value).splitlines()
    return line


def test_what_cannot_be_reached_is_said(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "neither pyarrow nor fsspec knows nope://" in one_line("nope://bucket/runs")
    assert "there is no bucket 'no-such-bucket'" in one_line(s3.uri("no-such-bucket/runs"))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nobody = f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    assert f"nothing answers at 127.0.0.1:{port}" in one_line(nobody)
    uri = s3.uri(f"{s3.bucket()}/runs")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "of-somebody-else")
    line = one_line(uri)
    assert line.startswith(f"cannot reach {shown(uri)}: ")
    assert line.endswith(
        "check the URI, the credentials of this node and its network; what was committed is kept"
    )


def test_a_storage_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        uri = f"s3://bucket/runs?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        assert "s3://bucket/runs has not answered in 0.5 s" in one_line(uri)


def test_what_may_pass_is_tried_again(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as it is said; a refusal is final."""
    waits: list[float] = []
    monkeypatch.setattr(module.time, "sleep", waits.append)
    remote.write("there", b"1")
    failures = iter([OSError("timeout"), OSError("timeout")])
    place = remote._place

    def failing(name: str) -> str:
        for failure in failures:
            raise failure
        return place(name)

    monkeypatch.setattr(remote, "_place", failing)
    assert remote.read("there") == b"1"
    assert waits == [1.0, 5.0]
    failures = iter([OSError("AWS Error ACCESS_DENIED")])
    with pytest.raises(
        RunDirectoryError, match=r"cannot read .*/there: AWS Error ACCESS_DENIED; check the URI"
    ):
        remote.read("there")
    failures = iter([OSError("timeout")] * 4)
    with pytest.raises(RunDirectoryError, match=r"cannot read .*/there: timeout"):
        remote.read("there")
    assert waits == [1.0, 5.0, 1.0, 5.0, 15.0]


def test_uris_are_read_without_looking_there() -> None:
    assert inside("s3://b/runs/?region=x", "demo") == "s3://b/runs/demo?region=x"
    assert inside("gs://b", "demo") == "gs://b/demo"
    assert shown("s3://b/runs/?region=x") == "s3://b/runs"
    assert uri_problem("s3://bucket/runs") is None
    advice = uri_problem("file:" + "///data/runs")
    assert advice is not None
    assert advice.endswith("write '/data/runs'")
    for uri in ("s3://", "s3:///", "s3://?region=x", "://bucket"):
        assert "names no bucket" in str(uri_problem(uri)), uri
    secret = uri_problem("s3://key:word@bucket/runs")
    assert secret is not None
    assert "holds a password" in secret
    assert "word@" not in secret
