"""The page in a real browser: errors shown, keyboard, screen reader, contrast, a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.serving.inspector.driving import (
    QUESTION,
    Steps,
    ask,
    expect,
    finished,
)
from tests.serving.test_guard import KEY, write

PHONE = {"width": 360, "height": 740}


class TestErrors:
    def test_what_the_server_refuses(self, open_page: Any) -> None:
        page = open_page()
        ask(page, "a " * 400)
        expect(page.get_by_role("alert")).to_contain_text("128")
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()
        ask(page)
        expect(page.locator("#tokens button").first).to_be_visible()
        expect(page.locator("#error")).to_be_empty()

    def test_an_answer_that_ends_in_the_middle(self, open_page: Any, serve_real: Any, steps: Steps) -> None:
        page = open_page(serve_real(request_seconds=1.5))
        ask(page)
        steps.take(2)
        expect(page.get_by_role("alert")).to_have_text("no answer within 1.5 s")
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()

    def test_a_full_server(self, open_page: Any, serve_real: Any, held: Callable[[], None]) -> None:
        url = serve_real(max_concurrent=1, max_queue=0)
        first, second = open_page(url), open_page(url)
        ask(first)
        expect(first.locator("#status")).to_have_text("Answering …")
        ask(second)
        expect(second.get_by_role("alert")).to_contain_text("try again in")
        held()
        finished(first)

    def test_a_server_that_is_gone(self, open_page: Any) -> None:
        page = open_page()
        expect(page.get_by_role("button", name="Ask")).to_be_visible()
        page.context.set_offline(True)
        ask(page)
        expect(page.get_by_role("alert")).to_have_text("The server cannot be reached: is it still running?")
        page.context.set_offline(False)
        ask(page)
        expect(page.locator("#error")).to_be_empty()
        finished(page)

    def test_a_key(self, open_page: Any, serve_real: Any, tmp_path: Path) -> None:
        page = open_page(serve_real(api_keys=write(tmp_path / "keys", KEY)))
        expect(page.get_by_role("alert")).to_have_text("This server needs an API key.")
        expect(page.get_by_label("API key")).to_be_focused()
        page.get_by_label("API key").fill("a-key-of-nobody-000")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_have_text("This API key is not accepted.")
        page.get_by_label("API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.get_by_label("API key")).to_be_hidden()
        ask(page)
        finished(page)
        expect(page.locator("#tokens button").first).to_be_visible()
        page.reload()
        expect(page.get_by_role("tab", name="Ask")).to_be_visible()
        assert KEY not in page.url


class TestForEverybody:
    def test_by_keyboard(self, open_page: Any) -> None:
        page = open_page()
        text = page.get_by_label("Question", exact=True)
        text.focus()
        page.keyboard.type(QUESTION)
        page.keyboard.press("Control+Enter")
        expect(page.locator("#tokens button").first).to_be_visible()
        finished(page)
        # One stop of the Tab key for all tokens, arrows within.
        assert page.locator('#tokens button[tabindex="0"]').count() == 1
        page.locator("#tokens button").first.focus()
        for key, place in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0), ("End", -1)):
            page.keyboard.press(key)
            expect(page.locator("#tokens button").nth(place)).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#tokens button").last).to_have_attribute("aria-pressed", "true")
        assert page.locator('#tokens button[aria-pressed="true"]').count() == 1
        page.get_by_role("tab", name="Ask").focus()
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name="Run")).to_be_focused()
        expect(page.get_by_role("tabpanel", name="Run")).to_be_visible()
        page.keyboard.press("Home")
        expect(page.get_by_role("tabpanel", name="Ask")).to_be_visible()

    def test_everything_has_a_name(self, open_page: Any) -> None:
        """As a screen reader gets it from the browser."""
        page = open_page()
        ask(page)
        finished(page)
        page.get_by_text("Pick a question of the run").click()
        expect(page.locator("#sample-list button").first).to_be_visible()
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        named = {
            "button",
            "textbox",
            "searchbox",
            "combobox",
            "slider",
            "checkbox",
            "radio",
            "tab",
            "tabpanel",
        }
        named |= {"spinbutton", "toolbar", "table", "image", "tablist"}
        seen = set()
        for node in tree:
            role = node.get("role", {}).get("value")
            if role in named and not node["ignored"]:
                seen.add(role)
                assert node["name"]["value"].strip(), node
        assert named - seen <= {"image"}

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_contrast(self, open_page: Any, scheme: str) -> None:
        """At least 4.5 to 1 (WCAG 2.2, 1.4.3) for all text, in both schemes."""
        page = open_page(color_scheme=scheme)
        ask(page)
        finished(page)
        found = page.evaluate(CONTRASTS)
        page.get_by_role("tab", name="Run").click()
        expect(page.locator("#story table").first).to_be_visible()
        found += page.evaluate(CONTRASTS)
        assert len(found) > 100
        assert [f for f in found if f[0] < 4.5] == []
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")

    def test_on_a_phone(self, open_page: Any) -> None:
        """Nothing is wider than the screen; tables that are scroll by themselves."""
        page = open_page(viewport=PHONE, has_touch=True)
        page.get_by_text("Pick a question of the run").tap()
        page.locator("#sample-list button").first.tap()
        for kind in ("choose an answer", "write an answer"):
            page.get_by_label(kind).tap()
            page.get_by_role("button", name="Ask").tap()
            finished(page)
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
        # The answer is in sight without scrolling by hand.
        expect(page.locator("#answer-title")).to_be_in_viewport()
        page.get_by_role("tab", name="Run").tap()
        expect(page.locator("#story table").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


# [contrast, text] of every element with text of its own that is not disabled; a colour is over that of the first ancestor
# that has one.
CONTRASTS = """() => {
  const light = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.03928 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const numbers = (text) => text.match(/[\\d.]+/g).map(Number);
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || node.matches(":disabled, .unseen") || !node.checkVisibility()) continue;
    const style = getComputedStyle(node);
    const ink = numbers(node instanceof SVGElement ? style.fill : style.color);
    let under = node;
    while (under && (numbers(getComputedStyle(under).backgroundColor)[3] ?? 1) === 0) under = under.parentElement;
    const page = numbers(getComputedStyle(under ?? document.body).backgroundColor);
    const [low, high] = [light(ink), light(page)].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), node.textContent.slice(0, 40)]);
  }
  return found;
}"""
