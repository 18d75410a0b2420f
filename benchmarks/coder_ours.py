"""Our training of a TopK coder, for `coder_child.py`."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import torch
from coder_gate import Gate
from torch import Tensor

from sae.training.config import TrainConfig
from sae.training.site_trainer import SiteTrainer
from sae.training.train import train

VERSIONS = ("torch", "headscope")
_NEVER = 1 << 40


def config(asked: dict[str, Any], **more: Any) -> TrainConfig:
    """The settings of all contenders, in our words."""
    return TrainConfig(
        coder="topk",
        latents=asked["latents"],
        k=asked["k"],
        batch_size=asked["batch"],
        learning_rate=asked["learning_rate"],
        warm_up=asked["warm_up"],
        decay=1 - asked["warm_up"],
        normalise="none",
        log_every=_NEVER,
        checkpoint_every=_NEVER,
        **more,
    )


def steps(asked: dict[str, Any], rows: Tensor, gate: Gate) -> None:
    """Steps of the trainer, one at each opening of the gate."""
    batches = rows.split(asked["batch"])
    dtype = "bfloat16" if asked["variant"] == "bfloat16" else "float32"
    trainer = SiteTrainer(
        "input", rows.shape[1], config(asked, tokens=10_000 * asked["batch"], dtype=dtype)
    )
    trainer.begin(batches[0], float(batches[0].norm(dim=1).mean()))
    firing = trainer.firing
    dead = torch.zeros(asked["latents"], dtype=torch.long)
    dead[: round(asked["dead"] * asked["latents"])] = _NEVER
    for batch in cycle(batches):
        gate.wait()
        # The share of dead latents stays as it is while the coder learns.
        firing.seen = _NEVER
        firing.rows_since.copy_(dead)
        trainer.step(batch)


def whole(asked: dict[str, Any], rows: Tensor, held_out: Tensor) -> dict[str, Any]:
    """A training from start to end; reconstructions of rows it never saw."""
    last: dict[str, Any] = {}

    def hear(record: Any) -> None:
        last["dead"] = getattr(record, "dead", None)

    coder = train(
        config(asked, tokens=asked["tokens"], dead_after=asked["dead_after"]), rows, listener=hear
    )
    with torch.no_grad():
        parts = [coder(x) for x in held_out.split(asked["batch"])]
    return {"reconstruction": torch.cat(parts), "dead": last.get("dead")}
