"""Settings resolved and written: DeepSpeed files, mappings, absolute paths, and the dump that reads back."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemw2s.config import (
    BuiltinSource,
    DataConfig,
    ExperimentConfig,
    FileSource,
    ModelConfig,
    StrongConfig,
    StrongTrainingConfig,
    TrainingConfig,
    WeakConfig,
)
from ensemw2s.settings import (
    absolute_paths,
    config_from_mapping,
    dump_config,
    load_config,
    load_deepspeed,
)
from ensemw2s.settings.deepspeed_file import builtin_folder
from ensemw2s.settings.yaml_text import dump, parse
from tests.settings_files import BASE, load, problems


class TestDeepSpeed:
    def test_the_default_is_replaced_by_the_content_of_its_file(self, tmp_path: Path) -> None:
        expected = json.loads((builtin_folder() / "zero2.json").read_text())
        assert load(tmp_path).strong.training.deepspeed == expected
        assert expected["zero_optimization"]["stage"] == 2

    @pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
    def test_builtin_names(self, name: str, stage: int) -> None:
        assert load_deepspeed(name)["zero_optimization"]["stage"] == stage

    def test_a_path_starts_at_the_configuration_then_at_the_working_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here, there = tmp_path / "here", tmp_path / "there"
        for folder, stage in ((here, 1), (there, 0)):
            folder.mkdir()
            (folder / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        monkeypatch.chdir(there)
        key = "strong.training.deepspeed"
        assert load(here, f"{key}=ds.json").strong.training.deepspeed == {"zero_optimization": {"stage": 1}}
        (here / "ds.json").unlink()
        assert load(here, f"{key}=ds.json").strong.training.deepspeed == {"zero_optimization": {"stage": 0}}

    def test_one_part_changed_keeps_the_rest(self, tmp_path: Path) -> None:
        given = load(
            tmp_path, "strong.training.deepspeed.zero_optimization.stage=1"
        ).strong.training.deepspeed
        expected = load_deepspeed("zero2")
        expected["zero_optimization"]["stage"] = 1
        assert given == expected

    def test_the_content_is_part_of_the_identity(self, tmp_path: Path) -> None:
        (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
        first = load(tmp_path, "strong.training.deepspeed=ds.json").identity_hash()
        (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 3}}')
        assert load(tmp_path, "strong.training.deepspeed=ds.json").identity_hash() != first

    @pytest.mark.parametrize("key", ["train_batch_size", "gradient_clipping", "bf16", "fp16", "scheduler"])
    def test_keys_that_other_fields_decide(self, tmp_path: Path, key: str) -> None:
        (tmp_path / "ds.json").write_text(json.dumps({key: 1, "zero_optimization": {"stage": 2}}))
        (line,) = problems(tmp_path, "strong.training.deepspeed=ds.json")
        assert line.startswith(f"strong.training.deepspeed (ds.json): {key} is set by strong.")

    @pytest.mark.parametrize(
        ("content", "wanted"),
        [
            ("{", "line 1: not JSON"),
            ("[1]", "not a JSON object"),
            (None, "neither zero2 nor zero3 nor a file"),
        ],
    )
    def test_files_that_cannot_be_used(self, tmp_path: Path, content: str | None, wanted: str) -> None:
        if content is not None:
            (tmp_path / "ds.json").write_text(content)
        (line,) = problems(tmp_path, "strong.training.deepspeed=ds.json")
        assert wanted in line


class TestMapping:
    def test_the_same_as_from_a_file(self, tmp_path: Path) -> None:
        data = yaml.safe_load(BASE)
        assert config_from_mapping(data, ["seed=4"]) == load(tmp_path, "seed=4")

    def test_the_data_is_left_as_it_was(self) -> None:
        data = yaml.safe_load(BASE)
        config_from_mapping(data, ["weak.models.0.path=other"])
        assert data == yaml.safe_load(BASE)


class TestAbsolutePaths:
    def test_existing_local_paths_only(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "weak-model").mkdir()
        (tmp_path / "questions.jsonl").touch()
        (tmp_path / "m.gguf").touch()
        config = load(
            tmp_path,
            "weak.models.1.path=m.gguf",
            "weak.models.2.path=package:some-model",
            "data.extra_tests.ood={kind: file, path: questions.jsonl}",
            "data.extra_tests.copy={kind: builtin, name: boolq, path: weak-model}",
            "data.extra_tests.hub={kind: builtin, name: boolq}",
            "data.test={kind: hub, path: weak-model, split: test}",
        )
        before = config.identity_hash()
        moved = absolute_paths(config)
        assert [model.path for model in moved.weak.models] == [
            str(tmp_path / "weak-model"),
            str(tmp_path / "m.gguf"),
            "package:some-model",
        ]
        assert moved.strong.model.path == "strong-model"
        assert moved.data.pool == FileSource(path=str(tmp_path / "questions.jsonl"))
        assert moved.data.extra_tests["ood"] == moved.data.pool
        copy = moved.data.extra_tests["copy"]
        assert copy == BuiltinSource(name="boolq", path=str(tmp_path / "weak-model"))
        assert moved.data.extra_tests["hub"] == config.data.extra_tests["hub"]
        assert moved.data.test is not None
        assert moved.data.test.model_dump()["path"] == str(tmp_path / "weak-model")
        assert moved.runs_dir == str(tmp_path / "runs")
        assert config.identity_hash() == before
        assert config.weak.models[0].path == "weak-model"

    def test_nothing_else_changes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        config = load(tmp_path)
        assert absolute_paths(config).identity_hash() == config.identity_hash()


QUICK = settings(deadline=None, derandomize=True, max_examples=60)

# Printable text, and the strings that YAML 1.1 or 1.2 would take for something else.
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20) | st.sampled_from(
    [
        "",
        "no",
        "null",
        "~",
        "1e5",
        "0o17",
        "0x1f",
        "1_000",
        "12:30",
        "2024-01-01",
        ".nan",
        "a: b",
        "# c",
        "'",
        "\n",
        " x ",
    ]
)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers()


@st.composite
def configs(draw: st.DrawFn) -> ExperimentConfig:
    model = ModelConfig(path=draw(TEXT), revision=draw(st.none() | TEXT), label=draw(st.none() | TEXT))
    options = draw(
        st.dictionaries(TEXT, NUMBERS | TEXT | st.booleans() | st.none() | st.lists(TEXT), max_size=3)
    )
    return ExperimentConfig(
        name="a",
        data=DataConfig(pool=FileSource(path=draw(TEXT)), prompt=draw(TEXT) + "{question}" + draw(TEXT)),
        weak=WeakConfig(models=(model,), training=TrainingConfig(learning_rate=draw(st.floats(1e-12, 1.0)))),
        strong=StrongConfig(model=model, training=StrongTrainingConfig(deepspeed=options)),
    )


class TestDump:
    def test_the_text_loads_back_to_an_equal_configuration(self, tmp_path: Path) -> None:
        config = load(tmp_path, "weak.models.0.drop_layers=3", "data.test={kind: builtin, name: sciq}")
        assert load(tmp_path, text=dump_config(config)) == config

    @QUICK
    @given(configs())
    def test_any_configuration_survives(
        self, tmp_path_factory: pytest.TempPathFactory, config: ExperimentConfig
    ) -> None:
        path = tmp_path_factory.mktemp("dump") / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        assert load_config(path) == config

    @given(
        st.recursive(NUMBERS | TEXT | st.booleans() | st.none(), lambda inner: st.lists(inner, max_size=3))
    )
    def test_any_value_survives(self, value: object) -> None:
        assert parse(dump({"value": value}), "text").value == {"value": value}

    def test_scalars_follow_yaml_1_2(self) -> None:
        text = "[no, on, 12:30, 010, 0o17, 0x1F, 1_000, 5e-5, .5, -.inf, 2024-01-01, ~, True, !!str 3]"
        expected = [
            "no",
            "on",
            "12:30",
            10,
            15,
            31,
            "1_000",
            5e-5,
            0.5,
            -math.inf,
            "2024-01-01",
            None,
            True,
            "3",
        ]
        assert parse(text, "text").value == expected
