"""Vision in a real browser: a word, a head, and the address that brings both back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.browser

_TITLES = "[...document.querySelectorAll('.js-plotly-plot .gtitle')].map(each => each.textContent)"


def _shown(page: Any, text: str) -> None:
    page.wait_for_function(f"text => {_TITLES}.some(each => each.includes(text))", arg=text)


def test_a_word_changes_map_and_patches_and_stays_on_reload(visit: Callable[..., Any]) -> None:
    page = visit("vision?run=vlm")
    words = page.locator("button.word")
    words.first.wait_for()
    texts = words.all_inner_texts()
    words.nth(3).click()
    _shown(page, f"VHD at »{texts[3]}«")
    _shown(page, f"looks for »{texts[3]}«")
    assert "word=3" in page.url
    assert words.nth(3).get_attribute("aria-pressed") == "true"
    # The keyboard goes on from there.
    words.nth(3).focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    _shown(page, f"VHD at »{texts[4]}«")
    page.reload()
    _shown(page, f"VHD at »{texts[4]}«")
    words.first.wait_for()
    assert words.nth(4).get_attribute("aria-pressed") == "true"


def test_a_head_of_the_map_shows_its_patches_and_opens(visit: Callable[..., Any]) -> None:
    page = visit("vision?run=vlm&word=2")
    _shown(page, "VHD at")
    squares = page.locator(".st-key-vision-word-vhd .scatterlayer .point")
    squares.first.wait_for()
    box = squares.first.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    _shown(page, "Where language.L0H0 looks")
    assert "head=language.L0H0" in page.url
    page.get_by_role("button", name="Strongest head of each word").click()
    page.wait_for_function("() => !location.search.includes('head=')")
    page.get_by_role("button", name="Open language.").click()
    page.wait_for_url("**/head?**")
    assert "head=language." in page.url


def test_wrong_words_are_underlined_and_text_is_only_text(visit: Callable[..., Any]) -> None:
    page = visit("vision?run=vlm", dark=True, size=(1024, 768))
    page.locator("button.word").first.wait_for()
    wrong = page.locator("button.word.wrong")
    assert wrong.count() >= 1
    assert "not there" in wrong.first.get_attribute("aria-label")
