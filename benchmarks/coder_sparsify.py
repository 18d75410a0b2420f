"""sparsify's own trainer, for `coder_child.py`; runs in an environment of its own."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from coder_gate import Gate, Over
from sparsify import SparseCoderConfig, TrainConfig, Trainer
from torch import Tensor, nn

VERSIONS = ("torch", "eai-sparsify")
_SEQUENCE = 64
_NEVER = 1 << 40


class _Rows(nn.Module):
    """A model whose hidden states are the rows: token ids are row numbers."""

    def __init__(self, rows: Tensor, before: Any) -> None:
        super().__init__()
        self.site = _Lookup(rows)
        self._before = before

    @property
    def base_model(self) -> nn.Module:
        return self

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        return {"input_ids": torch.zeros(1, 2, dtype=torch.long)}

    def forward(self, input_ids: Tensor) -> Tensor:
        if input_ids.shape[0] > 1:
            self._before()
        return self.site(input_ids)


class _Lookup(nn.Module):
    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, ids: Tensor) -> Tensor:
        return self.rows[ids]


class _Ids(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Row numbers in sequences, epoch after epoch in another order."""

    def __init__(self, rows: int, tokens: int) -> None:
        self.rows, self.sequences = rows // _SEQUENCE, tokens // _SEQUENCE
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return self.sequences

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        epoch, place = divmod(index, self.rows)
        if epoch not in self._orders:
            make = torch.Generator().manual_seed(epoch)
            self._orders = {epoch: torch.randperm(self.rows * _SEQUENCE, generator=make)}
        start = place * _SEQUENCE
        return {"input_ids": self._orders[epoch][start : start + _SEQUENCE]}


def _trainer(asked: dict[str, Any], rows: Tensor, tokens: int, before: Any, folder: str) -> Trainer:
    optimiser = "signum" if asked["variant"] == "signum" else "adam"
    coder = SparseCoderConfig(num_latents=asked["latents"], k=asked["k"])
    config = TrainConfig(
        coder,
        batch_size=asked["batch"] // _SEQUENCE,
        optimizer=optimiser,
        lr=asked["learning_rate"] if optimiser == "adam" else None,
        lr_warmup_steps=round(asked["warm_up"] * (tokens // asked["batch"])),
        auxk_alpha=1 / 32,
        dead_feature_threshold=asked["dead_after"],
        hookpoints=["site"],
        log_to_wandb=False,
        save_dir=folder,
        save_every=_NEVER,
    )
    return Trainer(config, _Ids(rows.shape[0], tokens), _Rows(rows, before))


def steps(asked: dict[str, Any], rows: Tensor, gate: Gate) -> None:
    """Steps of the trainer's loop, one at each opening of the gate."""
    dead = torch.zeros(asked["latents"], dtype=torch.long)
    dead[: round(asked["dead"] * asked["latents"])] = _NEVER

    def before() -> None:
        gate.wait()
        trainer.num_tokens_since_fired["site"].copy_(dead)

    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(asked, rows, 10_000 * asked["batch"], before, folder)
        try:
            trainer.fit()
        except Over:
            return


def whole(asked: dict[str, Any], rows: Tensor, held_out: Tensor) -> dict[str, Any]:
    """A training from start to end; reconstructions of rows it never saw."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(asked, rows, asked["tokens"], lambda: None, folder)
        trainer.fit()
    coder = trainer.saes["site"]
    since = trainer.num_tokens_since_fired["site"]
    with torch.no_grad():
        parts = [coder(x).sae_out for x in held_out.split(asked["batch"])]
    return {
        "reconstruction": torch.cat(parts),
        "dead": int((since > asked["dead_after"]).sum()),
    }
