"""A server with small runs, and pages of a real browser in which nothing may go wrong."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import served, settle

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run"
).split()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The machine's own Chromium; without one tests are skipped, but fail in CI."""
    path = next((found for name in _NAMES if (found := shutil.which(name))), None)
    if path is None:
        message = "No Chromium is installed; `apt-get install chromium` gives one."
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield found
        found.close()


@pytest.fixture(scope="session")
def server(vlm_run: Path, lm_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an app over copies of both runs, `vlm` and `lm`."""
    place = tmp_path_factory.mktemp("app")
    shutil.copytree(vlm_run, place / "vlm")
    shutil.copytree(lm_run, place / "lm")
    with served(place) as address:
        yield address


@pytest.fixture
def visit(browser: Any, server: str) -> Iterator[Callable[..., Any]]:
    """`visit("head?run=vlm", dark=True)`: a settled page; errors on its console fail the test."""
    contexts, errors = [], []

    def visited(
        address: str, *, dark: bool = False, size: tuple[int, int] = (1440, 900), base: str = server
    ) -> Any:
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda said: errors.append(said.text) if _is_error(said) else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{base}/{address}")
        settle(page)
        return page

    yield visited
    for context in contexts:
        context.close()
    assert not errors, errors


def _is_error(said: Any) -> bool:
    # Below a page's address Streamlit first asks for its server there, in vain (1.67).
    return said.type == "error" and "/_stcore/" not in said.location.get("url", "")
