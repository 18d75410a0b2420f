"""How long `headscope --help` and the help of every verb take, each in a process of its own.

Run alone it prints a list: `python benchmarks/help_time.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import quartiles


def verbs() -> list[list[str]]:
    """Every verb as words, groups with theirs: ``[], ["score"], ["sae", "train"] ...``"""
    import typer

    from headscope.cli import app

    found: list[list[str]] = []

    def walk(command: Any, words: list[str]) -> None:
        found.append(words)
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, [*words, name])

    walk(typer.main.get_command(app), [])
    return found


def measure(repeats: int = 9, only: int | None = None) -> list[dict[str, Any]]:
    """Wall seconds of each help, ``repeats`` times; the first start warms the disk and is not kept.

    Args:
        only: the first so many verbs.
    """
    found = []
    for words in verbs()[:only]:
        command = [sys.executable, "-m", "headscope", *words, "--help"]
        seconds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds.append(time.perf_counter() - start)
        found.append({"command": " ".join(["headscope", *words, "--help"]), "seconds": seconds[1:]})
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        settings, out = sys.argv[1:]
        Path(out).write_text(json.dumps(measure(**json.loads(settings))))
    else:
        for entry in measure():
            low, middle, high = quartiles(entry["seconds"])
            print(f"{middle:.3f} s ({low:.3f} to {high:.3f})  {entry['command']}")
