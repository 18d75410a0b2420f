"""Run a script of this folder in a process of its own and read back the JSON that it wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def run_child(
    script: str, settings: dict[str, Any], *, python: str | Path = sys.executable, limit: int = 1800
) -> Any:
    """What ``script`` writes for these settings; ``{"failed": why}`` where it could not.

    The child finds this checkout before anything that is installed, and no network.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)]),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figure.json"
        command = [str(python), str(HERE / script), json.dumps(settings), str(out)]
        try:
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=limit
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"took longer than {limit} s"}
        if done.returncode or not out.exists():
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            return {"failed": said[-1]}
        return json.loads(out.read_text())
