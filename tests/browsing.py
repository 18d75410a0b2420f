"""The app in a process of its own, and what a page in a browser is waited for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

_RUNNING = '[data-testid="stApp"][data-test-script-state="running"]'


class served:
    """`headscope app` on a folder, in a process of its own."""

    def __init__(self, *places: Path) -> None:
        self.places = places

    def __enter__(self) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "headscope", "app", *map(str, self.places)]
        self._process = subprocess.Popen(
            [*command, "--no-browser", "--port", str(port)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        address = f"http://127.0.0.1:{port}"
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health", timeout=2):
                    return address
            except OSError:
                time.sleep(0.5)
        self.__exit__()
        raise RuntimeError("The app did not start within two minutes.")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


def settle(page: Any) -> None:
    """Return when the script has run and what it draws is there."""
    page.wait_for_selector('[data-testid="stAppViewContainer"]')
    page.wait_for_timeout(300)
    page.wait_for_function("running => !document.querySelector(running)", arg=_RUNNING)
    page.wait_for_timeout(300)
