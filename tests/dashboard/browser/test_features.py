"""The page of features in a real browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import served, settle

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def features_server(vlm_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An app over a run and the features of a coder of the same model."""
    place = tmp_path_factory.mktemp("features-app")
    shutil.copytree(vlm_run, place / "vlm")
    command = ["sae", "features", "shapes-llava", "--data", "scenes", "--limit", "12"]
    subprocess.run(
        [sys.executable, "-m", "headscope", *command, "--latents", "150",
         "--out", str(place / "coder")],
        check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    with served(place) as address:
        yield address


def latents(page: Any) -> list[int]:
    page.wait_for_selector(".features button")
    return [int(text) for text in page.locator(".features button .latent").all_inner_texts()]


def test_sort_filter_open_and_come_back(visit: Callable[..., Any], features_server: str) -> None:
    page = visit("features?coder=coder", base=features_server)
    first = latents(page)
    page.wait_for_selector(".firings .row")
    page.get_by_label("sort by").click()
    page.get_by_role("option", name="strongest", exact=True).click()
    settle(page)
    assert latents(page) != first and "sort=strongest" in page.url
    page.get_by_label("find").fill("yellow")
    page.get_by_label("find").press("Enter")
    settle(page)
    found = latents(page)
    assert 0 < len(found) < len(first)
    lines = page.locator(".features button .said").all_inner_texts()
    assert all("yellow" in line.lower() for line in lines if "…" not in line)
    page.locator(".features button").nth(1).click()
    settle(page)
    page.get_by_text(f"Latent {found[1]} of language.L2", exact=True).wait_for()
    assert f"latent={found[1]}" in page.url
    page.wait_for_selector(".js-plotly-plot .main-svg")
    page.locator(".firings .row").nth(1).press("Enter")
    settle(page)
    assert "firing=0-1" in page.url
    again = visit(page.url.split("/", 3)[3], base=features_server)
    again.get_by_text(f"Latent {found[1]} of language.L2", exact=True).wait_for()
    again.wait_for_selector('.firings .row[aria-pressed="true"][data-name="0-1"]')


def test_a_head_of_a_feature_opens_its_page(
    visit: Callable[..., Any], features_server: str
) -> None:
    page = visit("features?coder=coder&latent=739", base=features_server)
    page.get_by_role("button", name="Open H3").click()
    page.wait_for_url("**/head?**")
    assert "head=language.L2H3" in page.url


def test_arrow_keys_go_through_the_list(visit: Callable[..., Any], features_server: str) -> None:
    page = visit("features?coder=coder", base=features_server, dark=True, size=(1024, 768))
    found = latents(page)
    page.locator(".features button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    settle(page)
    page.get_by_text(f"Latent {found[1]} of language.L2", exact=True).wait_for()
    page.get_by_text("by tenth of strength").click()
    settle(page)
    page.get_by_text("tenth 1:").wait_for()
    assert "examples=" in page.url
