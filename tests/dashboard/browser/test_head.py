"""One head in a real browser: hovering, both ways, picking a patch, addresses that reopen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browsing import settle

from analysis.kept_patterns import kept_examples

pytestmark = pytest.mark.browser

HEAD = "language.L2H1"


def says(page: Any) -> str:
    return page.locator(".tokens .says").inner_text()


def test_hovering_a_token_shows_what_it_reads_without_a_rerun(
    visit: Callable[..., Any], vlm_run: Path
) -> None:
    page = visit(f"head?run=vlm&head={HEAD}")
    token = page.locator(".list [data-position='45']")
    token.hover()
    pattern = kept_examples(vlm_run)[0].open_patterns().head(HEAD)
    row = pattern.row(45)
    text = says(page)
    assert "at 45 reads" in text
    assert f"{row.max():.2g}" in text
    best = page.locator(f".list [data-position='{int(np.argmax(row[1:])) + 1}']")
    assert float(best.evaluate("e => e.style.getPropertyValue('--share')")) == 1
    assert "query=" not in page.url
    page.get_by_role("button", name="who reads it").click()
    page.locator(".list [data-position='3']").hover()
    readers = pattern.column(3)
    assert "at 3 is read by" in says(page)
    assert f"{readers.max():.2g}" in says(page)


def test_a_patch_is_picked_and_the_address_reopens_it(visit: Callable[..., Any]) -> None:
    page = visit(f"head?run=vlm&head={HEAD}")
    stage = page.locator(".picture .stage")
    box = stage.bounding_box()
    # Row 2, column 3 of 6 x 6 patches; <bos> and two words come before them.
    stage.click(position={"x": box["width"] * 3.5 / 6, "y": box["height"] * 2.5 / 6})
    page.wait_for_function("() => location.search.includes('query=')")
    page.mouse.move(5, 5)
    assert "patch row 2, column 3" in says(page)
    address = page.url.split("/", 3)[3]
    again = visit(address)
    assert "patch row 2, column 3" in says(again)
    asked = again.locator(".list .asked")
    assert asked.get_attribute("title") == "patch row 2, column 3"


def test_a_click_on_a_token_moves_the_frame_in_the_matrix(visit: Callable[..., Any]) -> None:
    page = visit("head?run=lm&head=language.L1H2")
    page.locator(".list [data-position='7']").click()
    page.wait_for_function("() => location.search.includes('query=7')")
    frame = "() => document.querySelector('.st-key-head-matrix .shapelayer path')"
    page.wait_for_function(frame)
    assert page.locator(".list .asked").get_attribute("data-position") == "7"


def test_the_next_head_is_one_click_or_one_key_away(visit: Callable[..., Any]) -> None:
    page = visit(f"head?run=vlm&head={HEAD}", dark=True, size=(1024, 768))
    page.get_by_role("button", name="L2H2 ▸").click()
    page.wait_for_function("() => location.search.includes('L2H2')")
    page.get_by_role("heading", name="language.L2H2").wait_for()
    settle(page)
    tokens = page.locator(".list").first
    tokens.focus()
    tokens.press("Home")
    tokens.press("ArrowRight")
    assert "at 1 reads" in says(page)
    tokens.press("Enter")
    page.wait_for_function("() => location.search.includes('query=1')")
