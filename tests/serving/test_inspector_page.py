"""The page in a real browser: Chromium of this machine, driven by Playwright, against a server on a real socket.

A machine without Chromium skips these tests; with ENSEMW2S_REQUIRE_CHROMIUM set (as in ``.ci/run``) they fail there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ensemw2s.serving.backend import VoteBackend
from tests.serving.test_guard import KEY, write

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
QUESTION = "the cat in the barn"
PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        reason = f"no Chromium on this machine: none of {', '.join(NAMES)} (Debian: apt-get install chromium)"
        if os.environ.get("ENSEMW2S_REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    expect.set_options(timeout=15_000)
    with sync_api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield started
        started.close()


@pytest.fixture
def open_page(browser: Any, real_url: str) -> Iterator[Callable[..., Any]]:
    """Opens the page of a server in a browser of its own; at the end nothing was wrong in it, or came from elsewhere."""
    contexts: list[Any] = []
    wrong: list[str] = []

    def heard(message: Any) -> None:
        # A refused request is an error in the console, too, but none of the page.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            wrong.append(message.text)

    def make(url: str = real_url, **options: Any) -> Any:
        site = url.removesuffix("/v1")
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", heard)
        page.on("request", lambda request: request.url.startswith(f"{site}/") or wrong.append(request.url))
        page.goto(f"{site}/")
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


class Steps:
    """The thread that votes takes a step each time it is told to, once there is something to decode."""

    def __init__(self, backend: VoteBackend) -> None:
        self._backend, self._begun = backend, False
        self._go = threading.Semaphore(0)
        self._jobs = [backend._loop.call(lambda: self._go.acquire(timeout=60)) for _ in range(60)]

    def take(self, count: int = 1) -> None:
        while self._backend._loop.texts == 0:
            time.sleep(0.01)
        # The thread had nothing to decode when it began to wait the first time.
        self._go.release(count if self._begun else count + 1)
        self._begun = True

    def end(self) -> None:
        self._go.release(len(self._jobs))
        for job in self._jobs:
            job.result(60)


@pytest.fixture
def steps(backend: VoteBackend) -> Iterator[Steps]:
    made = Steps(backend)
    yield made
    made.end()


def ask_server(url: str, path: str, **body: Any) -> Any:
    """The same question without the page: a JSON answer, or a list of events."""
    request = urllib.request.Request(
        f"{url.removesuffix('/v1')}/inspector/{path}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as reply:
        text = reply.read().decode()
    if path == "choose":
        return json.loads(text)
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-2]]


def answer_of(url: str, **body: Any) -> tuple[list[float], list[dict[str, Any]], str]:
    """Weights, tokens and text."""
    begin, *tokens, end = ask_server(url, "answer", **({"question": QUESTION, "max_tokens": 6} | body))
    return begin["weights"], tokens, end["text"]


def level(token: dict[str, Any], weights: list[float]) -> str:
    """How the members agree on a token, by the words of the page."""
    voting = [(say, w) for say, w in zip(token["members"], weights, strict=True) if say is not None]
    same = sum(w for say, w in voting if say["top"][0][0] == token["id"]) / sum(w for _, w in voting)
    return "all" if same > 0.9999 else "most" if same >= 0.5 else "few"


def ask(page: Any, text: str = QUESTION, length: int | None = 6) -> None:
    page.get_by_label("Question", exact=True).or_(page.get_by_label("Text", exact=True)).fill(text)
    if length is not None:
        page.get_by_label("At most").fill(str(length))
    page.get_by_role("button", name="Ask").click()


def finished(page: Any) -> str:
    """Waits until the answer is whole; what is said of it."""
    expect(page.get_by_role("button", name="Stop")).to_be_disabled()
    return str(page.locator("#status").inner_text())


def shown_tokens(page: Any) -> list[str]:
    return [str(t) for t in page.locator("#tokens button").all_text_contents()]


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
