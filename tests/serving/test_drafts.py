"""An endpoint that drafts (the default) answers as one that does not."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from ensemw2s.serving.app import build_app
from ensemw2s.serving.backend import local_backend
from ensemw2s.serving.opening import open_run
from ensemw2s.serving.settings import ServeSettings
from tests.serving.conftest import Client

BODY = {"model": "ensemble", "prompt": "Question: the cat in the barn\nAnswer:", "max_tokens": 60}


def test_drafts_change_no_answer(served_run: Path, client: Any, tmp_path: Path) -> None:
    drafting = shutil.copytree(served_run, tmp_path / "run")
    config = drafting / "config.yaml"
    text = config.read_text()
    assert "speculate: 'off'" in text
    config.write_text(text.replace("speculate: 'off'", "speculate: auto"))
    backend = local_backend(open_run(drafting), ServeSettings())
    other = Client(build_app(backend, ServeSettings()))
    try:
        for more in ({"temperature": 0}, {"temperature": 0, "logprobs": 2}, {"temperature": 0.8, "seed": 3}):
            plain, drafted = (c.post("/v1/completions", {**BODY, **more}).json() for c in (client, other))
            assert drafted["choices"][0]["text"] == plain["choices"][0]["text"]
            assert drafted["usage"] == plain["usage"]
        counts = backend._voters["ensemble"].engine.counts
        assert counts.drafted >= counts.stood > 0
    finally:
        other.close()
        asyncio.run(backend.close(5.0))
