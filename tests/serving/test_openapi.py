"""The application against its own OpenAPI document."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = "schemathesis"
#: Not checked: that all that fits the document is accepted. What depends on the model, on the limits of the server, or on two
#: parameters together is refused with a reason.
UNCHECKED = "positive_data_acceptance"


def test_what_is_never_answered_is_not_in_it(client: Any) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "422" not in operation["responses"], path
            schema = operation["responses"]["400"]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}
    assert list(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]


def test_a_method_that_a_path_does_not_have(client: Any) -> None:
    """Whatever is sent with it."""
    for path in ("/health", "/metrics", "/v1/models", "/v1/models/ensemble", "/"):
        for headers in ({}, {"content-type": "text/plain"}):
            answer = client.request("POST", path, content=b"", headers=headers)
            assert (answer.status_code, answer.headers["allow"]) == (405, "GET"), path
    for path in ("/v1/completions", "/v1/label", "/inspector/answer"):
        assert (
            client.request("POST", path, content=b"{}", headers={"content-type": "text/plain"}).status_code
            == 415
        )


@pytest.mark.slow
def test_fuzzing(real_url: str, tmp_path: Path) -> None:
    """Hundreds of requests that fit the document or nearly do: no answer that is not in it, and none of 500."""
    program = shutil.which(
        PROGRAM, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    if program is None:
        pytest.skip(f"{PROGRAM} is not installed")
    site = real_url.removesuffix("/v1")
    options = [
        "--phases",
        "coverage,fuzzing",
        "--max-examples",
        "5",
        "--seed",
        "1",
        "--exclude-checks",
        UNCHECKED,
    ]
    quiet = ["--no-color", "--warnings", "off", "--generation-database", "none", "--continue-on-failure"]
    done = subprocess.run(
        [program, "run", f"{site}/openapi.json", *options, *quiet],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-1000:]
    assert "Tested: 7" in done.stdout
