"""Configuration files: what is read, and what is refused in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemw2s import cli
from ensemw2s.config import (
    BoostingConfig,
    FileSource,
    LoraConfig,
    ModelConfig,
    TrainingConfig,
)
from ensemw2s.errors import ConfigError
from ensemw2s.settings import load_config
from ensemw2s.settings.yaml_text import parse, quoted
from tests.settings_files import BASE, load, problems, write


class TestReading:
    def test_what_is_given_is_taken_and_the_rest_is_default(self, tmp_path: Path) -> None:
        config = load(tmp_path, text=BASE + "boosting:\n  rounds: 7\n  learning_rate: 5e-1\n")
        assert config.name == "tiny"
        assert config.data.pool == FileSource(path="questions.jsonl")
        assert config.boosting == BoostingConfig(rounds=7, learning_rate=0.5)
        assert config.weak.training == TrainingConfig()

    @pytest.mark.parametrize("text", ["5e-5", "5.0e-05", "0.00005", "5E-5", "'5e-5'"])
    def test_a_float_in_any_notation(self, tmp_path: Path, text: str) -> None:
        yaml_text = BASE.replace("weak:\n", f"weak:\n  training: {{learning_rate: {text}}}\n")
        assert load(tmp_path, text=yaml_text).weak.training.learning_rate == 5e-5

    @pytest.mark.parametrize("text", ["12", "3-5", "12,14", "007", "1e1"])
    def test_text_that_looks_like_a_number_stays_as_written(self, tmp_path: Path, text: str) -> None:
        body = BASE.replace(
            "- path: weak-model", f"- path: weak-model\n      label: {text}\n      revision: {text}"
        )
        model = load(tmp_path, text=body).weak.models[0]
        assert (model.label, model.revision) == (text, text)

    @pytest.mark.parametrize("text", ["yes", "no", "on", "true", "False"])
    def test_text_that_looks_like_a_truth_value_stays_as_written(self, tmp_path: Path, text: str) -> None:
        assert load(tmp_path, f"weak.models.0.label={text}").weak.models[0].label == text

    def test_names_that_look_like_numbers_are_names(self, tmp_path: Path) -> None:
        extra = "  extra_tests:\n    2024: {kind: file, path: a.jsonl}\n    on: {kind: file, path: b.jsonl}\n"
        config = load(tmp_path, text=BASE.replace("weak:\n", extra + "weak:\n"))
        assert list(config.data.extra_tests) == ["2024", "on"]

    def test_the_result_is_frozen(self, tmp_path: Path) -> None:
        config = load(tmp_path)
        with pytest.raises(ValueError, match="frozen"):
            config.name = "other"  # type: ignore[misc]


class TestOverrides:
    def test_three_forms_mean_the_same(self, tmp_path: Path) -> None:
        forms = (["boosting.rounds=5"], ["--boosting.rounds=5"], ["--boosting.rounds", "5"])
        assert [load(tmp_path, *form).boosting.rounds for form in forms] == [5, 5, 5]

    def test_the_last_one_wins(self, tmp_path: Path) -> None:
        assert load(tmp_path, "seed=1", "--seed", "2", "seed=3").seed == 3

    def test_positions_in_lists(self, tmp_path: Path) -> None:
        config = load(tmp_path, "weak.models.0.drop_layers=12-21", "weak.models.1.path=other")
        assert config.weak.models == (
            ModelConfig(path="weak-model", drop_layers="12-21"),
            ModelConfig(path="other"),
        )

    def test_sections_on_the_way_are_made(self, tmp_path: Path) -> None:
        assert load(tmp_path, "strong.model.lora.rank=4").strong.model.lora == LoraConfig(rank=4)

    def test_null_switches_off(self, tmp_path: Path) -> None:
        text = BASE.replace("{path: strong-model}", "{path: strong-model, lora: {rank: 4}}")
        assert load(tmp_path, "strong.model.lora=null", text=text).strong.model.lora is None

    def test_a_whole_section(self, tmp_path: Path) -> None:
        config = load(tmp_path, "data.test={kind: file, path: t.csv, limit: 3}")
        assert config.data.test == FileSource(path="t.csv", limit=3)

    @pytest.mark.parametrize(
        "prompt",
        ["Q: {question} # x", "{question}", "- {question}: [", "{question} ? yes: no", "& {question}"],
    )
    def test_a_text_field_takes_the_text_as_it_is(self, tmp_path: Path, prompt: str) -> None:
        assert load(tmp_path, f"data.prompt={prompt}").data.prompt == prompt

    def test_quotes_give_escapes(self, tmp_path: Path) -> None:
        assert load(tmp_path, r'data.prompt="{question}\n\tA:"').data.prompt == "{question}\n\tA:"

    def test_a_value_may_begin_with_a_minus_sign(self, tmp_path: Path) -> None:
        assert load(tmp_path, "--data.split.seed", "-3").data.split.seed == -3

    @pytest.mark.parametrize("argument", ["boosting.rounds", "=3", "boosting..rounds=3", "--", "--=3"])
    def test_what_is_no_override_is_named(self, tmp_path: Path, argument: str) -> None:
        (line,) = problems(tmp_path, argument)
        assert "is not an override" in line
        assert repr(argument) in line

    def test_a_key_without_a_value(self, tmp_path: Path) -> None:
        lines = problems(tmp_path, "--seed", "--boosting.rounds")
        assert [line.split(":")[0] for line in lines] == ["--seed", "--boosting.rounds"]

    def test_a_position_that_is_not_there(self, tmp_path: Path) -> None:
        (line,) = problems(tmp_path, "weak.models.4.path=x")
        assert line == "weak.models.4: weak.models is a list: give a position: 0 to 0, or 1 to add one"

    def test_a_position_of_a_list_that_the_file_lacks(self, tmp_path: Path) -> None:
        (line,) = problems(tmp_path, "strong.training.adam_betas.1=0.95")
        assert "the file has no list strong.training.adam_betas" in line

    def test_a_part_of_a_single_value(self, tmp_path: Path) -> None:
        (line,) = problems(tmp_path, "name.x=3")
        assert line == 'name.x: name is "tiny", a single value that has no parts'


class TestProblems:
    def test_all_at_once(self, tmp_path: Path) -> None:
        lines = problems(
            tmp_path,
            "boosting.rounds=0",
            "boosting.learning_rate=-1",
            "nonsense=1",
            "strong.model.path=null",
            "x",
        )
        assert sorted(line.split(":")[0] for line in lines) == [
            "'x' is not an override",
            "boosting.learning_rate",
            "boosting.rounds",
            "nonsense",
            "strong.model.path",
        ]

    @pytest.mark.parametrize(
        ("override", "line"),
        [
            ("boosting.rounds=0", "boosting.rounds: 0 is not allowed: it must be a whole number >= 1"),
            ("boosting.rounds=2.5", "boosting.rounds: 2.5 is not allowed: it must be a whole number >= 1"),
            ("boosting.rounds=true", "boosting.rounds: true is not allowed: it must be a whole number >= 1"),
            (
                "boosting.rounds=many",
                'boosting.rounds: "many" is not allowed: it must be a whole number >= 1',
            ),
            ("boosting.rounds=", "boosting.rounds: null is not allowed: it must be a whole number >= 1"),
            (
                "boosting.learning_rate=.nan",
                "boosting.learning_rate: .nan is not allowed: it must be a number > 0",
            ),
            (
                "boosting.learning_rate=nan",
                'boosting.learning_rate: "nan" is not allowed: it must be a number > 0',
            ),
            (
                "boosting.epsilon=0.5",
                "boosting.epsilon: 0.5 is not allowed: it must be a number > 0 and < 0.5",
            ),
            (
                "runtime.threads=0",
                "runtime.threads: 0 is not allowed: it must be a whole number >= 1, or auto",
            ),
            (
                "boosting.unit=choise",
                'boosting.unit: "choise" is not allowed: it must be token, window, sample or choice; '
                "did you mean choice?",
            ),
            (
                'vote.stop=["x", ""]',
                'vote.stop.1: "" is not allowed: it must be text of at least 1 character',
            ),
            (
                "weak.models=[]",
                "weak.models: [] is not allowed: it must be a list of sections (at least 1 value)",
            ),
            (
                "weak.models=[{path: a, lora: {target_modules: [{a: 1}]}}]",
                'weak.models.0.lora.target_modules.0: {"a": 1} is not allowed: it must be text',
            ),
            (
                "data.pool.kind=fil",
                'data.pool.kind: "fil" is not allowed: it must be one of file, hub, builtin, reasoning_gym; '
                "did you mean file?",
            ),
            ("data.pool={path: x}", "data.pool.kind: missing: give one of file, hub, builtin, reasoning_gym"),
            (
                "data.pool={kind: file}",
                "data.pool.path: missing: give text",
            ),
            ("boosting.round=3", "boosting.round: unknown key; did you mean boosting.rounds?"),
            ("rounds=3", "rounds: unknown key; did you mean boosting.rounds or vote.rounds?"),
            ("data.pool.pth=3", "data.pool.pth: unknown key; did you mean data.pool.path?"),
            (
                "strong.zzz=3",
                "strong.zzz: unknown key; strong has model, training, preference",
            ),
            (
                "data.split.easy_threshold=nan",
                'data.split.easy_threshold: "nan" is not allowed: it must be a number, or null',
            ),
            (
                "boosting=null",
                "boosting: null is not allowed: it must be a section of keys (rounds, method, unit, ...)",
            ),
        ],
    )
    def test_one_line_says_what_came_and_what_is_allowed(
        self, tmp_path: Path, override: str, line: str
    ) -> None:
        extra = ("data.split.method=difficulty",) if "easy_threshold" in override else ()
        assert problems(tmp_path, override, *extra) == [line]

    def test_a_rule_between_fields_names_its_section(self, tmp_path: Path) -> None:
        (line,) = problems(tmp_path, "weak.models.0.drop_layers=1", "weak.models.0.keep_layers=2")
        assert line == "weak.models.0: give drop_layers or keep_layers, not both"

    def test_missing_sections(self, tmp_path: Path) -> None:
        lines = problems(tmp_path, text="name: x\n")
        assert [line.split(":")[0] for line in lines] == ["data", "weak", "strong"]

    @pytest.mark.parametrize(
        ("text", "wanted"),
        [
            ("", "is empty"),
            ("# nothing\n", "is empty"),
            ("- a\n", "holds a list"),
            ("3\n", "holds 3"),
            ("name: [\n", "line 2, column 1: not YAML"),
            ("name: a\nb: c: d\n", "line 2, column 5: not YAML"),
            ("name: a\n---\nname: b\n", "line 2, column 1: not YAML"),
            (BASE + "name: again\n", "line 9: name is given twice (first in line 1)"),
            (
                BASE + "<<: {seed: 1}\n",
                "line 9: merge keys (<<) are not part of YAML 1.2: write the keys out",
            ),
            (
                BASE.replace("{path: strong-model}", "{path: a, path: b}"),
                "line 8: strong.model.path is given twice",
            ),
            ("name: !!python/name:os.system\n", "line 1: the tag"),
            ("name: &a [*a]\n", "line 1: an alias refers to what it is a part of"),
            ("name: !!int abc\n", "line 1: 'abc' is not of the type int"),
            ("? [a]\n: b\n", "line 1: a key must be text"),
        ],
    )
    def test_text_that_is_no_configuration(self, tmp_path: Path, text: str, wanted: str) -> None:
        lines = problems(tmp_path, text=text)
        assert wanted in lines[0]
        assert all("\n" not in line for line in lines)

    @pytest.mark.parametrize("command", [["run"], ["run", "--dry-run"], ["doctor"]])
    @pytest.mark.parametrize(
        ("text", "kind", "use"),
        [
            ("parameters: {boosting.rounds: {grid: [1, 2]}}", "a sweep, not an experiment", "sweep"),
            ("variants: {EnsemW2S: {}}", "a comparison, not an experiment", "compare"),
            ("seeds: [0, 1]", "a comparison, not an experiment", "compare"),
        ],
    )
    def test_a_sweep_or_a_comparison_is_no_experiment(
        self,
        tmp_path: Path,
        text: str,
        kind: str,
        use: str,
        command: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        path = write(tmp_path, f"name: study\nbase: tiny.yaml\n{text}\n")
        assert cli.main([*command, str(path), "seed=1"]) == 2
        line = f"{path} is {kind}: use ensemw2s {use} {path}, or give the experiment that is its base"
        assert capsys.readouterr().err == f"error: {line}\n"

    def test_a_sweep_is_no_comparison_and_the_other_way_round(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        sweep, comparison = tmp_path / "sweep.yaml", tmp_path / "comparison.yaml"
        sweep.write_text("name: a\nbase: b.yaml\nparameters: {boosting.rounds: {grid: [1, 2]}}\nsamples: 2\n")
        comparison.write_text("name: a\nbase: b.yaml\nvariants: {EnsemW2S: {}}\nseeds: [0, 1]\n")
        for command, path, line in (
            ("compare", sweep, f"{sweep} is a sweep, not a comparison: use ensemw2s sweep {sweep}"),
            (
                "sweep",
                comparison,
                f"{comparison} is a comparison, not a sweep: use ensemw2s compare {comparison}",
            ),
        ):
            assert cli.main([command, str(path)]) == 2
            assert capsys.readouterr().err == f"error: {line}\n"

    def test_an_experiment_with_a_base_is_told_that_there_is_no_such_key(self, tmp_path: Path) -> None:
        (line,) = problems(tmp_path, text=BASE + "base: other.yaml\n")
        assert line.startswith("base: unknown key")

    def test_a_file_that_unfolds_without_end(self, tmp_path: Path) -> None:
        levels = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 8))
        assert "unfolds to more than" in problems(tmp_path, text="a0: &a0 [x]\n" + levels)[0]

    def test_files_that_cannot_be_read(self, tmp_path: Path) -> None:
        binary = tmp_path / "binary.yaml"
        binary.write_bytes(b"\xff\xfe\x00")
        for path, wanted in (
            (tmp_path / "no.yaml", "no such file"),
            (tmp_path, "folder"),
            (binary, "cannot be read"),
        ):
            with pytest.raises(ConfigError, match=wanted) as caught:
                load_config(path)
            assert str(path) in str(caught.value)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans())
def test_a_text_that_is_written_is_read_as_it_was(text: str, in_a_list: bool) -> None:
    value = [text, "x"] if in_a_list else text
    assert parse(quoted(value), "test").value == value
