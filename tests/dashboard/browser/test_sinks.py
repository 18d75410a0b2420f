"""The sinks page in a real browser: keys move the slider, a click opens the head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import settle

pytestmark = pytest.mark.browser

MAP = ".st-key-sinks-map .js-plotly-plot"
_DRAWN = "([chart, text]) => document.querySelector(chart)?.textContent.includes(text)"


def wait_for_text(page: Any, chart: str, text: str) -> None:
    page.wait_for_function(_DRAWN, arg=[chart, text])


def test_the_slider_is_moved_by_keys_and_stands_in_the_address(visit: Callable[..., Any]) -> None:
    page = visit("sinks?run=vlm&tower=vision&eps=0.5")
    wait_for_text(page, MAP, "any,eps=0.5")
    page.locator(".st-key-eps").get_by_role("slider").focus()
    page.keyboard.press("ArrowLeft")
    wait_for_text(page, MAP, "any,eps=0.3")
    settle(page)
    page.keyboard.press("ArrowLeft")
    wait_for_text(page, MAP, "any,eps=0.2")
    assert "eps=0.2" in page.url
    page.reload()
    settle(page)
    wait_for_text(page, MAP, "any,eps=0.2")
    scale = page.eval_on_selector(MAP, "chart => [chart.data[0].zmin, chart.data[0].zmax]")
    assert scale == [0, 1]


def test_a_cell_opens_its_head_and_back_returns(visit: Callable[..., Any]) -> None:
    page = visit("sinks?run=vlm&tower=language")
    wait_for_text(page, MAP, "sink rate")
    area = page.locator(f"{MAP} .nsewdrag").first.bounding_box()
    page.mouse.click(area["x"] + area["width"] * 2.5 / 8, area["y"] + area["height"] * 1.5 / 4)
    page.wait_for_url("**/head?**head=language.L1H2**")
    page.go_back()
    settle(page)
    wait_for_text(page, MAP, "sink rate")


def test_artefacts_lie_on_the_picture(visit: Callable[..., Any], vlm_run: Path) -> None:
    page = visit("sinks?run=vlm&tower=vision", size=(1024, 768))
    chart = ".st-key-sinks-picture-0 .js-plotly-plot"
    page.wait_for_selector(f"{chart} .imagelayer image", state="attached")
    source = page.get_attribute(f"{chart} .imagelayer image", "href")
    assert source.startswith("data:image/png")
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 1024
