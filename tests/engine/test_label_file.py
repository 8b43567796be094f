"""Labels of a file: those of all samples at once, and what was done before an interruption is kept."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from ensemw2s import api
from ensemw2s.config import ExperimentConfig
from ensemw2s.data.samples import Sample
from ensemw2s.data.sources import load_unlabeled
from ensemw2s.data.streaming import SampleFile
from ensemw2s.engine import labeling
from ensemw2s.engine.boosting import MemberRecord
from ensemw2s.engine.label_file import label_file

MakeConfig = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def trained(make_tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> api.LoadedEnsemble:
    settings = {
        "weak__training__epochs": 2,
        "boosting": {"rounds": 2, "method": "seeds"},
        "vote__rounds": "all",
    }
    config = ExperimentConfig.model_validate(make_tiny(tmp_path_factory.mktemp("label"), **settings))
    return api.load_ensemble(api.run(config, until="labels").run_dir)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "new.jsonl"
    rows = [{"question": f"the fox in the {p}", "choices": ["buzz loud", "hiss low"]} for p in "abcdefghijk"]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


class Interrupted(Exception):
    pass


def chunked(
    ensemble: api.LoadedEnsemble, source: Path, output: Path, stop_after: int | None = None
) -> list[int]:
    """Label in chunks of 4; the sizes of the chunks that were labelled."""
    sizes: list[int] = []

    def label(samples: list[Sample]) -> pa.Table:
        if stop_after is not None and len(sizes) == stop_after:
            raise Interrupted
        sizes.append(len(samples))
        return ensemble.label(samples)

    try:
        label_file(ensemble._ctx, ensemble._ensemble, label, SampleFile(source), output, chunk=4)
    except Interrupted:
        assert not output.exists()
    return sizes


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_chunks_make_the_file_of_all_at_once(
    trained: api.LoadedEnsemble, questions: Path, tmp_path: Path, suffix: str
) -> None:
    whole, parts = tmp_path / f"whole.{suffix}", tmp_path / f"parts.{suffix}"
    assert trained.label_file(questions, whole) == 11
    assert chunked(trained, questions, parts) == [4, 4, 3]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([questions.name, whole.name, parts.name])
    if suffix == "parquet":
        import pyarrow.parquet as pq

        assert pq.read_table(parts).equals(pq.read_table(whole))
        assert (
            pq.read_table(whole)
            .column("label")
            .equals(trained.label(load_unlabeled(questions)).column("label"))
        )
    else:
        assert parts.read_text() == whole.read_text()
        assert len(whole.read_text().splitlines()) == 11 + (suffix == "csv")


def test_an_interrupted_labelling_goes_on(
    trained: api.LoadedEnsemble, questions: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels.jsonl"
    assert chunked(trained, questions, output, stop_after=2) == [4, 4]
    assert chunked(trained, questions, output) == [3]
    expected = tmp_path / "at_once.jsonl"
    trained.label_file(questions, expected)
    assert output.read_text() == expected.read_text()


def test_what_was_done_for_another_file_is_not_taken(
    trained: api.LoadedEnsemble, questions: Path, tmp_path: Path
) -> None:
    output = tmp_path / "labels.jsonl"
    chunked(trained, questions, output, stop_after=2)
    questions.write_text(questions.read_text().replace("fox", "owl"))
    assert chunked(trained, questions, output) == [4, 4, 3]
    assert "owl" in output.read_text()
    assert "fox" not in output.read_text()


def test_a_label_model_that_is_fitted_to_all_gets_all(
    trained: api.LoadedEnsemble, questions: Path, tmp_path: Path
) -> None:
    rule = trained._ctx.config.vote.model_copy(update={"label_model": "dawid_skene"})
    ctx = type(trained._ctx)(
        trained._ctx.config.model_copy(update={"vote": rule}), trained._ctx.store, trained._ctx.report
    )
    fitted = api.LoadedEnsemble(ctx, trained._ensemble, trained._pool)
    assert chunked(fitted, questions, tmp_path / "labels.jsonl") == [11]


def test_the_members_of_a_long_run_are_in_the_order_of_their_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of stages are texts, of which member-100 stands before member-11."""
    fields = dataclasses.fields(MemberRecord)
    infos = {
        f"member-{i:02d}": {"record": {f.name: i if f.name == "attempt" else None for f in fields}}
        for i in range(120)
    }
    infos["select"] = {"selected": 1}
    store = SimpleNamespace(stages=lambda: infos, require=lambda name: SimpleNamespace(info=infos[name]))
    seen: list[int] = []

    def kept(ctx: Any, records: list[MemberRecord]) -> Any:
        seen.extend(record.attempt for record in records)
        return SimpleNamespace(refs=records)

    monkeypatch.setattr(labeling, "kept_ensemble", kept)
    monkeypatch.setattr(labeling, "voting_ensemble", lambda *args: SimpleNamespace(systems=()))
    labeling.selected_ensemble(SimpleNamespace(store=store))  # type: ignore[arg-type]
    assert seen == list(range(120))
