"""The configurations of the paper's settings: all load, and with small models in their places all can be prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ensemw2s import cli
from ensemw2s.config import BuiltinSource, ExperimentConfig, FileSource
from ensemw2s.engine.prepare import prepare
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


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_can_be_prepared(setting: str, tmp_path: Path, tiny_weak: Path, tiny_strong: Path) -> None:
    path = ROOT / "configs" / "paper" / f"{setting}-gpt2.yaml"
    prepared = prepare(small(path, tmp_path, tiny_weak, tiny_strong))
    roles = prepared.splits.roles
    assert {"easy_train", "easy_val", "hard_train", "test"} < set(roles)
    assert "out_of_distribution" in roles.values()
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
