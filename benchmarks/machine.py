"""What the figures were taken on: versions, cores and memory, no names."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("torch", "transformers", "headscope")


def describe(device: str = "cpu", peers: str | Path | None = None) -> dict[str, Any]:
    """Machine class, versions and date."""
    found: dict[str, Any] = {
        "date": date.today().isoformat(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "processor": _processor(),
        "memory": _memory_gib(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in _PACKAGES},
        "peers": _peer_versions(peers) if peers else {},
    }
    if device.startswith("cuda"):
        import torch

        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _peer_versions(python: str | Path) -> dict[str, str]:
    names = ("torch", "transformers", "transformer-lens", "nnsight")
    code = (
        f"from importlib.metadata import version\nfor name in {names!r}: print(name, version(name))"
    )
    said = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return dict(line.split() for line in said.stdout.splitlines())


def _processor() -> str:
    """The processor's family and its widest vector instructions."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return platform.processor() or "unknown"
    lines = [line.partition(":") for line in path.read_text().splitlines()]
    fields = {key.strip(): value.strip() for key, _, value in lines}
    flags = fields.get("flags", "").split()
    widest = "AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else ""
    return " ".join(word for word in (fields.get("model name", ""), widest) if word)


def _memory_gib() -> int | None:
    path = Path("/proc/meminfo")
    if not path.exists():
        return None
    return round(int(path.read_text().split()[1]) / (1 << 20))
