"""Runs that share equal work end where runs that do everything themselves end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.results import comparable

MakeConfig = Callable[..., dict[str, Any]]
LEARNS = {
    "weak__training__epochs": 8,
    "weak__training__learning_rate": 2e-2,
    "boosting__prior": "unigram",
    "vote__rounds": "all",
}


def run(make: MakeConfig, folder: Path, name: str, **replace: Any) -> api.RunResult:
    return api.run(ExperimentConfig.model_validate(make(folder / name, **LEARNS, **replace)))


def found(result: api.RunResult) -> list[str]:
    log = result.run_dir / "events.jsonl"
    lines = log.read_text().splitlines() if log.is_file() else []
    return [e["work"] for e in map(json.loads, lines) if e["event"] == "found_in_cache"]


def same(a: api.RunResult, b: api.RunResult) -> bool:
    return comparable(a.results) == comparable(b.results)


def test_a_second_run_takes_what_is_equal(make_tiny: MakeConfig, tmp_path: Path) -> None:
    cache = {"runtime__cache": str(tmp_path / "cache")}
    alone = run(make_tiny, tmp_path, "alone")
    first = run(make_tiny, tmp_path, "first", **cache)
    second = run(make_tiny, tmp_path, "second", **cache)
    assert same(alone, first)
    assert same(first, second)
    assert found(alone) == found(first) == []
    # Nothing is left to compute: members, the prior and baselines, the scores of all, and four students.
    assert sum(w.endswith("training") for w in found(second)) == 2
    assert sum(w.startswith("student ") for w in found(second)) >= 3
    weights = "members/00/model.safetensors"
    assert (first.run_dir / weights).read_bytes() == (second.run_dir / weights).read_bytes()

    # Another shrinkage: the first member and what it scored are the same, the second member is not.
    other = {"boosting__learning_rate": 0.25}
    plain, shared = (
        run(make_tiny, tmp_path, "o-plain", **other),
        run(make_tiny, tmp_path, "o", **other, **cache),
    )
    assert same(plain, shared)
    trainings = [w for w in found(shared) if w.endswith("training")]
    assert trainings == ["round 1 of 2: training"]
    assert "student ceiling" in found(shared)


def test_keys_tell_models_apart(make_tiny: MakeConfig, tmp_path: Path, tiny_weak: Path) -> None:
    """Files of one hub repository, layers, and the content of a local folder."""
    import shutil

    from ensemw2s.config import ModelConfig
    from ensemw2s.engine.keys import pretrained_key

    hub = [
        ModelConfig(path="nobody/nothing"),
        ModelConfig(path="nobody/nothing", revision="v2"),
        ModelConfig(path="nobody/nothing", gguf_file="a.gguf"),
        ModelConfig(path="nobody/nothing", gguf_file="b.gguf"),
        ModelConfig(path="nobody/nothing", drop_layers="1"),
    ]
    assert len({pretrained_key(model) for model in hub}) == len(hub)
    copy = shutil.copytree(tiny_weak, tmp_path / "copy")
    same = pretrained_key(ModelConfig(path=str(tiny_weak)))
    assert pretrained_key(ModelConfig(path=str(copy), label="another name")) == same
    (copy / "modeling_own.py").write_text("x = 1")
    assert pretrained_key(ModelConfig(path=str(copy))) != same
