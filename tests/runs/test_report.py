"""The report's files: escaping, one self-contained page, the same bytes each time; and its examples."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ensemw2s.errors import ArtifactError, RunDirectoryError
from ensemw2s.runs import report_format as form
from ensemw2s.runs.report import load_results, write_report
from ensemw2s.runs.report_examples import disagreements, same_answer
from ensemw2s.runs.tables import comparison_table

VOID = {"meta", "br", "img", "source", "input", "link", "hr"}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps the text, the tags and every attribute."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def rows(n: int, nasty: str = "") -> list[dict[str, Any]]:
    """Question i: the ensemble's student is right where i is even, the other where 3 divides i."""
    return [
        {
            "id": f"q{i}",
            "question": f"question {i} {nasty}",
            "choices": ["yes", "no", nasty],
            "truth": "yes",
            "student_single": "yes" if i % 3 == 0 else "no",
            "student_ensemble": "yes" if i % 2 == 0 else nasty,
        }
        for i in range(n)
    ]


def with_one_figure(results: dict[str, Any]) -> dict[str, Any]:
    """The same run with nothing to draw but the members, for tests that look at something else."""
    systems = {row.system: None for row in comparison_table(results)}
    nothing = {
        "staged": {},
        "effective_sample_size": [],
        "token_weight": None,
        "diagnostics": None,
        "difficulty": None,
    }
    return results | systems | nothing


def test_examples_are_the_first_of_each_kind() -> None:
    one, other = disagreements(pa.Table.from_pylist(rows(60)), "multiple_choice", per_side=3)
    # Right by the ensemble's student: even numbers. By the other: multiples of 3.
    assert [example.id for example in one.examples] == ["q2", "q4", "q8"]
    assert [example.id for example in other.examples] == ["q3", "q9", "q15"]
    assert (one.total, other.total) == (20, 10)
    assert one.title == "Student of the ensemble right, student of the single model wrong"
    assert [(answer.label, answer.right) for answer in one.examples[0].answers] == [
        ("Student of the single model", False),
        ("Student of the ensemble", True),
    ]


def test_examples_fall_back_to_the_weak_models_or_to_none() -> None:
    weak = [
        {
            "weak_single": "yes",
            "weak_ensemble": "no",
            "id": "q",
            "question": "?",
            "choices": None,
            "truth": "yes",
        }
    ]
    one, other = disagreements(pa.Table.from_pylist(weak), "generation")
    assert (one.total, other.total) == (0, 1)
    assert other.examples[0].choices == []
    assert disagreements(pa.table({"id": ["q"], "truth": ["x"], "ceiling": ["x"]}), "generation") == []


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Paris", True),
        (" paris. ", True),
        ("PARIS", True),
        ("Pa ris", False),
        ("\uff30aris", True),
        ("Paris..", True),
        ("", False),
    ],
)
def test_free_answers_are_judged_as_the_run_judges_them(answer: str, right: bool) -> None:
    assert same_answer(answer, "Paris", "generation") == right
    assert same_answer(answer, "Paris", "multiple_choice") == (answer == "Paris")


def test_no_answer_is_not_right() -> None:
    assert not same_answer(None, "", "generation")


def test_report_of_a_full_run(write_run: Callable[..., Path], results: dict[str, Any], nasty: str) -> None:
    results["warnings"].append(nasty)
    config = "strong:\n  model: {path: org/big-model, drop_layers: 3-4}\nevaluation: {level: 0.9}\n"
    config += "# </pre><script>\n"
    paths = write_report(write_run(results, rows(40, nasty), config))
    html, markdown = paths.html.read_text(encoding="utf-8"), paths.markdown.read_text(encoding="utf-8")
    page = Page(html)

    # From the question to the answer to the warnings, in this order, in both.
    for text in (page.text, markdown):
        places = [
            text.index(part) for part in ("What was asked", "The answer", "Warnings of the run", "Comparison")
        ]
        assert places == sorted(places)
        assert "big-model without layers 3-4" in text
        assert "90 % interval" in text
    assert "61.2\u00a0% (57.2-\u206065.2)" in page.text

    # What comes from data is text: no element of it, and nothing of it lost.
    shown = form.printable(nasty)
    assert not any(tag in ("script", "b") for tag, _ in page.tags)
    assert page.text.count(shown) >= 3
    assert "# </pre><script>" in page.text
    assert "<script" not in markdown.split("```yaml")[0]
    cells = [line for line in markdown.splitlines() if line.startswith("| \\|")]
    assert len(cells) == 1
    assert len(re.findall(r"(?<!\\)\|", cells[0])) == 5

    # Nothing is loaded from elsewhere, and every figure can be read by those who do not see it.
    for tag, attributes in page.tags:
        assert "href" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:") is not None
            assert str(attributes.get(name, "data:")).startswith("data:")
        if tag == "img":
            assert len(attributes["alt"] or "") > 40
    assert "url(" not in html
    assert "@import" not in html
    assert sum(tag == "img" for tag, _ in page.tags) == 6 == len(paths.figures)
    for path in paths.figures:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"(figures/{path.name})" in markdown


def test_report_of_a_run_without_students(
    write_run: Callable[..., Path], one_member_results: dict[str, Any]
) -> None:
    run_dir = write_run(one_member_results)
    paths = write_report(run_dir)
    page = Page(paths.html.read_text(encoding="utf-8"))
    assert "Warnings of the run" not in page.text
    assert "PGR" not in page.text
    assert "None" not in page.text
    assert "Questions on which" not in page.text
    assert "config.yaml" not in page.text
    assert "nan" not in page.text
    assert "None" not in paths.markdown.read_text(encoding="utf-8")


def test_report_of_a_run_in_which_nothing_was_kept(
    write_run: Callable[..., Path], results: dict[str, Any]
) -> None:
    for row in comparison_table(results):
        results[row.system] = None
    results |= {"members": results["members"][2:], "staged": {}, "selected_rounds": None, "selection": None}
    results |= {"effective_sample_size": [], "token_weight": None, "label_accuracy": None, "versions": {}}
    results |= {"diagnostics": None, "difficulty": None}
    paths = write_report(write_run(results))
    page = Page(paths.html.read_text(encoding="utf-8"))
    assert [path.name for path in paths.figures] == ["members.png"]
    assert "no trained system was measured" in page.text
    assert "No ensemble was formed" in page.text


def test_same_results_give_the_same_bytes(write_run: Callable[..., Path], results: dict[str, Any]) -> None:
    run_dir = write_run(with_one_figure(results), rows(12))

    def content() -> dict[str, bytes]:
        paths = write_report(run_dir)
        return {path.name: path.read_bytes() for path in (paths.markdown, paths.html, *paths.figures)}

    assert content() == content()


def test_a_new_report_replaces_the_old_one(write_run: Callable[..., Path], results: dict[str, Any]) -> None:
    run_dir = write_run(with_one_figure(results))
    (run_dir / "figures").mkdir()
    for name in ("accuracy_by_members.png", "members.png", "my own.png"):
        (run_dir / "figures" / name).write_bytes(b"old")
    (run_dir / "report.md").write_text("old", encoding="utf-8")
    [figure] = write_report(run_dir).figures
    # A figure that no longer applies goes; what the report did not write stays.
    assert {path.name for path in (run_dir / "figures").iterdir()} == {"members.png", "my own.png"}
    assert figure.read_bytes() != b"old"
    assert (run_dir / "report.md").read_text(encoding="utf-8").startswith("# demo\n")


def test_a_long_question_is_shortened(write_run: Callable[..., Path], results: dict[str, Any]) -> None:
    write = rows(4)
    write[2]["question"] = "x" * 100_000
    html = write_report(write_run(with_one_figure(results), write)).html.read_text(encoding="utf-8")
    assert "x" * 600 in html
    assert "x" * 601 not in html
    assert "(99,400 more characters)" in html


def test_files_that_cannot_be_used(
    write_run: Callable[..., Path], results: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(RunDirectoryError, match=r"results\.json does not exist"):
        write_report(tmp_path)
    run_dir = write_run(results | {"schema": 2})
    with pytest.raises(RunDirectoryError, match="schema 2, this version reads 1"):
        load_results(run_dir)
    (run_dir / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="not valid JSON"):
        load_results(run_dir)
    (run_dir / "results.json").write_text("[]", encoding="utf-8")
    with pytest.raises(RunDirectoryError, match="schema None"):
        load_results(run_dir)
    write_run(results, rows(2), "a: [")
    with pytest.raises(ArtifactError, match=r"config\.yaml"):
        write_report(run_dir)
    (run_dir / "config.yaml").unlink()
    (run_dir / "predictions" / "test.parquet").write_bytes(b"no")
    with pytest.raises(ArtifactError, match="Parquet"):
        write_report(run_dir)
    assert not (run_dir / "report.html").exists()
