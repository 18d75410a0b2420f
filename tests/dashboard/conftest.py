"""A small run with everything in it, made once for all test processes, and the app on it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

STUDIES = {
    "shapes-llava": ("scenes-broken", "all,importance,atp,vhd,sinks"),
    "repeat-lm": ("repeats", "all,importance"),
    "shapes-llava-sinks": ("scenes", "sink_rate,sinks"),
}
_EXAMPLES = "6"
ATLAS = "atlas"
_ATLAS_OF = "repeat-lm --limit 24 --samples 384 --side 16 --clusters 6"


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a finished run of a bundled model; only to be read."""
    # One folder above that of this process: all processes of a test run share it.
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str) -> Path:
        folder = shared / "dashboard-runs" / name
        folder.parent.mkdir(exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "manifest.json").exists():
                subprocess.run(
                    [sys.executable, "-m", "headscope", *_command(name), "--out", str(folder)],
                    check=True,
                    capture_output=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
        return folder

    return made


def _command(name: str) -> list[str]:
    if name == ATLAS:
        return f"atlas {_ATLAS_OF} --measures entropy".split()
    data, measures = STUDIES[name]
    command = ["score", name, "--data", data, "--limit", _EXAMPLES]
    return [*command, "--measures", measures, "--batch-size", "2"]


@pytest.fixture(scope="session")
def vlm_run(run_of: Callable[[str], Path]) -> Path:
    """A run of the bundled LVLM with every study."""
    return run_of("shapes-llava")


@pytest.fixture(scope="session")
def lm_run(run_of: Callable[[str], Path]) -> Path:
    """A run of the bundled induction LM."""
    return run_of("repeat-lm")


@pytest.fixture(scope="session")
def atlas_run(run_of: Callable[[str], Path]) -> Path:
    """A run of the bundled induction LM with a small pattern atlas, and nothing else."""
    return run_of(ATLAS)


def _script(places: list[str], page: str) -> None:
    from dashboard.frame import draw_page
    from dashboard.page import all_pages

    # The link to this page is drawn; following one needs a browser.
    pages = {"features": "features"}
    draw_page(next(one for one in all_pages() if one.name == page), tuple(places), pages)


@pytest.fixture
def app() -> Callable[..., Any]:
    """`app(page, run, head="language.L1H0")`: an AppTest of one page, run once, no exception in it.

    Names and values are those of the address.
    """
    from streamlit.testing.v1 import AppTest

    def opened(page: str, *places: Path, **address: str) -> Any:
        test = AppTest.from_function(
            _script, kwargs={"places": [str(p) for p in places], "page": page}, default_timeout=60
        )
        for name, value in address.items():
            test.query_params[name] = value
        test.run()
        assert not test.exception, test.exception
        return test

    return opened
