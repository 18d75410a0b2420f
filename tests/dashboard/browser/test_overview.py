"""The first page in a real browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.browser


def test_the_map_is_drawn_and_nothing_is_fetched_from_elsewhere(
    visit: Callable[..., Any], server: str
) -> None:
    page = visit("")
    page.wait_for_selector(".js-plotly-plot .heatmaplayer")
    asked = page.evaluate("performance.getEntriesByType('resource').map(each => each.name)")
    assert asked and all(url.startswith((server, "data:", "blob:")) for url in asked)


def test_every_picture_can_be_saved(visit: Callable[..., Any]) -> None:
    page = visit("?run=lm")
    page.wait_for_selector(".js-plotly-plot .heatmaplayer")
    found = {}
    for name in ("PNG", "HTML", "CSV"):
        with page.expect_download() as saved:
            page.get_by_role("button", name=name).first.click()
        found[name] = saved.value.path().read_bytes()
        assert saved.value.suggested_filename.endswith(f".{name.lower()}")
    assert found["PNG"].startswith(b"\x89PNG") and len(found["PNG"]) > 5_000
    assert b"<html>" in found["HTML"][:200] and b"<script src" not in found["HTML"]
    assert found["CSV"].startswith(b"tower,layer,head,measure")
