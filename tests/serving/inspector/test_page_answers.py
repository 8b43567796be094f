"""The page in a real browser, against a server on a real socket: answers, and other votes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ensemw2s.serving.backend import VoteBackend
from tests.serving.inspector.driving import (
    Steps,
    answer_of,
    ask,
    expect,
    finished,
    level,
    shown_tokens,
)


class TestAnswers:
    def test_tokens_stream_in_and_are_coloured(self, open_page: Any, real_url: str, steps: Steps) -> None:
        page = open_page()
        ask(page)
        tokens = page.locator("#tokens button.token")
        expect(page.locator("#status")).to_have_text("Answering …")
        expect(tokens).to_have_count(0)
        steps.take()
        expect(tokens).to_have_count(1)
        steps.take(2)
        expect(tokens).to_have_count(3)
        expect(page.locator("#status")).to_have_text("Answering …")
        expect(page.get_by_role("button", name="Stop")).to_be_enabled()
        steps.end()
        said = finished(page)
        weights, own, text = answer_of(real_url)
        assert text.strip() in said
        assert [level(t, weights) for t in own] == [
            next(c for c in t.get_attribute("class").split() if c in ("all", "most", "few"))
            for t in tokens.all()
        ]

    def test_a_token_is_taken_apart(self, open_page: Any, real_url: str) -> None:
        page = open_page()
        ask(page)
        finished(page)
        weights, own, _ = answer_of(real_url)
        page.locator("#tokens button").nth(2).click()
        token, detail = own[2], page.locator("#detail")
        expect(detail.get_by_role("heading", level=2)).to_contain_text("Token 3: ")
        expect(detail).to_contain_text(f"Voted with {100 * token['probability']:.1f} %")
        tables = [(token["top"], detail.get_by_role("table", name="The vote", exact=True))]
        for place, say in enumerate(token["members"]):
            expect(detail.get_by_role("heading", name=f"member-0{place}")).to_be_visible()
            name = f"weight {100 * weights[place]:.1f} % of the vote"
            tables.append((say["top"], detail.get_by_role("table", name=name)))
        for top, table in tables:
            rows = table.get_by_role("row").all()
            assert len(rows) in (5, 6)
            for (_, _, chance), row in zip(top[:5], rows, strict=False):
                expect(row.locator("td.value")).to_have_text(f"{100 * chance:.1f} %")
                width = float(row.locator(".fill").get_attribute("style").split()[1].removesuffix("%;"))
                assert width == pytest.approx(100 * chance, rel=1e-3)
        chosen = detail.locator("tr.chosen .value").first
        expect(chosen).to_have_text(f"{100 * token['probability']:.1f} %")
        expect(page.locator("#looked")).to_contain_text("Token 3")
        expect(page.locator("#status")).to_contain_text("Answered: ")

    def test_going_on_with_another_token_and_back(self, open_page: Any, real_url: str) -> None:
        page = open_page()
        ask(page)
        own_text = finished(page)
        own = shown_tokens(page)
        _, tokens, _ = answer_of(real_url)
        place, other = next(
            (i, t) for i, token in enumerate(tokens) for t in token["top"][1:5] if i > 0 and t[0] != 0
        )
        page.locator("#tokens button").nth(place).click()
        page.locator("#detail tr", has=page.locator("button")).nth(
            token_row(tokens[place], other)
        ).get_by_role("button", name=re.compile("Go on with")).click()
        expect(page.locator("#tokens .anew")).to_have_text("changed from here ▸")
        finished(page)
        forced = [t["id"] for t in tokens[:place]] + [other[0]]
        _, again, _ = answer_of(real_url, forced=forced)
        assert page.locator("#tokens button").count() == len(again)
        assert page.locator("#tokens button.forced").count() == place + 1
        expect(page.locator("#detail")).to_contain_text("You put this token here")
        page.get_by_role("button", name="Back to the answer that was voted").click()
        expect(page.locator("#tokens button.forced")).to_have_count(0)
        expect(page.locator("#status")).to_contain_text(own_text.partition("“")[2].partition("”")[0])
        assert shown_tokens(page) == own

    def test_stopping_frees_the_row(self, open_page: Any, backend: VoteBackend, steps: Steps) -> None:
        page = open_page()
        ask(page, length=50)
        steps.take(2)
        expect(page.locator("#tokens button").first).to_be_visible()
        page.get_by_role("button", name="Stop").click()
        expect(page.locator("#status")).to_have_text("Stopped.")
        expect(page.locator("#error")).to_be_empty()
        steps.end()
        for _ in range(300):
            if backend.health().rows == 0:
                break
            page.wait_for_timeout(20)
        assert backend.health().rows == 0
        assert page.locator("#tokens button").count() < 50

    def test_a_text_is_continued(self, open_page: Any, real_url: str) -> None:
        page = open_page()
        page.get_by_label("continue a text").check()
        ask(page, "the cat", 8)
        finished(page)
        _, tokens, _ = answer_of(real_url, question=None, prompt="the cat", max_tokens=8)
        assert len(shown_tokens(page)) == len(tokens)


def token_row(token: dict[str, Any], other: list[Any]) -> int:
    """Which of the rows with a button in the table of the vote is another token's."""
    return [t[0] for t in token["top"][:5] if t[0] != token["id"]].index(other[0])


class TestVotes:
    def test_members_off_and_on_and_other_weights(self, open_page: Any, real_url: str) -> None:
        page = open_page()
        page.get_by_label("continue a text").check()
        ask(page, "the cat", 10)
        finished(page)
        body = {"question": None, "prompt": "the cat", "max_tokens": 10}
        weights, own, text = answer_of(real_url, **body)

        page.get_by_label("member-00", exact=True).uncheck()
        expect(page.locator("#before")).to_be_visible()
        said = finished(page)
        _, alone, alone_text = answer_of(real_url, **body, weights=[None, 1.0])
        assert alone_text != text
        assert alone_text.strip() in said
        expect(page.locator("#before")).to_contain_text(text.strip()[:20])
        first = next(i for i, (a, b) in enumerate(zip(own, alone, strict=False)) if a["id"] != b["id"])
        # The mark stands in front of the first token that differs.
        marked = page.locator("#tokens > *").evaluate_all("all => all.findIndex(e => e.className === 'anew')")
        assert marked == first
        page.locator("#tokens button").nth(first).click()
        expect(page.locator("#detail")).to_contain_text("Did not vote.")
        expect(page.locator("#vote-list li").first).to_contain_text("does not vote")

        page.get_by_label("member-00", exact=True).check()
        expect(page.locator("#status")).to_contain_text(text.strip()[:20])
        finished(page)

        slider = page.get_by_label("Weight of member-00")
        slider.focus()
        page.keyboard.press("End")
        page.keyboard.press("ArrowLeft")
        largest = max(weights)
        own_place = max(1, round(weights[0] / largest * 50))
        changed = [weights[0] * 99 / own_place, weights[1]]
        share = 100 * changed[0] / sum(changed)
        expect(slider).to_have_attribute("aria-valuetext", f"{share:.1f} % of the vote")
        _, tokens, _ = answer_of(real_url, **body, weights=changed)
        page.locator("#tokens button").first.click()
        expect(page.locator("#detail")).to_contain_text(f"Voted with {100 * tokens[0]['probability']:.1f} %")

        page.get_by_role("button", name="The run's own weights").click()
        expect(page.locator("#status")).to_contain_text(text.strip()[:20])
        finished(page)
        assert len(shown_tokens(page)) == len(own)
        expect(page.get_by_role("button", name="The run's own weights")).to_be_disabled()

    def test_nobody_votes(self, open_page: Any) -> None:
        page = open_page()
        ask(page)
        finished(page)
        before = shown_tokens(page)
        for name in ("member-00", "member-01"):
            page.get_by_label(name, exact=True).uncheck()
        expect(page.locator("#votes-note")).to_contain_text("Nobody votes")
        finished(page)
        ask(page)
        expect(page.get_by_role("alert")).to_contain_text("at least one member must vote")
        assert before
