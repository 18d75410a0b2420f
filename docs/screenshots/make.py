"""Pictures of every page of the app: `make screenshots` (needs Chromium; minutes).

    python docs/screenshots/make.py [FOLDER OF RUNS]

Without a folder the bundled describer is scored first. Each page is pictured light and dark, 1440
and 1024 wide, as NAME-light-1440.png and so on.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
WIDTHS = {1440: 900, 1024: 768}
VIEWS = {
    "overview": "?run=shapes-llava&tower=language&measure=vhd",
    "head": "head?run=shapes-llava&head=language.L2H3",
    "vision": "vision?run=shapes-llava",
    "sinks": "sinks?run=shapes-llava",
    "importance": "importance?run=shapes-llava",
    "atlas": "atlas?run=shapes-llava",
    "features": "features",
    "compare": "compare?run=shapes-llava",
    "live": "live?model=shapes-llava",
}
_MEASURES = "all,importance,atp,vhd,sinks,atlas"
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_SETTLED = """() => !document.querySelector("[data-test-script-state=running]")
    && !document.querySelector("[data-testid=stSkeleton]")"""


def make_runs(folder: Path) -> None:
    """A run of the bundled describer with every study, and an evaluation of an edit."""
    headscope = [sys.executable, "-m", "headscope"]
    score = ["score", "shapes-llava", "--data", "scenes-broken", "--limit", "64"]
    out = ["--out", str(folder / "shapes-llava")]
    subprocess.run([*headscope, *score, "--measures", _MEASURES, *out], check=True)
    asked = ["evaluate", "shapes-llava", "--task", "chair", "--limit", "48", "--edit"]
    subprocess.run([*headscope, *asked, "vhr:alpha=2", "--out", str(folder / "vhr")], check=True)


@contextmanager
def served(runs: Path) -> Iterator[str]:
    """The address of the app on a folder of runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "headscope", "app", str(runs), "--no-browser"]
    server = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL)
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health"):
                    break
            except OSError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def picture(browser: Any, address: str, name: str, dark: bool, width: int) -> None:
    """One page in one look, whole."""
    scheme = "dark" if dark else "light"
    size: Any = {"width": width, "height": WIDTHS[width]}
    page = browser.new_page(viewport=size, color_scheme=scheme)
    page.goto(address)
    page.wait_for_selector('[data-testid="stMainBlockContainer"]')
    page.wait_for_timeout(1000)
    page.wait_for_function(_SETTLED, timeout=120_000)
    page.wait_for_timeout(1500)
    # The page scrolls inside of a part of itself; a window as high as that shows all of it.
    height = page.evaluate("document.querySelector('[data-testid=\"stMain\"]').scrollHeight")
    page.set_viewport_size({"width": width, "height": min(max(int(height), WIDTHS[width]), 4000)})
    page.wait_for_timeout(1500)
    page.screenshot(path=HERE / f"{name}-{scheme}-{width}.png")
    page.close()


def main() -> None:
    from playwright.sync_api import sync_playwright

    from dashboard.page import all_pages

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("No Chromium is installed; `apt-get install chromium` gives one.")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder)
        if len(sys.argv) < 2:
            make_runs(runs)
        there = {page.name for page in all_pages()}
        with served(runs) as address, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=_FLAGS)
            for name in VIEWS.keys() & there:
                for dark in (False, True):
                    for width in WIDTHS:
                        picture(browser, f"{address}/{VIEWS[name]}", name, dark, width)
            browser.close()


if __name__ == "__main__":
    main()
