"""A comparison of tiny runs: the table against the stored predictions, shared work, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from ensemw2s import cli
from ensemw2s.comparisons.command import claim
from ensemw2s.comparisons.config import load_comparison
from ensemw2s.errors import ConfigError, RunDirectoryError

MakeConfig = Callable[..., dict[str, Any]]
FILE = {
    "name": "ways",
    "base": "base.yaml",
    "seeds": [3, 4],
    "variants": {
        "boosted": {},
        "uniform": {"vote.label_model": "uniform"},
        "bagged": {"boosting.method": "bagging"},
    },
}
TINY = {"weak__training__epochs": 4, "weak__training__learning_rate": 2e-2, "boosting__prior": "unigram"}


def write(folder: Path, make_tiny: MakeConfig, **changes: Any) -> Path:
    (folder / "base.yaml").write_text(
        yaml.safe_dump(make_tiny(folder, **TINY, vote__rounds="all", strong__training__epochs=1))
    )
    path = folder / "compare.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in {**FILE, **changes}.items() if v is not None}, sort_keys=False)
    )
    return path


@pytest.fixture(scope="module")
def compared(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write(tmp_path_factory.mktemp("compare"), make_tiny)
    assert cli.main(["compare", str(path)]) == 0
    return path


@pytest.mark.parametrize(
    ("overrides", "cache"), [([], "runs/ways/cache"), (["runtime.cache=/elsewhere/work"], "/elsewhere/work")]
)
def test_where_shared_work_lies(
    make_tiny: MakeConfig, tmp_path: Path, overrides: list[str], cache: str
) -> None:
    comparison = load_comparison(write(tmp_path, make_tiny), overrides)
    assert comparison.run("bagged", 4).runtime.cache == str(tmp_path / cache)


def accuracy(folder: Path, system: str) -> float:
    rows = pq.read_table(folder / "predictions" / "test.parquet").to_pylist()
    return float(np.mean([row[system] == row["truth"] for row in rows]))


def test_the_table_is_the_mean_of_the_runs(compared: Path) -> None:
    folder = compared.parent / "runs" / "ways"
    (table,) = json.loads((folder / "comparison.json").read_text())["splits"]
    assert table["split"] == "test"
    single = np.mean([accuracy(folder / "runs" / f"variant-00-seed-{s}", "weak_single") for s in (3, 4)])
    assert table["shared"]["Single weak model"]["value"] == pytest.approx(single)
    for index, row in enumerate(table["variants"]):
        runs = [folder / "runs" / f"variant-{index:02d}-seed-{s}" for s in (3, 4)]
        ensemble = np.mean([accuracy(r, "weak_ensemble") for r in runs])
        assert row["name"] == list(FILE["variants"])[index]  # type: ignore[call-overload]
        assert row["ensemble"]["value"] == pytest.approx(ensemble)
        assert row["ensemble_difference"]["value"] == pytest.approx(ensemble - single)
        assert row["ensemble_difference"]["p_holm"] >= row["ensemble_difference"]["p_value"]
        assert row["weak_flops"] > 0
    assert (folder / "comparison.html").read_text().count('<th scope="row">') == 6 + 3


def test_equal_work_is_done_once(compared: Path) -> None:
    """The uniform vote has the boosted members, and all variants have one ceiling for each seed."""
    runs = compared.parent / "runs" / "ways" / "runs"
    for seed in (3, 4):
        events = (runs / f"variant-01-seed-{seed}" / "events.jsonl").read_text()
        found = [json.loads(line)["work"] for line in events.splitlines()]
        assert {"round 1 of 2: training", "round 2 of 2: training", "student ceiling"} <= set(found)
        bagged = (runs / f"variant-02-seed-{seed}" / "events.jsonl").read_text()
        assert "student on_easy" in bagged
        assert "training" not in bagged


def test_again_it_is_shown_and_may_grow(
    compared: Path, make_tiny: MakeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", str(compared)]) == 0
    assert "boosted (2 members)" in capsys.readouterr().out
    grown = yaml.safe_load(compared.read_text())
    grown["variants"]["seeds only"] = {"boosting.method": "seeds"}
    compared.with_name("grown.yaml").write_text(yaml.safe_dump(grown, sort_keys=False))
    claim(load_comparison(compared.with_name("grown.yaml")))
    changed = yaml.safe_load(compared.read_text())
    changed["variants"]["boosted"] = {"boosting.rounds": 1}
    compared.with_name("changed.yaml").write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(RunDirectoryError, match="holds another comparison"):
        claim(load_comparison(compared.with_name("changed.yaml")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [1, 1]}, "a seed stands twice"),
        ({"seeds": []}, "seeds: .* at least 1"),
        ({"variants": {"x": {"data.prompt": "{question}"}}}, "variants share data, seeds, strong model"),
        ({"variants": {"x": {"boosting.metod": "bagging"}}}, "variant 'x': boosting.metod"),
        ({"name": None}, "name: it is missing"),
        ({"seed": 3}, "seed: there is no such field: the fields are name, base"),
    ],
)
def test_mistakes(make_tiny: MakeConfig, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_comparison(write(tmp_path, make_tiny, **changes))
    assert cli.main(["compare", str(tmp_path / "compare.yaml")]) == 2


def test_a_variant_that_gives_no_result_is_left_out(
    make_tiny: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants = {"good": {}, "hopeless": {"weak.training.learning_rate": 1e-9, "boosting.on_useless": "stop"}}
    path = write(tmp_path, make_tiny, seeds=[3], variants=variants)
    assert cli.main(["compare", str(path)]) == 1
    out = capsys.readouterr().out
    assert "good (2 members)" in out
    assert "left out: hopeless: seed 3: no weak supervisor is better than the prior" in out
    content = json.loads((tmp_path / "runs" / "ways" / "comparison.json").read_text())
    assert [row["name"] for row in content["splits"][0]["variants"]] == ["good"]
