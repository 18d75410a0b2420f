"""What a training tells while it runs: lines of `metrics.jsonl` and the same to a listener."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Record:
    """One site at one step.

    Attributes:
        site: such as ``language.L2``.
        step: optimiser steps this site has taken, this one included.
        steps: how many it will take.
        tokens: rows it was trained on so far.
        loss: what was minimised, on this batch, of rows divided by their scale.
        parts: each part of it by name.
        l0: mean number of active latents per row of this batch.
        explained_variance: at most 1; of this batch, 1 - squared error / variance over rows; None
            where rows do not vary.
        dead: how many latents are dead.
        lr: learning rate of this step.
        seconds: time this training has taken so far, of all sites, that of earlier runs included.
    """

    site: str
    step: int
    steps: int
    tokens: int
    loss: float
    parts: Mapping[str, float]
    l0: float
    explained_variance: float | None
    dead: int
    lr: float
    seconds: float


@dataclass(frozen=True)
class Notice:
    """A sentence for whoever watches the training."""

    text: str


Listener = Callable[[Record | Notice], None]
"""Called with every line that is logged, and with what is worth knowing besides."""


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, only ever added to.

    A checkpoint remembers how long the file was. Going on from it cuts off what was logged later,
    because those steps are taken again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, record: Record) -> None:
        """Add a line; it is in the file at the latest with the next checkpoint."""
        line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def length(self) -> int:
        """Bytes that surely lie on the disk."""
        if not self.path.exists():
            return 0
        with self.path.open("rb+") as file:
            os.fsync(file.fileno())
        return self.path.stat().st_size

    def cut(self, length: int) -> None:
        """Drop what was added after the file had this length.

        Raises:
            ValueError: the file is shorter.
        """
        there = self.path.stat().st_size if self.path.exists() else 0
        if there < length:
            raise ValueError(
                f"{self.path} must hold the {length:,} bytes of the checkpoint, it has {there:,}. "
                "Put the file back, or train again into another folder."
            )
        if there > length:
            os.truncate(self.path, length)


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a training's metrics, first to last, also while it runs.

    A line that is being written just now is left out.

    Raises:
        FileNotFoundError: the folder has none.
    """
    text = (Path(folder) / METRICS).read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]
