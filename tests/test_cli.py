"""The command line as a user meets it: bad input is one clear line, exit code 2, and nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml

from ensemw2s import cli

MakeConfig = Callable[..., dict[str, Any]]


@pytest.fixture
def config_file(make_tiny: MakeConfig, tmp_path: Path) -> Callable[..., Path]:
    def write(**replace: Any) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(yaml.safe_dump(make_tiny(tmp_path, **replace)), encoding="utf-8")
        return path

    return write


def write_rows(path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return {"kind": "file", "path": str(path)}


def rows(n: int = 12) -> list[dict[str, Any]]:
    return [
        {"id": f"r{i}", "question": f"word {i}", "choices": ["a", "b"], "answer": i % 2} for i in range(n)
    ]


class Refused(NamedTuple):
    code: int
    lines: list[str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., Refused]:
    """Runs a command that must be refused; checks what holds for every refusal."""

    def run(*arguments: str) -> Refused:
        before = sorted(p for p in tmp_path.rglob("*"))
        code = cli.main(list(arguments))
        captured = capsys.readouterr()
        lines = captured.err.strip().splitlines()
        assert code == 2
        assert captured.out == ""
        assert lines
        assert all(line.startswith("error: ") for line in lines), captured.err
        assert "Traceback" not in captured.err
        assert sorted(p for p in tmp_path.rglob("*")) == before
        return Refused(code, lines)

    return run


def test_every_config_problem_at_once(config_file: Any, refused: Any) -> None:
    path = config_file(
        boosting__rounds=0,
        boosting__learning_rate=float("nan"),
        strong__training__learning_rate=-1.0,
        boosting__roundz=3,
    )
    lines = refused("run", str(path)).lines
    assert len(lines) == 4
    text = "\n".join(lines)
    for part in (
        "boosting.rounds",
        "boosting.learning_rate",
        "strong.training.learning_rate",
        "boosting.roundz",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("boosting.rounds=0", "boosting.rounds"),
        ("weak.training.learning_rate=-0.1", "weak.training.learning_rate"),
        ("weak.training.learning_rate=.nan", "weak.training.learning_rate"),
        ("no.such.field=1", "no"),
        ("boosting.unit=word", "token"),
        ("justaword", "key=value"),
    ],
)
def test_bad_overrides(config_file: Any, refused: Any, override: str, part: str) -> None:
    (line,) = refused("run", str(config_file()), override).lines
    assert part in line


def test_missing_config_file(refused: Any, tmp_path: Path) -> None:
    (line,) = refused("run", str(tmp_path / "none.yaml")).lines
    assert "none.yaml" in line


def test_missing_data_file(config_file: Any, refused: Any, tmp_path: Path) -> None:
    (line,) = refused(
        "run", str(config_file(data__pool={"kind": "file", "path": str(tmp_path / "no.jsonl")}))
    ).lines
    assert "no.jsonl" in line


def test_malformed_line_is_named(config_file: Any, refused: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "bad.jsonl", rows())
    with Path(source["path"]).open("a") as handle:
        handle.write('{"question": "cut\n')
    (line,) = refused("run", str(config_file(data__pool=source))).lines
    assert "bad.jsonl:13" in line


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda r: r.clear(), "bad.jsonl"),
        (lambda r: r[3].update(answer=2), "answer"),
        (lambda r: r[3].update(answer="neither"), "neither"),
        (lambda r: r[3].update(id="r2"), "r2"),
        (lambda r: r[3].update(question="word 2", choices=["b", "a"]), "duplicates"),
        (lambda r: r[3].update(question=""), "question"),
    ],
    ids=["empty", "outside", "no-choice", "same-id", "same-sample", "no-question"],
)
def test_bad_data(config_file: Any, refused: Any, tmp_path: Path, change: Any, part: str) -> None:
    data = rows()
    change(data)
    source = write_rows(tmp_path / "bad.jsonl", data)
    (line,) = refused("run", str(config_file(data__pool=source))).lines
    assert part in line


def test_the_same_sample_in_two_splits(config_file: Any, refused: Any, tmp_path: Path) -> None:
    easy, hard = rows(), [{**r, "id": f"h{r['id']}", "question": f"other {r['id']}"} for r in rows()]
    hard[4] = {**easy[7], "id": "copy"}
    path = config_file(
        data={
            "easy": write_rows(tmp_path / "easy.jsonl", easy),
            "hard": write_rows(tmp_path / "hard.jsonl", hard),
            "split": {"method": "given"},
        }
    )
    (line,) = refused("run", str(path)).lines
    assert "r7" in line
    assert "data.duplicates=drop" in line


def test_model_without_weights(config_file: Any, refused: Any, tmp_path: Path, tiny_weak: Path) -> None:
    folder = shutil.copytree(tiny_weak, tmp_path / "empty-model")
    (folder / "model.safetensors").unlink()
    (line,) = refused("run", str(config_file(weak__models=[{"path": str(folder)}]))).lines
    assert "empty-model" in line
    assert "safetensors" in line


def test_members_of_different_tokenizers(
    config_file: Any, refused: Any, tmp_path: Path, tiny_weak: Path
) -> None:
    folder = shutil.copytree(tiny_weak, tmp_path / "other-words")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (line,) = refused(
        "run", str(config_file(weak__models=[{"path": str(tiny_weak)}, {"path": str(folder)}]))
    ).lines
    assert "tokenizer" in line
    assert "other-words" in line


def test_a_folder_that_cannot_be_written(config_file: Any, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (line,) = refused("run", str(config_file(runs_dir=str(tmp_path / "file" / "runs")))).lines
    assert "runs_dir" in line


def test_a_folder_with_other_things(config_file: Any, refused: Any, tmp_path: Path) -> None:
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "thesis.txt").write_text("mine")
    (line,) = refused("run", str(config_file())).lines
    assert "holds no run" in line


def test_full_disk(config_file: Any, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("ensemw2s.engine.prepare.shutil.disk_usage", lambda path: usage)
    (line,) = refused("run", str(config_file())).lines
    assert "GiB free" in line


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--output", "rated.txt"], ".parquet"),
        (["--output", "no/rated.parquet"], "does not exist"),
        (["--folds", "1"], "2 or more"),
        (["--folds", "500"], "lower --folds"),
        (["--method", "irt"], "2 or more models"),
        (["--method", "irt", "--responses", "none.csv"], "none.csv"),
        (["--method", "members"], "--run RUN"),
        (["--method", "members", "--run", "nowhere"], "run directory"),
        (["--irt", "rasch"], "method irt"),
        (["--input", "rated.parquet"], "rated.parquet"),
        (["weak.training.epochs=0"], "weak.training.epochs"),
    ],
)
def test_a_rating_that_cannot_be_made(
    config_file: Any, refused: Any, monkeypatch: Any, tmp_path: Path, arguments: list[str], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    output = [] if "--output" in arguments else ["--output", "rated.parquet"]
    (line,) = refused("rate", str(config_file()), *output, *arguments).lines
    assert part in line


def test_a_rating_does_not_replace_what_it_reads(config_file: Any, refused: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "mine.jsonl", rows())
    path = config_file(data__pool=source)
    (line,) = refused("rate", str(path), "--output", source["path"]).lines
    assert "another file" in line


def test_too_long_for_the_context(config_file: Any, refused: Any) -> None:
    (line,) = refused("run", str(config_file(data__max_length=12))).lines
    assert "data.max_length" in line
    assert "truncate_prompt" in line


def test_a_gpu_that_is_not_there(config_file: Any, refused: Any) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (line,) = refused("run", str(config_file(runtime__device="cuda"))).lines
    assert "cuda" in line.lower()


def test_a_cluster_that_does_not_answer(
    config_file: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other tests of this process may be connected to a cluster of their own, which would be used.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    # Port 1 of the loopback address: nothing listens there.
    path = config_file(runtime={"executor": "ray", "ray_address": "127.0.0.1:1"})
    (line,) = refused("run", str(path)).lines
    assert "nothing answers at 127.0.0.1:1" in line


@pytest.mark.parametrize("command", ["report", "generate", "label"])
def test_no_run_directory(command: str, refused: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "q.jsonl", rows())
    extra = {
        "report": [],
        "generate": ["--prompt", "x"],
        "label": ["--input", source["path"], "--output", str(tmp_path / "o.jsonl")],
    }
    (line,) = refused(command, str(tmp_path), *extra[command]).lines
    assert "run" in line


def test_label_refuses_what_it_cannot_write(refused: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "q.jsonl", rows())
    refused("label", str(tmp_path), "--input", source["path"], "--output", str(tmp_path / "out.xlsx"))
    refused("label", str(tmp_path), "--input", source["path"], "--output", str(tmp_path / "none" / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["q.jsonl"]


def test_a_dry_run_writes_nothing(
    config_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file()
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["run", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "member 2" in out
    assert "student ensemble" in out
    assert "nothing was written" in out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["run", "rate", "sweep", "compare", "doctor", "serve"])
@pytest.mark.parametrize(
    "given",
    [["--seed", "1", "boosting.rounds=4"], ["boosting.rounds=4", "--seed", "-1"], ["a=1", "b=2", "--c=d"]],
)
def test_overrides_stay_in_their_order(command: str, given: list[str]) -> None:
    """In every version of Python: they are what the parser leaves over, and no positional argument of any number."""
    output = ["--output", "x.jsonl"] if command == "rate" else []
    arguments, rest = cli.build_parser().parse_known_args([command, "c.yaml", *given, *output])
    assert rest == given
    assert getattr(arguments, "config", None) == "c.yaml" or arguments.run == "c.yaml"
    subparsers = cli.build_parser()._subparsers
    assert subparsers is not None
    (choices,) = [a.choices for a in subparsers._group_actions]
    assert all(action.nargs != "*" for action in choices[command]._actions)  # type: ignore[index,call-overload]


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--help"]) == 0
    out = capsys.readouterr().out
    for field in (
        "boosting.rounds",
        "data.split.method",
        "weak.training.learning_rate",
        "runtime.supervisors",
    ):
        assert field in out


def test_run_label_generate_report(
    config_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(
        boosting__prior="unigram", weak__training__epochs=6, weak__training__learning_rate=2e-2
    )
    run_dir = tmp_path / "runs" / "tiny"
    assert cli.main(["run", str(path), "evaluation.resamples=150"]) == 0
    captured = capsys.readouterr()
    assert "report.html" in captured.out
    assert "round 2 of 2: training" in captured.err
    assert cli.main(["run", str(path), "evaluation.resamples=150"]) == 0
    assert "is finished: nothing to do" in capsys.readouterr().err

    assert cli.main(["run", str(path)]) == 2
    assert "evaluation.resamples: 150 -> 200" in capsys.readouterr().err

    new = write_rows(
        tmp_path / "new.jsonl", [{"question": "the cat in the sea", "choices": ["hiss low", "buzz loud"]}]
    )
    for suffix in ("jsonl", "csv", "parquet"):
        output = tmp_path / f"labels.{suffix}"
        assert cli.main(["label", str(run_dir), "--input", new["path"], "--output", str(output)]) == 0
        assert output.stat().st_size > 0
    (row,) = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert row["label_text"] == ["hiss low", "buzz loud"][row["label"]]
    assert 0.5 <= row["confidence"] <= 1.0
    assert json.loads((tmp_path / "labels.jsonl").read_text())["label"] == row["label"]

    capsys.readouterr()
    assert (
        cli.main(["generate", str(run_dir), "--prompt", "the cat in the barn", "--max-new-tokens", "3"]) == 0
    )
    out = capsys.readouterr().out
    assert "confidence" in out
    assert "member-00" in out
    # As Python takes a byte of another encoding from the command line.
    assert cli.main(["generate", str(run_dir), "--prompt", "caf\udce9"]) == 2
    assert "error: the prompt is not UTF-8" in capsys.readouterr().err

    (run_dir / "report.html").unlink()
    assert cli.main(["report", str(run_dir)]) == 0
    assert (run_dir / "report.html").is_file()
