"""One of several processes that train together, as `torchrun` would start it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what the first optimiser loads: once for all children

from sae.activations import TensorActivations
from sae.training import TrainConfig, train_sites
from sae.training.distributed import Processes, joined
from sae.training.shared_store import store_together


def config(**settings: Any) -> TrainConfig:
    """Of two sites of about 16 steps each."""
    usual = {"latents": 30, "k": 3, "tokens": 1_024, "batch_size": 32, "buffer_rows": 90}
    others = {"learning_rate": 0.01, "log_every": 1, "checkpoint_every": 4, "gradient_clip": 0.5}
    return TrainConfig(**{**usual, **others, **settings})


def source() -> TensorActivations:
    """Two sites, one with fewer rows."""
    generator = torch.Generator().manual_seed(7)
    rows = {"language.L0": (613, 7), "vision.L1": (257, 5)}
    sites = {s: 3 * torch.randn(*shape, generator=generator) + 1 for s, shape in rows.items()}
    return TensorActivations(sites, chunk_rows=40)


def run(rank: int, count: int, port: int, settings: Mapping[str, Any], out: str, to: str) -> None:
    """Train; the coders' parameters go to the file ``to`` with the rank in its name.

    Args:
        settings: what differs from `config`; ``stop`` ends the training after so many records.
    """
    torch.set_num_threads(1)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    settings = dict(settings)
    stop, resume = settings.pop("stop", None), settings.pop("resume", False)
    heard = 0

    def hear(_: object) -> None:
        nonlocal heard
        heard += 1
        if heard == stop:
            os._exit(9)

    coders = train_sites(config(**settings), source(), out=out, resume=resume, listener=hear)
    assert not torch.distributed.is_initialized()
    found = {
        f"{site}/{name}": value
        for site, coder in coders.items()
        for name, value in coder.state_dict().items()
    }
    torch.save(found, f"{to}-{rank}")


def store(rank: int, count: int, port: int, how: str, folder: str, to: str) -> None:
    """Make one store together and train from it; what was raised goes to a file as text.

    Args:
        how: ``late`` keeps the second process away for a moment, ``broken`` gives rows that are
            not finite in the third chunk, ``few`` all rows in one shard.
    """
    torch.set_num_threads(1)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(variables, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count))
    rows = source()
    if how == "broken":
        rows._tensors["language.L0"][100] = torch.nan
    shard_rows = 10_000 if how == "few" else 100
    with joined() as processes:
        if how == "late" and rank:
            time.sleep(1)
        try:
            found = store_together(rows, Path(folder), processes, shard_rows=shard_rows)
        except ValueError as error:
            Path(f"{to}-{rank}").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
            return
        coders = train_sites(config(), found)
    torch.save({name: coder.state_dict() for name, coder in coders.items()}, f"{to}-{rank}")


def sums(rank: int, count: int, port: int, to: str) -> None:
    """What `Processes` makes of numbers that differ between processes."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(variables, RANK=str(rank), WORLD_SIZE=str(count))
    with joined() as processes:
        assert processes == Processes(rank, count)
        mine = torch.tensor([1.0, 10.0]) * (rank + 1)
        averaged = [mine.clone(), torch.full((2, 3), float(rank))]
        processes.average(averaged)
        found = {
            "summed": processes.summed(mine),
            "kept": mine,
            "counts": processes.summed(torch.tensor([rank, 2])),
            "gathered": processes.gathered(mine[None]),
            "first": averaged[0],
            "second": averaged[1],
            "totals": torch.tensor(processes.totals([rank, 0.5])),
        }
        torch.save(found, f"{to}-{rank}")
