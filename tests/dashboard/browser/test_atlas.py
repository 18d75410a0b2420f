"""The atlas in a real browser: pointing shows a pattern, a lasso lists heads, a head is opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browsing import served

from analysis.atlas.atlas_files import read_frame

pytestmark = pytest.mark.browser

_MAP = ".st-key-atlas-map .js-plotly-plot"
_ROW = ".st-key-atlas-heads ol li button"


@pytest.fixture(scope="module")
def atlas_server(atlas_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("atlas-app")
    shutil.copytree(atlas_run, place / "mine")
    with served(place) as address:
        yield address


def asked(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


def on_map(page: Any, x: float, y: float) -> tuple[float, float]:
    """Where a point of the map lies in the window."""
    return page.evaluate(
        """([map, x, y]) => {
            const chart = document.querySelector(map), { xaxis, yaxis } = chart._fullLayout;
            const box = chart.getBoundingClientRect();
            return [box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(y)];
        }""",
        [_MAP, x, y],
    )


def test_pointing_lasso_heads_and_back_by_its_address(
    visit: Callable[..., Any], atlas_server: str, atlas_run: Path
) -> None:
    points = read_frame(atlas_run / "atlas", "points")
    page = visit("atlas?colour=layer", base=atlas_server)
    page.wait_for_selector(f"{_MAP} .gl-canvas")
    shown = page.locator(".st-key-atlas-pattern canvas")
    page.wait_for_selector(".st-key-atlas-pattern canvas[data-sample]")
    from playwright.sync_api import expect

    # The point that is farthest from the one that is shown.
    first = points.iloc[int(shown.get_attribute("data-sample"))]
    far = ((points["x"] - first.x) ** 2 + (points["y"] - first.y) ** 2).idxmax()
    target = points.loc[far]
    x, y = on_map(page, target.x, target.y)
    page.mouse.move(x - 3, y)
    page.mouse.move(x, y)
    expect(shown).not_to_have_attribute("data-sample", str(first["sample"]), timeout=30_000)
    near = points[points["sample"] == int(shown.get_attribute("data-sample"))].iloc[0]
    assert abs(near.x - target.x) < 1 and abs(near.y - target.y) < 1

    corners = [
        on_map(page, points["x"].min() - 1, points["y"].median()),
        on_map(page, points["x"].min() - 1, points["y"].max() + 1),
        on_map(page, points["x"].max() + 1, points["y"].max() + 1),
        on_map(page, points["x"].max() + 1, points["y"].median()),
    ]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in [*corners[1:], corners[0]]:
        page.mouse.move(*corner, steps=4)
    page.mouse.up()
    page.wait_for_selector(_ROW)
    counted = page.get_by_text("a bar is the share").inner_text()
    half = int(counted.split(" patterns")[0])
    assert abs(half - (points["y"] > points["y"].median()).sum()) <= 4
    listed = page.locator(_ROW).all_inner_texts()
    assert sum(int(row.split("\n")[-1].split(" of ")[0]) for row in listed) == half
    assert asked(page)["colour"] == ["layer"] and "lasso" in asked(page)

    page.reload()
    page.wait_for_selector(_ROW)
    assert page.locator(_ROW).all_inner_texts() == listed
    assert page.locator(f"{_MAP} .selectionlayer path").count()
    # Not the model's first head: what a page shows anyway does not stand in its address.
    place = next(at for at, row in enumerate(listed) if not row.startswith("language.L0H0"))
    name = listed[place].split("\n")[0]
    page.locator(_ROW).nth(place).focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/head?**")
    assert asked(page)["head"] == [name]


def test_an_address_with_a_cluster_opens_with_its_heads(
    visit: Callable[..., Any], atlas_server: str, atlas_run: Path
) -> None:
    points = read_frame(atlas_run / "atlas", "points")
    mine = points[points["cluster"] == 1]
    cluster = f"1 · {mine['name'].iloc[0]}"
    page = visit(f"atlas?cluster={cluster}&colour=measure", base=atlas_server, dark=True)
    page.wait_for_selector(_ROW)
    assert page.locator(_ROW).count() == len(mine[["layer", "head"]].drop_duplicates())
    assert page.get_by_text(f"{len(mine)} patterns of").count() == 1
