"""report.html in headless Chromium: it says nothing to the console, asks for nothing, and shows texts as text."""

import re

import pytest

from tests.helpers.browser import opened
from tests.helpers.hostile import HOSTILE, LONG_LINE
from tests.helpers.written_run import PLAIN, Texts, written_run
from tpo_lite.people import report
from tpo_lite.people.report import write_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_report(written_run(tmp_path_factory.mktemp("plain") / "run", baseline=True))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    texts = Texts(HOSTILE, [*HOSTILE, LONG_LINE], category=HOSTILE[1], prompts=len(HOSTILE))
    return write_report(written_run(tmp_path_factory.mktemp("hostile") / "run", texts, iterations=1))


def shown(text: str) -> str:
    """A text as the page shows it: control characters by name."""

    def name(match: re.Match[str]) -> str:
        code = ord(match[0])
        return chr(0x2400 + code) if code < 0x20 else f"U+{code:04X}"

    text = text.replace("\r\n", "\n")
    named = "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2028\u2029\u2060\u2066-\u2069\ufeff]"
    return re.sub(named, name, text)


def test_every_hostile_text_is_text_and_the_page_is_silent(hostile):
    with opened(hostile) as found:
        page = found.page
        page.wait_for_selector("#prompt .card")
        seen = []
        for _ in HOSTILE:
            seen.append(page.locator("#prompt .prompt .text").evaluate("element => element.textContent"))
            page.locator("#prompt details").evaluate_all("all => all.forEach(each => each.open = true)")
            page.keyboard.press("Escape")
            page.locator("#next").click(force=True) if page.locator("#next").is_enabled() else None
        assert seen == [shown(text) for text in HOSTILE]
        page.select_option("#part", "iteration-0")
        page.wait_for_selector("#prompt .matrix")
        for _ in HOSTILE:
            if page.locator("#next").is_enabled():
                page.locator("#next").click()
        assert page.evaluate("window.harmed") is None
        assert page.locator("#prompt img, #prompt script, #prompt svg, #prompt template, #prompt link").count() == 0
        assert found.console == [] and found.requests == [hostile.as_uri()]


def test_a_long_line_is_clipped_and_shown_on_demand(hostile):
    with opened(hostile) as found:
        found.page.select_option("#part", "iteration-0")
        found.page.fill("#query", LONG_LINE[:200])
        button = found.page.get_by_text(re.compile(r"Show all 50,\d+ characters")).first
        button.click()
        longest = found.page.locator("#prompt .text").evaluate_all(
            "all => Math.max(...all.map(e => e.textContent.length))"
        )
        assert longest > 50_000
        assert found.page.evaluate("document.documentElement.scrollWidth <= innerWidth") and found.console == []


def test_prompts_are_searched_filtered_and_walked_by_keyboard(plain):
    from playwright.sync_api import expect

    with opened(plain) as found:
        page = found.page
        count = page.locator("#count")
        assert count.inner_text() == "3 of 3 prompts"
        page.fill("#query", "river 2")
        assert count.inner_text() == "1 of 3 prompts"
        page.fill("#query", "")
        page.select_option("#category", "Rivers")
        assert count.inner_text() == "2 of 3 prompts"
        page.select_option("#part", "iteration-1")
        page.select_option("#mark", "flipped")
        assert count.inner_text() == "3 of 3 prompts"
        page.locator("#list a").first.focus()
        page.keyboard.press("j")
        expect(page.locator("#prompt .text").first).to_have_text("Name river 2.")
        assert page.url.endswith("#prompt/iteration-1/train-1-1")
        page.keyboard.press("k")
        expect(page.locator("#prompt .text").first).to_have_text("Name river 1.")
        assert page.locator("details.thought").first.evaluate("each => each.open")
        page.keyboard.press("t")
        assert not page.locator("details.thought").first.evaluate("each => each.open")
        assert page.locator(".card.chosen").count() == 1 and page.locator(".card.rejected").count() == 1
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "query"
        page.goto(plain.as_uri() + "#prompt/validation/validation-2")
        expect(page.locator("#prompt .text").first).to_have_text("Name river 3.")
        assert page.locator(".card").count() == 6  # three models of two arms
        assert found.console == []


def test_samples_beside_the_page_are_read_and_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "INLINE_BYTES", 0)
    monkeypatch.setattr(report, "PAGE_BYTES", 1)
    path = write_report(written_run(tmp_path / "run", PLAIN, iterations=1))
    (tmp_path / "run" / "report-data" / "0001.js").unlink()
    with opened(path) as found:
        found.page.wait_for_selector("#prompt .card")
        assert all(url.startswith(path.parent.as_uri()) for url in found.requests) and found.console == []
        found.page.locator("#next").click()
        found.page.wait_for_selector("#prompt .problem")
        assert "which is not beside this file" in found.page.locator("#prompt").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_and_no_width_scrolls_sideways(plain, scheme):
    from axe_playwright_python.sync_playwright import Axe

    with opened(plain, scheme=scheme) as found:
        for width in (360, 820, 1400):
            found.page.set_viewport_size({"width": width, "height": 900})
            assert found.page.evaluate("document.documentElement.scrollWidth") <= width
            for part in ("validation", "iteration-0"):
                found.page.select_option("#part", part)
                found.page.wait_for_selector("#prompt .card")
                axe = Axe().run(found.page)
                assert axe.violations_count == 0, axe.generate_report()
        assert found.console == []
