"""From the map and the finder to a head, in a real browser; and two runs compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from browsing import served, settle
from drawn_runs import drawn_run

pytestmark = pytest.mark.browser
_MAP = ".st-key-overview-map .js-plotly-plot"


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an app over two small runs of the same examples."""
    place = tmp_path_factory.mktemp("two")
    scores = np.random.default_rng(3).normal(3, 1, (12, 8))
    drawn_run(place / "a", scores)
    scores[:, 6] += 2
    drawn_run(place / "b", scores)
    with served(place) as address:
        yield address


def cell(page: Any, chart: str, layer: int, head: int, trace: int = -1) -> tuple[float, float]:
    """Where a square of a chart is on the screen."""
    return page.evaluate(
        """([chart, layer, head, trace]) => {
            const plot = document.querySelector(chart), shown = plot._fullData.at(trace);
            const box = plot.getBoundingClientRect();
            const x = plot._fullLayout[shown.xaxis.replace('x', 'xaxis')];
            const y = plot._fullLayout[shown.yaxis.replace('y', 'yaxis')];
            return [box.x + x._offset + x.l2p(head), box.y + y._offset + y.l2p(layer)];
        }""",
        [chart, layer, head, trace],
    )


def test_hovering_tells_and_a_click_opens_the_head(visit: Callable[..., Any]) -> None:
    page = visit("?run=vlm&tower=language&measure=entropy")
    page.wait_for_selector(f"{_MAP} .heatmaplayer")
    page.mouse.move(*cell(page, _MAP, 2, 5))
    hover = page.wait_for_selector(f"{_MAP} .hovertext")
    assert re.match(r"language\.L2H5.* nats95 % interval .*null .*n 6", hover.text_content())
    page.mouse.click(*cell(page, _MAP, 2, 5))
    page.wait_for_url("**/head?*")
    settle(page)
    assert "head=language.L2H5" in page.url and "run=vlm" in page.url


def test_a_query_marks_heads_and_its_row_opens_one(visit: Callable[..., Any]) -> None:
    page = visit("?run=vlm&tower=language&measure=entropy")
    line = page.get_by_label("find heads")
    line.fill("entropy > 2 by entropy ascending")
    line.press("Enter")
    page.wait_for_function("location.search.includes('query=')")
    page.get_by_text(re.compile(r"of 32 heads, by entropy")).wait_for()
    settle(page)
    page.wait_for_function(
        f"document.querySelector('{_MAP}')._fullData.at(-1).marker.line.width.some(w => w > 0)"
    )
    table = page.locator(".st-key-overview-finder [data-testid='stDataFrame']")
    box = table.bounding_box()
    page.mouse.click(box["x"] + 80, box["y"] + 52)
    page.wait_for_url("**/head?*head=language.L*")


def test_an_address_reopens_the_query(visit: Callable[..., Any]) -> None:
    page = visit("?run=vlm&tower=language&query=entropy+%3E+2.6")
    assert page.get_by_label("find heads").input_value() == "entropy > 2.6"
    page.get_by_text(re.compile(r"of 32 heads, by entropy")).wait_for()


def test_what_is_wrong_in_a_query_is_a_sentence(visit: Callable[..., Any]) -> None:
    page = visit("?run=vlm&tower=language&query=entropi%20%3E%202")
    page.get_by_text("Did you mean entropy").wait_for()


def test_two_runs_are_compared_and_a_difference_opens_its_head(
    visit: Callable[..., Any], two_runs: str
) -> None:
    page = visit("compare?run=a&against=b", base=two_runs)
    chart = ".st-key-compare-maps .js-plotly-plot"
    page.wait_for_selector(f"{chart} .heatmaplayer")
    page.mouse.move(*cell(page, chart, 1, 2))
    hover = page.wait_for_selector(f"{chart} .hovertext")
    assert "difference 2.00" in hover.text_content()
    page.wait_for_selector(".st-key-compare-ranks .js-plotly-plot")
    page.mouse.click(*cell(page, chart, 1, 2))
    page.wait_for_url("**/head?*head=language.L1H2*")
