"""The importance page in a real browser: a point opens its head, an address reopens a view."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browsing import settle

from analysis.run_folder import open_run

pytestmark = pytest.mark.browser

SCATTER, JOINT = (f".st-key-importance-{name} .js-plotly-plot" for name in ("scatter", "joint"))
_HIGHEST = """chart => {
  const places = [...chart.querySelectorAll('.scatterlayer .trace .points path')]
    .map(point => point.getBoundingClientRect())
    .sort((a, b) => a.top - b.top);
  return [places[0].left + places[0].width / 2, places[0].top + places[0].height / 2];
}"""


def test_the_highest_point_opens_its_head(visit: Callable[..., Any], vlm_run: Path) -> None:
    lines = open_run(vlm_run).heads.lines("importance_cross_entropy", "language")
    most = lines.loc[lines["value"].idxmax()]
    page = visit("importance?run=vlm&tower=language")
    page.wait_for_selector(f"{SCATTER} .points path", state="attached")
    page.locator(SCATTER).scroll_into_view_if_needed()
    settle(page)
    page.mouse.click(*page.eval_on_selector(SCATTER, _HIGHEST))
    page.wait_for_url(f"**/head?**head=language.L{most['layer']}H{most['head']}**")


def test_an_address_reopens_what_sets_are_told_by(visit: Callable[..., Any]) -> None:
    page = visit("importance?run=vlm")
    page.wait_for_selector(f"{JOINT} .points path", state="attached")
    assert "loss: cross entropy" in page.text_content(JOINT)
    settle(page)
    box = page.locator(".st-key-told-by input")
    box.click()
    box.fill("accuracy")
    box.press("Enter")
    shown = "chart => document.querySelector(chart).querySelector('.ytitle').textContent"
    page.wait_for_function(f"chart => ({shown})(chart) === 'accuracy'", arg=JOINT)
    assert "told-by=accuracy" in page.url
    page.reload()
    settle(page)
    page.wait_for_function(f"chart => ({shown})(chart) === 'accuracy'", arg=JOINT)


def test_nothing_is_wider_than_a_small_screen(visit: Callable[..., Any]) -> None:
    page = visit("importance?run=lm", dark=True, size=(1024, 768))
    page.wait_for_selector(".st-key-importance-pruning .js-plotly-plot .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1024
