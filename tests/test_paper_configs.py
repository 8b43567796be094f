"""The configurations of the paper's settings: all load, and with small models in their places all can be prepared."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s import cli
from ensemw2s.config import BuiltinSource, ExperimentConfig, FileSource
from ensemw2s.data import builtin
from ensemw2s.data.samples import samples_to_table
from ensemw2s.data.sources import load_source
from ensemw2s.engine.prepare import prepare
from ensemw2s.errors import DataError
from ensemw2s.settings import load_config

from .conftest import questions, write_jsonl

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "configs" / "paper").glob("*.yaml"))
SETTINGS = ("binary-random", "binary-easy-hard", "generative-random", "generative-easy-hard")


def test_every_setting_and_family_is_there_and_documented() -> None:
    families = ("gpt2", "opt", "pythia", "qwen")
    assert [f.stem for f in FILES] == sorted(f"{s}-{f}" for s in SETTINGS for f in families)
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    for path in FILES:
        config = load_config(path, [])
        assert config.name == f"paper-{path.stem}"
        family = path.stem.rsplit("-", 1)[1]
        for model in (*config.weak.models, config.strong.model):
            assert model.path in text
            assert family in model.path.lower()
        assert f"`{path.stem.removesuffix(f'-{family}')}-*`" in text


def small(path: Path, folder: Path, weak: Path, strong: Path) -> ExperimentConfig:
    """The same experiment with tiny models and, for each source, other questions of the same form."""
    config = load_config(path, [])
    sources = {
        n: getattr(config.data, n) for n in ("pool", "easy", "hard", "test") if getattr(config.data, n)
    }
    sources |= config.data.extra_tests
    binary = path.stem.startswith("binary")

    def local(name: str, source: Any) -> FileSource:
        rows = [
            {**row, "id": f"{name}-{row['id']}", "question": f"{name}: {row['question']}"}
            for row in questions()
        ]
        if binary:
            rows = [{**row, "choices": ["no", "yes"], "answer": row["answer"] % 2} for row in rows]
        return FileSource(path=str(write_jsonl(folder / f"{name}.jsonl", rows)))

    made = {name: local(name, source) for name, source in sources.items()}
    extra = {name: made[name] for name in config.data.extra_tests}
    data = config.data.model_copy(
        update={
            **{n: s for n, s in made.items() if n not in extra},
            "extra_tests": extra,
            "max_length": 100,
            "add_bos": False,
        }
    )
    return config.model_copy(
        update={
            "data": data,
            "runs_dir": str(folder / "runs"),
            "weak": config.weak.model_copy(
                update={"models": (config.weak.models[0].model_copy(update={"path": str(weak)}),)}
            ),
            "strong": config.strong.model_copy(
                update={"model": config.strong.model.model_copy(update={"path": str(strong)})}
            ),
            "runtime": config.runtime.model_copy(update={"device": "cpu"}),
        }
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_setting_can_be_prepared(path: Path, tmp_path: Path, tiny_weak: Path, tiny_strong: Path) -> None:
    setting = path.stem.rpartition("-")[0]
    prepared = prepare(small(path, tmp_path, tiny_weak, tiny_strong))
    roles = prepared.splits.roles
    assert {"easy_train", "easy_val", "hard_train", "test"} < set(roles)
    assert "further_test" in roles.values()
    if setting == "binary-easy-hard":
        easy = [s.difficulty for s in prepared.splits.samples["easy_train"]]
        hard = [s.difficulty for s in prepared.splits.samples["test"]]
        assert max(easy) < min(hard)  # type: ignore[type-var]


def test_the_rating_that_an_easy_hard_setting_asks_for_is_of_its_own_data() -> None:
    for path in FILES:
        if path.stem.startswith("binary-easy-hard"):
            config, text = load_config(path, []), path.read_text(encoding="utf-8")
            assert isinstance(config.data.pool, FileSource)
            assert f"--output {config.data.pool.path}" in text
            random = path.with_name(path.name.replace("easy-hard", "random"))
            assert f"ensemw2s rate configs/paper/{random.name}" in text
            rated = load_config(random, [])
            assert isinstance(rated.data.pool, BuiltinSource)
            assert rated.weak == config.weak


ROWS: dict[str, Callable[[str], dict[str, Any]]] = {
    "arc_easy": lambda n: _labelled(n),
    "arc_challenge": lambda n: _labelled(n),
    "quartz": lambda n: _labelled(n),
    "sciq": lambda n: _sciq(n),
    "sciq_binary": lambda n: _sciq(n),
    "boolq": lambda n: {"question": f"is it {n}", "answer": len(n) % 2 == 0, "passage": f"It is {n}."},
    "amazon_polarity": lambda n: {"label": len(n) % 2, "title": n, "content": "Good."},
    "cosmosqa": lambda n: {
        "id": n,
        "context": n,
        "question": "Why?",
        **{f"answer{i}": f"reason {i}" for i in range(4)},
        "label": 1,
    },
    "anthropic_hh": lambda n: {"chosen": f"Human: {n}", "rejected": f"Human: not {n}"},
}


def _labelled(n: str) -> dict[str, Any]:
    choices = {"text": ["no", "yes"], "label": ["A", "B"]}
    return {"id": n, "question": f"Is it {n}?", "choices": choices, "answerKey": "B"}


def _sciq(n: str) -> dict[str, Any]:
    wrong = {f"distractor{i}": f"part {i}" for i in (1, 2, 3)}
    return {"question": f"What does {n} need?", "correct_answer": "water", **wrong}


@pytest.fixture
def local_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every built-in data set as a small one on this machine, of other questions in each split."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    for name, row in ROWS.items():
        folder = tmp_path / "sets" / name
        folder.mkdir(parents=True)
        for split in ("train", "validation", "test"):
            table = pa.Table.from_pylist([row(f"{name} {split} {'i' * i}") for i in range(40)])
            pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
        monkeypatch.setitem(builtin._DATASETS[name], "path", str(folder))
        for key in ("name", "revision"):
            monkeypatch.delitem(builtin._DATASETS[name], key, raising=False)


def commands(section: str) -> list[tuple[str, str, list[str]]]:
    """(command, configuration, the rest) of the lines in the code blocks of a section of docs/paper.md."""
    text = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")
    part = text.split(f"## {section}\n")[1].split("\n## ")[0]
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", part, re.DOTALL)).replace("\\\n", "")
    words = [shlex.split(line) for line in blocks.splitlines() if line]
    assert all(w[0] == "ensemw2s" for w in words)
    return [(w[1], w[2], w[3:]) for w in words]


def test_other_data_sets_are_had_as_the_page_says(
    local_sets: None, tmp_path: Path, tiny_weak: Path, tiny_strong: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [f"weak.models.0.path={tiny_weak}", f"strong.model.path={tiny_strong}", "data.max_length=128"]
    sizes: dict[str, dict[str, int]] = {}
    for command, name, rest in commands("Other data sets"):
        if command == "rate":
            at = rest.index("--output")
            config = load_config(ROOT / name, [word for word in rest[:at] if "=" in word])
            assert config.data.pool is not None
            samples = [replace(s, difficulty=float(i)) for i, s in enumerate(load_source(config.data.pool))]
            Path(rest[at + 1]).parent.mkdir(exist_ok=True)
            pq.write_table(samples_to_table(samples), rest[at + 1])
            continue
        prepared = prepare(load_config(ROOT / name, [*rest, *small]))
        sizes[prepared.config.name] = {n: len(s) for n, s in prepared.splits.samples.items()}
    assert len(sizes) == 6
    assert min(n for size in sizes.values() for n in size.values()) >= 3
    assert sizes["boolq-random"]["sciq"] == sizes["challenge-random"]["arc_easy"] == 40
    assert (
        sizes["cosmosqa-easy-hard"]["all_difficulties"] == sizes["quartz-easy-hard"]["all_difficulties"] == 40
    )


@pytest.mark.parametrize("name", sorted(ROWS))
def test_which_sets_take_the_place_of_a_pool(
    name: str, local_sets: None, tmp_path: Path, tiny_weak: Path, tiny_strong: Path
) -> None:
    """With two overrides, but for the further test set of the configuration."""
    binary = name in builtin.MAPPINGS
    path = (
        ROOT
        / "configs"
        / "paper"
        / ("binary-random-gpt2.yaml" if binary else "generative-random-pythia.yaml")
    )
    overrides = [f"data.pool.name={name}", f"data.test.name={name}", "data.max_length=128"]
    config = load_config(
        path, [*overrides, f"weak.models.0.path={tiny_weak}", f"strong.model.path={tiny_strong}"]
    )
    if name in config.data.extra_tests:
        with pytest.raises(DataError, match=f"^the split {name} is empty"):
            prepare(config)
    else:
        assert min(len(s) for s in prepare(config).splits.samples.values()) >= 3


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_doctor_and_a_dry_run_find_nothing_wrong(
    path: Path,
    local_sets: None,
    tmp_path: Path,
    tiny_weak: Path,
    tiny_strong: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With tiny models and data sets of this machine in the place of the hub's."""
    monkeypatch.chdir(tmp_path)
    config = load_config(path, [])
    if isinstance(config.data.pool, FileSource):
        rated = load_source(BuiltinSource(name="sciq_binary"))
        Path(config.data.pool.path).parent.mkdir()
        pq.write_table(
            samples_to_table([replace(s, difficulty=float(i)) for i, s in enumerate(rated)]),
            config.data.pool.path,
        )
    # The tiny tokenizer has no token that begins a text.
    given = [f"weak.models.0.path={tiny_weak}", f"strong.model.path={tiny_strong}", "data.max_length=128"]
    given += ["data.add_bos=false"] if config.data.add_bos else []
    assert cli.main(["doctor", str(path), *given]) == 0
    assert cli.main(["run", str(path), "--dry-run", *given]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_doctor_says_what_is_not_reachable(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    code = cli.main(["doctor", str(ROOT / "configs" / "paper" / "binary-easy-hard-pythia.yaml")])
    shown = " ".join(capsys.readouterr().out.split())
    assert code == 1
    assert "bad weak model 0 " in shown
    assert "EleutherAI/pythia-160m" in shown
    assert "rated/sciq-binary-pythia.parquet does not exist" in shown
