"""Environments of the peers, each its own: made once, found again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"
PEERS = {"sparsify": "eai-sparsify==1.3.3", "saelens": "sae-lens==6.54.12"}


def environment(folder: Path, peer: str) -> Path:
    """The interpreter of a peer's environment below ``folder``, made where it is not there yet.

    Raises:
        RuntimeError: it could not be installed; with the last line of what pip said.
    """
    place = folder / peer
    python = place / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    done = place / ".installed"
    wanted = f"{TORCH}\n{PEERS[peer]}\n"
    if done.exists() and done.read_text() == wanted:
        return python
    _run([sys.executable, "-m", "venv", str(place)])
    _run([str(python), "-m", "pip", "install", "-q", TORCH, PEERS[peer]])
    done.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RuntimeError(said[-1] if said else f"exit code {done.returncode}")
