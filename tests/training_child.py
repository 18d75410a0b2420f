"""A training in a process of its own, which can be made to die anywhere."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the first optimiser loads: once for all children

from sae.activations import TensorActivations
from sae.training import Notice, Record, TrainConfig, train_sites

CONFIG = TrainConfig(
    latents=60,
    k=2,
    tokens=1_920,
    batch_size=32,
    buffer_rows=150,
    learning_rate=0.01,
    dead_after=100,
    log_every=1,
    checkpoint_every=7,
)
STEPS = 60


def source() -> TensorActivations:
    """Two sites with rows of different widths and numbers."""
    generator = torch.Generator().manual_seed(11)
    rows = {"language.L0": (700, 7), "vision.L1": (430, 5)}
    sites = {s: 3 * torch.randn(*shape, generator=generator) + 1 for s, shape in rows.items()}
    return TensorActivations(sites, chunk_rows=64)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dies_in_checkpoint(where: str, number: int) -> None:
    import sae.training.checkpoint as checkpoint

    written = 0
    write_tensors, write_json = checkpoint.write_tensors, checkpoint.write_json

    def tensors(path: Path, *parts: Any) -> None:
        nonlocal written
        shared = path.name == "shared.safetensors"
        written += shared
        write_tensors(path, *parts)
        if where == "tensors" and shared and written == number:
            # As a system without atomic renames would leave it, at worst.
            os.truncate(path, path.stat().st_size // 2)
            _die()

    def whole(path: Path, value: Any) -> None:
        if where == "whole" and written == number:
            _die()
        write_json(path, value)

    def drop(path: Path) -> None:
        if where == "drop" and written >= number:
            next(path.iterdir()).unlink()
            _die()
        rmtree(path)

    def clear(*_: Any) -> None:
        if where == "end":
            _die()

    rmtree = shutil.rmtree
    checkpoint.Checkpoints.clear = clear  # type: ignore[method-assign]
    checkpoint.write_tensors, checkpoint.write_json = tensors, whole  # type: ignore[assignment]
    checkpoint.shutil.rmtree = drop  # type: ignore[assignment]


def run(folder: str, resume: bool = False, die: str = "") -> None:
    """Train into a folder.

    Args:
        die: a step at which the process is killed; or ``ctrl-c:N``, a step at which Ctrl-C is
            pressed; or ``tensors:N``, ``whole:N``, ``drop:N``: in the N-th checkpoint, with half of
            its tensors written, before it counts, or after the first file of an older one was
            taken away; or ``end:1``: after the manifest.
    """
    torch.set_num_threads(1)
    where, _, number = die.rpartition(":")
    if where not in ("", "ctrl-c"):
        _dies_in_checkpoint(where, int(number))

    def hear(news: Record | Notice) -> None:
        if isinstance(news, Record) and where in ("", "ctrl-c") and str(news.step) == number:
            os.kill(os.getpid(), signal.SIGINT if where else signal.SIGKILL)

    train_sites(CONFIG, source(), out=folder, resume=resume, listener=hear)
