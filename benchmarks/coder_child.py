"""One contender in a process of its own: steps on demand, or a whole training.

python coder_child.py SETTINGS [OUT]
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from coder_data import explained_variance, read_rows
from coder_gate import Gate, Over


def contender(asked: dict[str, Any]) -> Any:
    """The module that trains as this contender does."""
    torch.set_num_threads(asked["threads"])
    torch.manual_seed(0)
    return importlib.import_module(f"coder_{asked['contender']}")


def whole(asked: dict[str, Any]) -> dict[str, Any]:
    """Explained variance of held-out rows after a training, and how fast all of it was."""
    module = contender(asked)
    rows, held_out = (read_rows(asked["file"], name) for name in ("rows", "held_out"))
    start = time.perf_counter()
    found = module.whole(asked, rows, held_out)
    seconds = time.perf_counter() - start
    return {
        "explained_variance": explained_variance(held_out, found["reconstruction"]),
        "seconds": seconds,
        "tokens": asked["tokens"] // asked["batch"] * asked["batch"],
        "dead": found["dead"],
        "versions": {name: version(name) for name in module.VERSIONS},
    }


def main() -> None:
    asked = json.loads(sys.argv[1])
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(whole(asked)))
        return
    gate = Gate.of_process()
    module = contender(asked)
    try:
        module.steps(asked, read_rows(asked["file"]), gate)
    except Over:
        return


if __name__ == "__main__":
    main()
