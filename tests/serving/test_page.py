"""The page at ``/`` in headless Chromium, with a server that has a fake model."""

import math
import shutil

import pytest
from support import fakes

from polar_rm.records import ScoreItem
from polar_rm.rewards.calibration import Calibration
from polar_rm.rewards.scale import Scale
from polar_rm.scoring.examples import read_examples
from polar_rm.serving.guard import Limits

ENCODER = fakes.encoder(max_length=200, max_response_length=60)
CHROMIUM = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)

PASTE = """text => {
    const data = new DataTransfer();
    data.setData("text", text);
    const area = document.querySelector(".candidate textarea");
    area.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, cancelable: true}));
}"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    page = browser.new_page()
    page.set_default_timeout(60_000)
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: errors.append(request.url) if "127.0.0.1" not in request.url and "data:" not in request.url else None,
    )
    yield page
    page.close()
    assert errors == []


def fill(page, prompt, reference, candidates):
    page.fill("#prompt", prompt)
    page.fill("#reference", reference)
    while page.locator(".candidate").count() > len(candidates):
        page.click(".candidate .remove >> nth=0")
    while page.locator(".candidate").count() < len(candidates):
        page.click("#add")
    for index, text in enumerate(candidates):
        page.fill(f".candidate textarea >> nth={index}", text)


def open_page(page, url):
    """Open the page and wait for the example that it begins with, whose ranking would be taken for that of a test."""
    page.goto(url)
    page.wait_for_selector("#model:has-text('rm · up to 200 tokens')")
    page.wait_for_selector("#ranking li")
    page.evaluate("document.getElementById('ranking').replaceChildren()")


def score(candidate):
    return fakes.fake_score(fakes.ids_of(ScoreItem("over", "the dog", candidate), ENCODER))


def test_candidates_are_ranked_and_transformed(page):
    candidates = ["the fox", "<b>a river</b>", "bank", "the fox"]
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        open_page(page, url)
        fill(page, "over", "the dog", candidates)
        page.click("#go")
        page.wait_for_selector("#ranking li")
        ranked = sorted(candidates, key=score, reverse=True)
        assert page.locator("#ranking li:not(.itself) .text").all_text_contents() == ranked
        assert page.locator("#ranking li:not(.itself) .score").all_text_contents() == [f"{score(text):.4f}" for text in ranked]
        ranks = page.locator("#ranking li:not(.itself) .rank").all_text_contents()
        assert ranks == [f"{1 + sum(score(other) > score(text) for other in candidates)}." for text in ranked]
        widths = [box.bounding_box()["width"] for box in page.locator("#ranking .bar").all()]
        assert widths == sorted(widths, reverse=True) and widths[-1] < widths[0] / 10
        assert "tokens" in page.locator("#ranking .facts").first.text_content()
        assert page.locator("#transform option").all_text_contents() == ["raw", "group_zscore", "whiten", "tanh", "anchored"]
        page.select_option("#transform", "tanh")
        page.wait_for_selector("#status:has-text('tanh(reward / 10)')")
        assert page.locator("#ranking .facts").first.text_content().count("raw")


def anchored(candidate):
    return score(candidate) - score("the dog")


def test_the_reference_itself_is_scored_on_request(page):
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        open_page(page, url)
        fill(page, "over", "the dog", ["the fox", "the dog"])
        assert page.get_attribute("#itself", "aria-pressed") == "true"  # the scale is shown without being asked
        page.click("#itself")
        page.wait_for_selector("#ranking:not(:has(li.itself)) li")
        assert page.locator("#ranking li").count() == 2 and page.locator("#ranking .anchored").count() == 0
        page.click("#itself")
        page.wait_for_selector("#ranking li.itself")
        assert page.locator("#ranking li.itself .score").text_content() == f"{score('the dog'):.4f}"
        difference = anchored("the fox")
        sign = "−" if difference < 0 else "+"
        shown = page.locator("#ranking .anchored").all_text_contents()
        assert sorted(shown) == sorted([f"{sign}{abs(difference):.2f} beside the reference", "+0.00 beside the reference"])
        page.fill("#reference", " ")  # nothing to anchor by: raw rewards, and no error
        page.click("#go")
        page.wait_for_selector("#ranking:not(:has(li.itself)) li")
        page.click("#itself")
        assert page.get_attribute("#itself", "aria-pressed") == "false"


def test_several_references_are_combined(page):
    def score_under(reference, candidate):
        return fakes.fake_score(fakes.ids_of(ScoreItem("over", reference, candidate), ENCODER))

    with fakes.running(fakes.make(encode=ENCODER)) as url:
        open_page(page, url)
        fill(page, "over", "the dog", ["the fox"])
        assert page.is_hidden("#combine")
        page.click("#add-reference")
        page.fill(".another textarea", "a river")
        page.click("#go")
        page.wait_for_selector("#ranking li")
        mean = (score_under("the dog", "the fox") + score_under("a river", "the fox")) / 2
        assert page.locator("#ranking li:not(.itself) .score").all_text_contents() == [f"{mean:.4f}"]
        page.select_option("#combine", "best")
        page.click("#go")
        page.wait_for_selector("#ranking li.itself:has-text('the nearest reference')")
        best = max(score_under(each, "the fox") - score_under(each, each) for each in ("the dog", "a river"))
        assert page.locator("#ranking .score").all_text_contents() == [f"{best:.4f}", "0.0000"]


def test_a_calibrated_model_shows_its_scale(page):
    card = Calibration.from_rewards([-1.0, 1.0], temperature=100.0)
    with fakes.running(fakes.make(encode=ENCODER, scale=Scale(card))) as url:
        open_page(page, url)
        assert page.get_attribute("#itself", "aria-pressed") == "true"
        fill(page, "over", "the dog", ["the fox", "the dog"])
        page.click("#go")
        page.wait_for_selector("#ranking li.itself")
        shown = page.locator("#ranking .anchored").all_text_contents()
        probability = 100 / (1 + math.exp(-anchored("the fox") / 100))
        assert f"better than the reference: {probability:.1f}%" in shown and "better than the reference: 50.0%" in shown
        page.select_option("#transform", "probability")
        page.wait_for_selector("#status:has-text('probability: of the candidate')")
        assert "0.5000" in page.locator("#ranking .score").all_text_contents()


def test_cuts_and_errors_are_shown(page):
    with fakes.running(fakes.make(encode=ENCODER, limits=Limits(items=3))) as url:
        open_page(page, url)
        fill(page, "fox " * 200, "the dog", ["bank " * 200, "river"])
        page.keyboard.press("Control+Enter")
        page.wait_for_selector("#ranking li")
        marks = page.locator("#ranking .mark").all_text_contents()
        assert {mark.partition(" by ")[0] for mark in marks} >= {"output truncated", "prompt truncated"}
        fill(page, "p", "r", ["a", "b", "c", "d"])
        page.click("#go")
        page.wait_for_selector("#status.bad:has-text('the limit is 3')")
        assert page.locator("#ranking li").count() == 0


def test_several_candidates_can_be_pasted_and_a_key_entered(page):
    with fakes.running(fakes.make(encode=ENCODER, api_key="k")) as url:
        page.goto(url)
        page.wait_for_selector("#model:has-text('wrong API key')")
        fill(page, "over", "the dog", [""])
        page.evaluate(PASTE, "the fox\n---\na river\nbank\n----\ndog")
        texts = [area.input_value() for area in page.locator(".candidate textarea").all()]
        assert texts == ["the fox", "a river\nbank", "dog"]
        page.click("summary")
        page.fill("#key", "k")
        page.click("#go")
        page.wait_for_selector("#ranking li")
        assert page.locator("#ranking li:not(.itself)").count() == 3


def example_scores(example):
    return [fakes.fake_score(fakes.ids_of(item, ENCODER)) for item in example.items()]


def test_the_page_begins_with_an_example_of_each_kind_as_this_model_judges_it(page):
    """The labels are of the served model: an oracle scores the packaged examples again."""
    scores = {example: example_scores(example) for example in read_examples()}
    right = [example for example, (better, worse) in scores.items() if better > worse]
    wrong = [example for example, (better, worse) in scores.items() if better <= worse]
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        page.goto(url)
        page.wait_for_selector("#examples section")
        assert f"right in {len(right)} of {len(scores)} packaged examples" in page.text_content("#summary")
        cards = page.locator("#examples section").all()
        for card, example, label in zip(cards, (right[0], wrong[0]), ("is right", "is wrong"), strict=True):
            text = card.text_content()
            assert example.prompt in text and example.reference in text and label in text
            assert card.locator(".number").all_text_contents() == [f"{score:.2f}" for score in scores[example]]
        # The form begins with the first one, and is scored with the reference itself.
        page.wait_for_selector("#ranking li.itself")
        assert page.input_value("#prompt") == right[0].prompt
        page.click("#examples section >> nth=1 >> button")
        texts = [area.input_value() for area in page.locator(".candidate textarea").all()]
        assert texts == [wrong[0].better, wrong[0].worse] and page.input_value("#reference") == wrong[0].reference


def test_pasted_candidates_replace_the_examples_and_nothing_else(page):
    with fakes.running(fakes.make(encode=ENCODER)) as url:
        page.goto(url)
        page.wait_for_selector("#ranking li.itself")
        page.evaluate(PASTE, "the fox")
        assert [area.input_value() for area in page.locator(".candidate textarea").all()] == ["the fox"]
        page.click("#add")
        page.fill(".candidate textarea >> nth=1", "a river")
        page.evaluate(PASTE, "one\n---\ntwo")
        assert [area.input_value() for area in page.locator(".candidate textarea").all()] == ["one", "two", "a river"]
