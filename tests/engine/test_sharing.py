"""Runs that share equal work end where runs that do everything themselves end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.engine.keys import WorkKeys
from ensemw2s.engine.member_training import MemberTraining
from ensemw2s.engine.pool import Done
from ensemw2s.engine.results import comparable
from ensemw2s.engine.sharing import SharingPool
from ensemw2s.engine.tasks import TrainOutcome
from ensemw2s.runs.cache import ResultCache
from ensemw2s.training.share import Share

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


class Trainers:
    """A pool whose trainings are counted; the first of several writes the member."""

    size = 2

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.broken = False

    def submit(self, slot: int, method: str, task: Any) -> Any:
        if self.broken:
            raise OSError("no supervisor")
        self.asked.append(0 if task.share is None else task.share.rank)
        if self.asked[-1] == 0:
            task.output.mkdir(parents=True, exist_ok=True)
            (task.output / "weights").write_text("w")
        return Done(TrainOutcome(1.0, 2, 3.0, "cpu", 4, [0.5]))


def member_task(output: Path, share: Share | None = None) -> Any:
    return SimpleNamespace(name="member", output=output, share=share)


@pytest.mark.timeout(20)
def test_processes_that_train_one_member_together_share_it(tmp_path: Path) -> None:
    """All are asked before any of them is waited for; a second run asks none."""
    inner, names = Trainers(), []
    keys: Any = SimpleNamespace(member=lambda task: "k" * 64)
    for name, asked in (("first", [0, 1]), ("second", [])):
        inner.asked = []
        pool = SharingPool(inner, ResultCache(tmp_path / "cache"), keys, names.append)
        tasks = [member_task(tmp_path / name, Share(rank, 2, "here")) for rank in range(2)]
        pending = [pool.submit(rank, "train_member", task) for rank, task in enumerate(tasks)]
        assert [p.result().steps for p in pending] == [4, 4]
        assert inner.asked == asked
        assert (tmp_path / name / "weights").read_text() == "w"
    assert names == ["member"]


@pytest.mark.timeout(20)
def test_work_that_cannot_be_begun_is_free_for_others(tmp_path: Path) -> None:
    inner, cache = Trainers(), ResultCache(tmp_path / "cache")
    keys: Any = SimpleNamespace(member=lambda task: "k" * 64)
    pool = SharingPool(inner, cache, keys, lambda name: None)
    inner.broken = True
    with pytest.raises(OSError, match="no supervisor") as failed:
        pool.submit(0, "train_member", member_task(tmp_path / "a"))
    # The error is still there, with all that it refers to.
    cache.lock(["k" * 64]).close()
    assert failed.value.args == ("no supervisor",)


@pytest.mark.timeout(20)
def test_a_training_that_is_given_up_may_be_asked_for_again(tmp_path: Path) -> None:
    """By the same process, while the error that made it give up is still there."""
    inner, keys = Trainers(), SimpleNamespace(member=lambda task: "k" * 64)
    pool: Any = SharingPool(inner, ResultCache(tmp_path / "cache"), keys, lambda name: None)  # type: ignore[arg-type]
    ctx: Any = SimpleNamespace(
        config=SimpleNamespace(runtime=SimpleNamespace(member_workers=1, max_failures=0))
    )
    first = MemberTraining(ctx, pool, 0, member_task(tmp_path / "a"))
    first.close()
    again = MemberTraining(ctx, pool, 0, member_task(tmp_path / "a"))
    assert again.result().steps == 4
    assert inner.asked == [0, 0]
    first.close()


def test_a_loss_of_ones_own_is_known_by_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ensemw2s.config import TrainingConfig

    source = tmp_path / "losses_of_mine.py"
    monkeypatch.syspath_prepend(tmp_path)
    keys = object.__new__(WorkKeys)
    found = []
    for factor in (1, 2):
        source.write_text(f"def mine(logits, targets):\n    return {factor} * logits.sum(-1)\n")
        os.utime(source, ns=(factor * 10**9, factor * 10**9))
        found.append(keys._training(TrainingConfig(loss="losses_of_mine:mine")))
    assert found[0]["code"] != found[1]["code"]
    assert "code" not in keys._training(TrainingConfig(loss="cross_entropy"))
