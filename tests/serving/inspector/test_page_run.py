"""The page in a real browser: questions of the run, and its story."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.serving.inspector.driving import (
    QUESTION,
    ask,
    ask_server,
    expect,
    finished,
)


class TestChoices:
    def test_a_question_of_the_run(self, open_page: Any, real_url: str) -> None:
        page = open_page()
        page.get_by_text("Pick a question of the run").click()
        page.get_by_label("Split").select_option("hard_train")
        page.get_by_label("Find").fill("the dog")
        expect(page.locator("#sample-place")).to_contain_text("1 to ")
        button = page.locator("#sample-list button").filter(has_text="the dog").first
        question = button.inner_text()
        button.click()
        expect(page.get_by_label("choose an answer")).to_be_checked()
        page.get_by_role("button", name="Ask").click()
        finished(page)
        choices = ["buzz loud", "hiss low", "roar far", "chirp high"]
        result = ask_server(real_url, "choose", question=question, choices=choices)
        chosen = page.locator("#choice-part li.chosen")
        expect(chosen).to_contain_text(result["label"])
        expect(page.locator("#status")).to_contain_text(f"{100 * result['confidence']:.1f} %")
        for place, row in enumerate(page.locator("#choice-part li").all()):
            values = [result["scores"][place], *(own[place] for own in result["members"])]
            assert row.locator("td.value").all_inner_texts() == [f"{100 * v:.1f} %" for v in values]
        # What is right is shown when the answer is there: dogs roar... hiss is 1, dog is the fourth animal.
        expect(page.locator("#truth")).to_have_text("In the run's data: chirp high")
        expect(page.locator("#choice-part li").nth(3)).to_contain_text("right")

        page.get_by_label("member-01", exact=True).uncheck()
        alone = ask_server(real_url, "choose", question=question, choices=choices, weights=[1.0, None])
        expect(page.locator("#choice-part li.chosen td.value").first).to_have_text(
            f"{100 * alone['confidence']:.1f} %"
        )
        expect(page.locator("#choice-part li.chosen")).to_contain_text(alone["label"])

    def test_choices_of_ones_own(self, open_page: Any, real_url: str) -> None:
        page = open_page()
        page.get_by_label("choose an answer").check()
        page.get_by_label("Choices, one a line").fill("low\n\n  far \n")
        ask(page, length=None)
        finished(page)
        result = ask_server(real_url, "choose", question=QUESTION, choices=["low", "far"])
        expect(page.locator("#choice-part li")).to_have_count(2)
        expect(page.locator("#choice-part li.chosen")).to_contain_text(result["label"])
        expect(page.locator("#truth")).to_be_hidden()

    def test_paging(self, open_page: Any) -> None:
        page = open_page()
        page.get_by_text("Pick a question of the run").click()
        first = page.locator("#sample-list button").all_inner_texts()
        expect(page.locator("#sample-place")).to_have_text(re.compile("^1 to 8 of "))
        first = page.locator("#sample-list button").all_inner_texts()
        expect(page.get_by_role("button", name="Before")).to_be_disabled()
        page.get_by_role("button", name="Next").click()
        expect(page.locator("#sample-place")).to_have_text(re.compile("^9 to 16 of "))
        assert not set(first) & set(page.locator("#sample-list button").all_inner_texts())
        page.get_by_role("button", name="Before").click()
        expect(page.locator("#sample-list button").first).to_have_text(first[0])
        page.get_by_label("Find").fill("no such question")
        expect(page.locator("#sample-place")).to_have_text("no such question")


def test_the_runs_story(open_page: Any, served_run: Path) -> None:
    page = open_page()
    page.get_by_role("tab", name="Run").click()
    results = json.loads((served_run / "results.json").read_text())
    story = page.locator("#story")
    expect(story.get_by_role("heading", name="Comparison")).to_be_visible()
    expect(page.locator("#panel-ask")).to_be_hidden()
    table = story.get_by_role("table", name="Share of test questions answered right")
    for key, label in (("student_ensemble", "Student of the ensemble"), ("weak_single", "Single weak model")):
        row = table.get_by_role("row").filter(has=page.get_by_role("rowheader", name=label, exact=True))
        expect(row).to_contain_text(f"{100 * results[key]['test']['value']:.1f} %")
    members = story.get_by_role("table", name="Members of the ensemble").get_by_role("row")
    expect(members).to_have_count(1 + len(results["members"]))
    for member, row in zip(results["members"], members.all()[1:], strict=True):
        expect(row).to_contain_text(f"{member['alpha']:.3f}")
    names = [f.get_attribute("aria-label") for f in story.locator("figure svg[role=img]").all()]
    assert names[:1] == ["Share answered right on test, with intervals"]
    assert {"Errors by round", "Weight in the vote by round", "Effective sample size by round"} <= set(names)
    assert not any("NaN" in f.inner_html() for f in story.locator("svg").all())
