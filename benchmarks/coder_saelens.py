"""SAELens' own trainer, for `coder_child.py`; runs in an environment of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from coder_gate import Gate, Over
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from torch import Tensor

VERSIONS = ("torch", "sae-lens")
_NEVER = 1 << 20


def _trainer(
    asked: dict[str, Any], width: int, tokens: int, batches: Iterator[Tensor]
) -> SAETrainer[Any, Any]:
    torch.manual_seed(0)
    coder = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=width,
            d_sae=asked["latents"],
            k=asked["k"],
            use_sparse_activations=asked["variant"] == "sparse",
            dtype="float32",
            device="cpu",
        )
    )
    count = tokens // asked["batch"]
    rising = round(asked["warm_up"] * count)
    config = SAETrainerConfig(
        total_training_samples=count * asked["batch"],
        train_batch_size_samples=asked["batch"],
        lr=asked["learning_rate"],
        lr_end=0.0,
        lr_warm_up_steps=rising,
        lr_decay_steps=count - rising,
        dead_feature_window=max(asked["dead_after"] // asked["batch"], 1),
        feature_sampling_window=_NEVER,
        logger=LoggingConfig(log_to_wandb=False),
    )
    return SAETrainer(config, coder, batches)


def _batches(rows: Tensor, batch: int, before: Callable[[], None]) -> Iterator[Tensor]:
    epoch = 0
    while True:
        order = torch.randperm(rows.shape[0], generator=torch.Generator().manual_seed(epoch))
        for some in order.split(batch):
            if some.numel() == batch:
                before()
                yield rows[some]
        epoch += 1


def steps(asked: dict[str, Any], rows: Tensor, gate: Gate) -> None:
    """Steps of the trainer's loop, one at each opening of the gate."""
    dead = torch.zeros(asked["latents"])
    dead[: round(asked["dead"] * asked["latents"])] = _NEVER

    def before() -> None:
        gate.wait()
        trainer.n_forward_passes_since_fired.copy_(dead)

    batches = _batches(rows, asked["batch"], before)
    trainer = _trainer(asked, rows.shape[1], 10_000 * asked["batch"], batches)
    try:
        trainer.fit()
    except Over:
        return


def whole(asked: dict[str, Any], rows: Tensor, held_out: Tensor) -> dict[str, Any]:
    """A training from start to end; reconstructions of rows it never saw."""
    batches = _batches(rows, asked["batch"], lambda: None)
    trainer = _trainer(asked, rows.shape[1], asked["tokens"], batches)
    coder = trainer.fit()
    with torch.no_grad():
        parts = [coder(x) for x in held_out.split(asked["batch"])]
    return {"reconstruction": torch.cat(parts), "dead": int(trainer.dead_neurons.sum())}
