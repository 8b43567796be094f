"""Classification by label words: classes as the choices of every sample, balance, and the built-in binary sets."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from ensemw2s.config import BuiltinSource, ColumnsConfig, FileSource
from ensemw2s.data import builtin
from ensemw2s.data.balance import balanced
from ensemw2s.data.binary import amazon_polarity, anthropic_hh, boolq, cosmosqa, sciq_binary
from ensemw2s.data.rows import parse_rows
from ensemw2s.data.samples import Sample
from ensemw2s.data.sources import load_source
from ensemw2s.errors import DataError

NLI = ("entailment", "neutral", "contradiction")


def parse(row: dict[str, Any], *, typed: bool = True, **columns: Any) -> Sample:
    return parse_rows([("here", row)], ColumnsConfig(**columns), name="t", typed=typed)[0]


class TestClasses:
    @pytest.mark.parametrize(
        ("label", "typed", "index"),
        [(2, True, 2), ("neutral", True, 1), (1.0, True, 1), (True, True, 1), ("2", False, 2)],
    )
    def test_a_label_is_an_index_or_a_word(self, label: Any, typed: bool, index: int) -> None:
        sample = parse(
            {"text": "a man eats", "label": label}, typed=typed, question="text", answer="label", classes=NLI
        )
        assert (sample.choices, sample.answer) == (NLI, index)

    @pytest.mark.parametrize(("label", "index"), [("neg", 0), ("pos", 1)])
    def test_a_mapping_names_the_words(self, label: str, index: int) -> None:
        words = {"neg": "negative", "pos": "positive"}
        sample = parse({"question": "good", "answer": label}, classes=words)
        assert (sample.choices, sample.answer) == (("negative", "positive"), index)

    @pytest.mark.parametrize(
        ("label", "words"), [(True, {"false": "no", "true": "yes"}), (2.0, {"1": "no", "2": "yes"})]
    )
    def test_keys_are_compared_as_text(self, label: Any, words: dict[str, str]) -> None:
        assert parse({"question": "good", "answer": label}, classes=words).answer_text == "yes"

    @pytest.mark.parametrize(
        ("label", "classes", "message"),
        [
            (3, NLI, "the answer 3 is outside the choices 0 to 2"),
            (-1, NLI, "the answer -1 is outside"),
            ("Neutral", NLI, "the answer 'Neutral' is not among"),
            ("0", {"1": "no", "2": "yes"}, "the label '0' is not among columns.classes '1', '2'"),
            (None, NLI, "every sample here needs an answer"),
        ],
    )
    def test_a_wrong_label_is_one_line(self, label: Any, classes: Any, message: str) -> None:
        with pytest.raises(DataError, match=rf"^here: [^\n]*{message}"):
            parse({"question": "good", "answer": label}, classes=classes)

    def test_choices_of_the_table_give_way(self) -> None:
        row = {"question": "q", "choices": ["x", "y"], "answer": 0}
        assert parse(row, classes=["no", "yes"]).choices == ("no", "yes")

    @pytest.mark.parametrize(
        "columns",
        [
            {"classes": ["one"]},
            {"classes": ["a", "a"]},
            {"classes": {"0": "a", "1": "a"}},
            {"classes": ["a", " "]},
            {"classes": ["a", "b"], "choices": "choices"},
            {"classes": ["a", "b"], "distractors": ["d"]},
        ],
    )
    def test_wrong_classes_are_refused(self, columns: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match="classes"):
            ColumnsConfig(**columns)


class TestTemplate:
    def test_columns_in_braces(self) -> None:
        row = {"a": "A man {eats}.", "pair": {"b": "He sleeps."}, "answer": "no"}
        assert parse(row, question="Premise: {a}\nHypothesis: {pair.b}").question == (
            "Premise: A man {eats}.\nHypothesis: He sleeps."
        )

    def test_an_empty_column_is_nothing_and_all_empty_is_an_error(self) -> None:
        assert parse({"t": None, "c": "text", "answer": "no"}, question="{t} {c}").question == "text"
        with pytest.raises(DataError, match="is empty text"):
            parse({"t": None, "c": "", "answer": "no"}, question="{t} {c}")

    def test_a_column_of_that_very_name_comes_first(self) -> None:
        assert parse({"{t}": "by name", "t": "filled", "answer": "no"}, question="{t}").question == "by name"

    def test_an_unknown_column_is_named(self) -> None:
        with pytest.raises(DataError, match=r"no column 'titel' \(columns: title, answer\)"):
            parse({"title": "x", "answer": "no"}, question="{titel}")


def labelled(counts: dict[int, int]) -> list[Sample]:
    return [
        Sample(f"{c}-{i}", f"text {c} {i}", NLI, c) for i in range(max(counts.values())) for c in counts
        if i < counts[c]
    ]  # fmt: skip


class TestBalance:
    def test_every_class_as_often_as_the_rarest(self) -> None:
        samples = labelled({0: 9, 1: 4, 2: 6})
        kept = balanced(samples)
        assert Counter(s.answer for s in kept) == {0: 4, 1: 4, 2: 4}
        assert [s for s in samples if s in kept] == kept
        assert {s.id for s in balanced(samples[::-1])} == {s.id for s in kept}

    def test_which_ones_are_kept_goes_by_a_hash_of_their_ids(self) -> None:
        """Their own order may be one of difficulty: of four, the first two are not the two that are kept."""
        counts = {"a": 4, "b": 2}
        samples = [
            Sample(f"{name}{i}", f"text {name} {i}", ("x", "y"), answer)
            for answer, (name, n) in enumerate(counts.items())
            for i in range(n)
        ]
        assert [s.id for s in balanced(samples)] == ["a2", "a3", "b0", "b1"]

    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            (labelled({0: 3, 2: 3}), "no sample of 6 has the class 'neutral'"),
            ([Sample("a", "q", ("x", "y"), 0), Sample("b", "q", ("x", "z"), 0)], "'b' has \\['x', 'z'\\]"),
            ([Sample("a", "q", None, "free")], "'a' has \\[\\]"),
            ([*labelled({0: 1, 1: 1, 2: 1}), Sample("n", "q", NLI, None)], "sample 'n' has none"),
        ],
    )
    def test_what_cannot_be_balanced(self, samples: list[Sample], message: str) -> None:
        with pytest.raises(DataError, match=message):
            balanced(samples)

    def test_from_a_file(self, tmp_path: Path) -> None:
        path = tmp_path / "reviews.csv"
        path.write_text("text,label\n" + "".join(f"review {i},{int(i % 4 == 0)}\n" for i in range(40)))
        columns = ColumnsConfig(question="text", answer="label", classes=("negative", "positive"))
        source = FileSource(path=str(path), columns=columns)
        assert Counter(s.answer_text for s in load_source(source)) == {"negative": 30, "positive": 10}
        equal = load_source(source.model_copy(update={"balance": True}))
        assert Counter(s.answer_text for s in equal) == {"negative": 10, "positive": 10}


SCIQ = {
    "question": "What pumps blood?",
    "distractor3": "the lung",
    "distractor1": "the liver",
    "distractor2": "",
    "correct_answer": "the heart",
    "support": "",
}
COSMOS = {
    "id": "3Q9SPI##0",
    "context": "It was late.",
    "question": "Why did he leave?",
    **{f"answer{i}": text for i, text in enumerate(["tired", "None of the above choices .", "hungry", "angry"])},
    "label": 0,
}  # fmt: skip


class TestBinarySets:
    def test_sciq_says_whether_the_answer_is_right(self) -> None:
        seen = set()
        for i in range(40):
            made = sciq_binary(SCIQ | {"question": f"What pumps blood, {i}?"})
            answer = made["question"].removeprefix(f"Q: What pumps blood, {i}? A: ")
            assert answer in ("the heart", "the liver", "the lung")
            assert (made["choices"], made["answer"]) == (["false", "true"], int(answer == "the heart"))
            seen.add(answer)
        assert seen == {"the heart", "the liver", "the lung"}

    def test_without_a_distractor_the_right_answer_is_shown(self) -> None:
        alone = SCIQ | {f"distractor{i}": "" for i in (1, 2, 3)}
        # Whatever the coin, so for several questions.
        for i in range(10):
            made = sciq_binary(alone | {"question": f"What pumps blood, {i}?"})
            assert (made["question"], made["answer"]) == (f"Q: What pumps blood, {i}? A: the heart", 1)

    def test_about_half_of_the_statements_are_true(self) -> None:
        rows = [sciq_binary(SCIQ | {"question": f"question {i}"}) for i in range(2000)]
        assert abs(sum(r["answer"] for r in rows) - 1000) < 4 * (2000 / 4) ** 0.5

    def test_the_coin_does_not_depend_on_the_order_of_the_distractors(self) -> None:
        turned = SCIQ | {"distractor1": SCIQ["distractor3"], "distractor3": SCIQ["distractor1"]}
        assert sciq_binary(turned) == sciq_binary(SCIQ)

    def test_a_question_that_stands_twice_has_one_coin(self) -> None:
        for i in range(20):
            row = SCIQ | {"question": f"What pumps blood, {i}?"}
            others = row | {"distractor1": "the toe", "distractor2": "the ear"}
            assert sciq_binary(row)["answer"] == sciq_binary(others)["answer"]

    def test_cosmosqa(self) -> None:
        seen = set()
        for i in range(60):
            made = cosmosqa(COSMOS | {"context": f"It was {i} o'clock."})
            start = f"Context: It was {i} o'clock.\nQuestion: Why did he leave?\nAnswer: "
            answer = made["question"].removeprefix(start)
            assert (made["answer"], made["id"]) == (int(answer == "tired"), "3Q9SPI##0")
            seen.add(answer)
        assert seen == {"tired", "None of the above choices .", "hungry", "angry"}

    def test_none_of_the_above_is_never_shown_as_right(self) -> None:
        for i in range(30):
            made = cosmosqa(COSMOS | {"label": 1, "context": f"It was {i} o'clock."})
            assert made["answer"] == 0
            assert "None of" not in made["question"]

    def test_hidden_truth_is_no_answer(self) -> None:
        assert cosmosqa(COSMOS | {"label": -1})["answer"] is None

    def test_boolq(self) -> None:
        row = {"question": "is water wet", "answer": True, "passage": "Water is wet."}
        text = "Passage: Water is wet.\nQuestion: is water wet"
        assert boolq(row) == {"question": text, "choices": ["no", "yes"], "answer": 1}
        assert boolq(row | {"answer": False})["answer"] == 0

    def test_amazon_polarity(self) -> None:
        row = {"label": 1, "title": "Great CD", "content": "My lovely Pat has it."}
        expected = {
            "question": "Great CD My lovely Pat has it.",
            "choices": ["negative", "positive"],
            "answer": 1,
        }
        assert amazon_polarity(row) == expected
        assert amazon_polarity(row | {"title": None})["question"] == "My lovely Pat has it."
        assert amazon_polarity(row | {"content": None})["question"] == "Great CD"

    def test_anthropic_hh(self) -> None:
        made = [
            anthropic_hh({"chosen": f"Human: {i}\n\nAssistant: Yes.", "rejected": f"Human: {i}\n\nAssistant: Go."})
            for i in range(20)
        ]  # fmt: skip
        assert all(m["question"].endswith("Yes.") == (m["answer"] == 1) for m in made)
        assert {m["answer"] for m in made} == {0, 1}
        assert made[0]["choices"] == ["bad", "good"]


@pytest.mark.parametrize(
    ("name", "row", "path"),
    [
        ("sciq_binary", SCIQ, "allenai/sciq"),
        ("cosmosqa", COSMOS, "allenai/cosmos_qa"),
        ("boolq", {"question": "is it", "answer": False, "passage": "It is."}, "google/boolq"),
        ("amazon_polarity", {"label": 0, "title": "Bad", "content": "Broke."}, "fancyzhx/amazon_polarity"),
        ("anthropic_hh", {"chosen": "Human: a", "rejected": "Human: b"}, "Anthropic/hh-rlhf"),
    ],
)
def test_builtin_binary_sets_load(
    name: Any, row: dict[str, Any], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets.disable_progress_bars()
    assert builtin.hub_source(BuiltinSource(name=name)).path == path
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "set" / "train-00000-of-00001.parquet")
    monkeypatch.setitem(builtin._DATASETS, name, {"path": str(tmp_path / "set")})
    (sample,) = load_source(BuiltinSource(name=name))
    made = builtin.MAPPINGS[name](row)
    assert (sample.question, list(sample.choices or ()), sample.answer) == (
        made["question"],
        made["choices"],
        made["answer"],
    )


def test_a_set_of_other_columns_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    pq.write_table(pa.Table.from_pylist([{"text": "x"}]), tmp_path / "set" / "train-00000-of-00001.parquet")
    monkeypatch.setitem(builtin._DATASETS, "boolq", {"path": str(tmp_path / "set")})
    with pytest.raises(DataError, match=r"train row 1: no column 'passage' \(columns: text\)$"):
        load_source(BuiltinSource(name="boolq"))


@pytest.mark.parametrize(
    ("name", "split"), [("boolq", "validation"), ("cosmosqa", "validation"), ("sciq_binary", "test")]
)
def test_where_the_test_set_is_hidden_validation_serves(name: Any, split: str) -> None:
    assert builtin.hub_source(BuiltinSource(name=name, split="test", balance=True)).split == split
