from __future__ import annotations

import os
import re
import sys
from typing import Any

import pytest

from ensemw2s.config import ReasoningGymSource
from ensemw2s.data.generation import generate
from ensemw2s.data.reasoning import load_reasoning_gym, to_samples
from ensemw2s.data.samples import normalize_text
from ensemw2s.errors import DataError

ITEMS = [(f"question {i}?", f"answer {i % 6}") for i in range(60)]


def test_free_generation_has_no_choices() -> None:
    samples = to_samples(ITEMS, "task", 0)
    assert [(s.question, s.choices, s.answer) for s in samples] == [(q, None, a) for q, a in ITEMS]
    assert len({s.id for s in samples}) == 60
    assert all(s.id.startswith("task-") for s in samples)


def test_distractors_are_other_answers_drawn_by_id() -> None:
    samples = to_samples(ITEMS, "task", 3)
    for sample, (_, answer) in zip(samples, ITEMS, strict=True):
        assert sample.choices is not None
        assert sample.answer_text == answer
        assert len(set(sample.choices)) == 4
        assert set(sample.choices) <= {a for _, a in ITEMS}
    assert {s.answer for s in samples} == {0, 1, 2, 3}
    assert len({s.choices for s in samples}) > 20
    assert to_samples(ITEMS[::-1], "task", 3) == samples[::-1]


def test_all_distractors_are_the_same_choices_for_every_sample() -> None:
    samples = to_samples(ITEMS, "task", "all")
    assert {s.choices for s in samples} == {tuple(f"answer {i}" for i in range(6))}
    assert [s.answer for s in samples] == [i % 6 for i in range(60)]


def test_as_many_distractors_as_there_are_other_answers() -> None:
    assert all(len(s.choices or ()) == 6 for s in to_samples(ITEMS, "task", 5))
    with pytest.raises(
        DataError, match="6 distractors, but only 6 different answers occur: ask for at most 5"
    ):
        to_samples(ITEMS, "task", 6)


def test_all_needs_2_to_64_answers() -> None:
    with pytest.raises(DataError, match="with 65 different answers, allowed are 2 to 64"):
        to_samples([(f"q{i}", f"a{i}") for i in range(65)], "task", "all")
    with pytest.raises(DataError, match="with 1 different answers"):
        to_samples([("q1", "a"), ("q2", "a")], "task", "all")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(DataError, match=r"pip install 'ensemw2s\[demo\]'"):
        load_reasoning_gym(ReasoningGymSource(task="family_relationships"))


@pytest.fixture(scope="module")
def gym() -> Any:
    return pytest.importorskip("reasoning_gym")


@pytest.mark.usefixtures("gym")
class TestGenerate:
    def test_questions_differ_and_the_strip_pattern_is_gone(self) -> None:
        strip = r"\s*(Respond only|Provide the|Answer with)[^.]*\."
        items = generate("family_relationships", 80, 0, {"max_family_size": 4}, strip)
        assert len({normalize_text(question) for question, *_ in items}) == 80
        assert all(question.endswith("?") and answer for question, answer, _ in items)
        assert not any("Respond" in q or "Provide" in q or "Answer" in q for q, *_ in items)

    def test_repeated_questions_are_replaced_by_further_ones(self) -> None:
        # One digit and one operator: few questions, so that the first 60 repeat some.
        options = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
        items = generate("chain_sum", 60, 0, options)
        assert len({question for question, *_ in items}) == 60
        with pytest.raises(
            DataError, match=r"only \d+ different questions in \d+, 2000 asked for: lower size"
        ):
            generate("chain_sum", 2000, 0, options)

    def test_neighbouring_seeds_share_nothing(self) -> None:
        one, other = (generate("family_relationships", 50, seed, {}) for seed in (0, 1))
        assert not {q for q, *_ in one} & {q for q, *_ in other}

    def test_a_field_of_the_metadata_is_the_difficulty(self) -> None:
        options = {"min_terms": 2, "max_terms": 4, "max_digits": 1}
        items = generate("chain_sum", 30, 0, options, difficulty="num_terms")
        for item in items:
            terms = re.findall(r"\d+", item.question)
            assert item.difficulty == len(terms)
        samples = to_samples(items, "chain_sum", 3)
        assert [s.difficulty for s in samples] == [item.difficulty for item in items]
        with pytest.raises(
            DataError, match="'terms' is no number of a question's metadata; numbers there are num_terms"
        ):
            generate("chain_sum", 5, 0, options, difficulty="terms")

    def test_unknown_task_and_options(self) -> None:
        with pytest.raises(DataError, match="no task 'family_relations': did you mean family_relationships"):
            generate("family_relations", 5, 0, {})
        with pytest.raises(
            DataError, match="no option family_size: known are min_family_size, max_family_size"
        ):
            generate("family_relationships", 5, 0, {"family_size": 3})
        with pytest.raises(DataError, match="no option seed: size and seed are fields of the source itself"):
            generate("family_relationships", 5, 0, {"seed": 3})
        with pytest.raises(DataError, match=r"refuses the options .*min_family_size must be at least 3"):
            generate("family_relationships", 5, 0, {"min_family_size": 1})

    def test_other_things_that_cannot_work(self) -> None:
        with pytest.raises(DataError, match=r"strip '\[' is not a regular expression"):
            generate("chain_sum", 5, 0, {}, "[")
        with pytest.raises(DataError, match="leaves nothing of a question"):
            generate("chain_sum", 5, 0, {}, r"(?s).*")
        with pytest.raises(DataError, match="no single right answer as text"):
            generate("rush_hour", 2, 0, {})


@pytest.mark.slow  # each loading starts a process that imports reasoning-gym
@pytest.mark.usefixtures("gym")
def test_every_process_gives_the_same_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    # ransom_note walks through a set of strings: its questions depend on the process's string hashing.
    source = ReasoningGymSource(task="ransom_note", size=30, seed=3)
    first = load_reasoning_gym(source)
    monkeypatch.setitem(os.environ, "PYTHONHASHSEED", "123")
    assert load_reasoning_gym(source) == first
    assert len(first) == 30


@pytest.mark.slow  # each loading starts a process that imports reasoning-gym
@pytest.mark.usefixtures("gym")
def test_an_error_of_the_generator_process_is_a_data_error() -> None:
    with pytest.raises(DataError, match="no task 'zzzz': known are"):
        load_reasoning_gym(ReasoningGymSource(task="zzzz"))
