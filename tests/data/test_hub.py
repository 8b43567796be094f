"""Hub sources against local folders with the columns of the originals, and without a hub."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ensemw2s.config import BuiltinSource, HubSource
from ensemw2s.data.builtin import hub_source
from ensemw2s.data.samples import Sample
from ensemw2s.data.sources import load_source
from ensemw2s.errors import DataError

ARC_ROW: dict[str, Any] = {
    "id": "Mercury_1",
    "question": "Which gas do plants take in?",
    "choices": {"text": ["oxygen", "carbon dioxide", "helium"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
QUARTZ_ROW: dict[str, Any] = {
    "id": "QRQA-1",
    "question": "Far electrons have _____ energy than close ones.",
    "choices": {"text": ["higher", "lower"], "label": ["A", "B"]},
    "answerKey": "A",
    "para": "Electrons close to the nucleus have less energy.",
    "para_id": "QRSent-1",
}
SCIQ_ROW: dict[str, Any] = {
    "question": "What pumps blood?",
    "distractor3": "the lung",
    "distractor1": "the liver",
    "distractor2": "the skin",
    "correct_answer": "the heart",
    "support": "",
}


SCIQ_COLUMNS = hub_source(BuiltinSource(name="sciq")).columns


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()


def local_copy(name: Any, row: dict[str, Any], folder: Path) -> HubSource:
    """The built-in source, reading a local folder in place of the hub's."""
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist([row]), folder / "train-00000-of-00001.parquet")
    return hub_source(BuiltinSource(name=name)).model_copy(
        update={"path": folder.name, "name": None, "revision": None}
    )


@pytest.mark.parametrize(
    ("name", "row", "sample"),
    [
        ("arc_easy", ARC_ROW, Sample("Mercury_1", ARC_ROW["question"], tuple(ARC_ROW["choices"]["text"]), 1)),
        ("quartz", QUARTZ_ROW, Sample("QRQA-1", QUARTZ_ROW["question"], ("higher", "lower"), 0)),
    ],
)
def test_builtin_columns(name: str, row: dict[str, Any], sample: Sample, tmp_path: Path) -> None:
    assert load_source(local_copy(name, row, tmp_path / "set"), base_dir=tmp_path) == [sample]


def test_sciq_columns(tmp_path: Path) -> None:
    (sample,) = load_source(local_copy("sciq", SCIQ_ROW, tmp_path / "set"), base_dir=tmp_path)
    assert sample.answer_text == "the heart"
    assert sorted(sample.choices or ()) == ["the heart", "the liver", "the lung", "the skin"]


def test_builtin_names_stand_for_the_right_data_sets() -> None:
    challenge = hub_source(BuiltinSource(name="arc_challenge", split="test", limit=5))
    assert (challenge.path, challenge.name) == ("allenai/ai2_arc", "ARC-Challenge")
    assert (challenge.split, challenge.limit) == ("test", 5)
    assert hub_source(BuiltinSource(name="arc_easy")).name == "ARC-Easy"
    assert hub_source(BuiltinSource(name="sciq")).path == "allenai/sciq"
    assert hub_source(BuiltinSource(name="quartz")).path == "allenai/quartz"


def test_wrong_split_and_wrong_row_are_one_line(tmp_path: Path) -> None:
    source = local_copy("arc_easy", ARC_ROW | {"answerKey": "7"}, tmp_path / "set")
    with pytest.raises(DataError, match=r"^set train row 1: the answer '7' is not among the labels[^\n]*$"):
        load_source(source, base_dir=tmp_path)
    with pytest.raises(DataError, match=r"^set validation cannot be loaded: Unknown split[^\n]*$"):
        load_source(source.model_copy(update={"split": "validation"}), base_dir=tmp_path)


def test_without_a_hub_the_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"^allenai/sciq train: the Hugging Face hub cannot be reached[^\n]*$"
    ) as caught:
        load_source(BuiltinSource(name="sciq"))
    assert str(caught.value).endswith("hf download allenai/sciq --repo-type dataset --local-dir FOLDER")
    with pytest.raises(DataError, match=r"dataset --revision refs/convert/parquet --local-dir FOLDER$"):
        load_source(BuiltinSource(name="quartz"))


class TestCopies:
    """Built-in data sets with `path`: the folders that downloading and saving make."""

    README = "configs:\n- config_name: ARC-Challenge\n  data_files:\n  - {split: train, path: ARC-Challenge/train-*}\n"

    def arc(self, folder: Path, inner: str = "") -> BuiltinSource:
        """ARC-Easy in `inner`, ARC-Challenge beside it."""
        for name, row in ((inner or "ARC-Easy", ARC_ROW), ("ARC-Challenge", ARC_ROW | {"id": "hard"})):
            (folder / name).mkdir(parents=True)
            pq.write_table(pa.Table.from_pylist([row]), folder / name / "train-00000-of-00001.parquet")
        return BuiltinSource(name="arc_easy", path=folder.name)

    def test_a_download_with_several_configurations(self, tmp_path: Path) -> None:
        source = self.arc(tmp_path / "arc", "other-name")
        easy = self.README.replace("ARC-Challenge", "ARC-Easy").replace("ARC-Easy/", "other-name/")
        text = f"---\n{self.README}{easy.removeprefix('configs:')}---\n".replace("\n\n", "\n")
        (tmp_path / "arc" / "README.md").write_text(text)
        assert [s.id for s in load_source(source, base_dir=tmp_path)] == ["Mercury_1"]
        challenge = source.model_copy(update={"name": "arc_challenge"})
        assert [s.id for s in load_source(challenge, base_dir=tmp_path)] == ["hard"]

    def test_without_a_readme_the_folder_of_the_configuration_is_read(self, tmp_path: Path) -> None:
        source = self.arc(tmp_path / "arc")
        assert [s.id for s in load_source(source, base_dir=tmp_path)] == ["Mercury_1"]
        one = source.model_copy(update={"path": "arc/ARC-Challenge"})
        assert [s.id for s in load_source(one, base_dir=tmp_path)] == ["hard"]

    def test_the_hubs_parquet_copy(self, tmp_path: Path) -> None:
        for split in ("train", "validation", "test"):
            (tmp_path / "quartz" / "default" / split).mkdir(parents=True)
            table = pa.Table.from_pylist([QUARTZ_ROW | {"id": split}])
            pq.write_table(table, tmp_path / "quartz" / "default" / split / "0000.parquet")
        for split in ("train", "validation", "test"):
            source = BuiltinSource(name="quartz", path=str(tmp_path / "quartz"), split=split)  # type: ignore[arg-type]
            assert [s.id for s in load_source(source)] == [split]

    def test_what_save_to_disk_writes(self, tmp_path: Path) -> None:
        import datasets

        rows = [SCIQ_ROW | {"question": f"What pumps blood {i}?"} for i in range(3)]
        both = datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows, split=split) for split in ("train", "test")}
        )
        both.save_to_disk(str(tmp_path / "all"))
        both["test"].save_to_disk(str(tmp_path / "one"))
        unnamed = datasets.Dataset.from_list(rows)
        unnamed.save_to_disk(str(tmp_path / "unnamed"))
        expected = load_source(BuiltinSource(name="sciq_binary", path=str(tmp_path / "all")))
        assert [s.question.split(" A: ")[0] for s in expected] == [f"Q: {r['question']}" for r in rows]
        assert expected[0].choices == ("false", "true")
        for name in ("one", "unnamed"):
            source = BuiltinSource(name="sciq_binary", path=name, split="test")
            assert load_source(source, base_dir=tmp_path) == expected
        plain = HubSource(
            path=str(tmp_path / "one"), split="test", columns=hub_source(BuiltinSource(name="sciq")).columns
        )
        assert len(load_source(plain)) == 3
        with pytest.raises(
            DataError, match=r"^one train: .* holds the split test, [^\n]*, not train: give [^\n]*$"
        ):
            load_source(BuiltinSource(name="sciq_binary", path="one"), base_dir=tmp_path)

    def test_validation_serves_as_test_in_a_copy_as_well(self, tmp_path: Path) -> None:
        row = {"question": "is it", "answer": False, "passage": "It is."}
        (tmp_path / "boolq").mkdir()
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "boolq" / "validation-00000-of-00001.parquet")
        (sample,) = load_source(BuiltinSource(name="boolq", path=str(tmp_path / "boolq"), split="test"))
        assert (sample.choices, sample.answer) == (("no", "yes"), 0)

    @pytest.mark.parametrize(
        ("path", "line"),
        [
            ("gone", "boolq train: path gone does not exist: give the folder of a copy, or leave path out"),
            ("file", "boolq train: path file is a file: give the folder"),
            ("empty", "empty train cannot be loaded: The directory at"),
            ("other", "other train row 1: no column 'passage' (columns: text)"),
        ],
    )
    def test_a_folder_that_holds_no_copy(self, path: str, line: str, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "empty").mkdir()
        (tmp_path / "other").mkdir()
        pq.write_table(pa.Table.from_pylist([{"text": "x"}]), tmp_path / "other" / "train.parquet")
        with pytest.raises(DataError) as caught:
            load_source(BuiltinSource(name="boolq", path=path), base_dir=tmp_path)
        assert str(caught.value).startswith(line)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("readme", [True, False])
    def test_another_configuration_is_not_taken_for_the_one_asked_for(
        self, readme: bool, tmp_path: Path
    ) -> None:
        source = self.arc(tmp_path / "arc").model_copy(update={"path": str(tmp_path / "arc")})
        shutil.rmtree(tmp_path / "arc" / "ARC-Easy")
        if readme:
            (tmp_path / "arc" / "README.md").write_text(f"---\n{self.README}---\n")
        with pytest.raises(
            DataError, match="has no configuration ARC-Easy, only ARC-Challenge: give the folder"
        ):
            load_source(source)
        assert [s.id for s in load_source(source.model_copy(update={"name": "arc_challenge"}))] == ["hard"]

    def test_a_copy_of_one_configuration_need_not_name_it(self, tmp_path: Path) -> None:
        for place in ("data", "train"):
            folder = tmp_path / f"arc-{place}"
            (folder / place).mkdir(parents=True)
            (folder / "images").mkdir()
            pq.write_table(pa.Table.from_pylist([ARC_ROW]), folder / place / "train-00000-of-00001.parquet")
            source = BuiltinSource(name="arc_easy", path=str(folder))
            assert [s.id for s in load_source(source)] == ["Mercury_1"]

    @pytest.mark.parametrize("name", ["train", None])
    @pytest.mark.parametrize(
        ("split", "expected"),
        [("train[:2]", [0, 1]), ("train[50%:]", [2, 3]), ("train[-1:]", [3]), ("train", [0, 1, 2, 3])],
    )
    def test_slices_of_what_save_to_disk_wrote(
        self, name: str | None, split: str, expected: list[int], tmp_path: Path
    ) -> None:
        import datasets

        rows = [SCIQ_ROW | {"question": f"What pumps blood {i}?"} for i in range(4)]
        datasets.Dataset.from_list(rows, split=name).save_to_disk(str(tmp_path / "set"))
        found = load_source(HubSource(path=str(tmp_path / "set"), split=split, columns=SCIQ_COLUMNS))
        assert [s.question for s in found] == [rows[i]["question"] for i in expected]

    @pytest.mark.parametrize("split", ["test", "test[:2]", "train[:x]"])
    def test_what_was_not_saved_is_refused(self, split: str, tmp_path: Path) -> None:
        import datasets

        datasets.Dataset.from_list([SCIQ_ROW], split="train").save_to_disk(str(tmp_path / "set"))
        source = HubSource(path=str(tmp_path / "set"), split=split, columns=SCIQ_COLUMNS)
        with pytest.raises(DataError, match=r"holds the split train|cannot be loaded") as caught:
            load_source(source)
        assert "\n" not in str(caught.value)
