"""Folders of coders as other tools lay them out, and what those tools compute from them.

Written by hand from the tools' documentation: names, axes, formulas in plain loops of rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae.coders.coder import Coder
from sae.coders.registry import CODERS

WIDTH, LATENTS, HEADS, HEAD_WIDTH = 6, 11, 3, 2
ABOUT: dict[str, Any] = {
    "site": "language.L2",
    "heads": HEADS,
    "head_width": HEAD_WIDTH,
    "subject": {"name": "größer", "fingerprint": "ab"},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "standard": {"sparsity": 0.25, "form": "april"},
    "gated": {"sparsity": 0.25},
    "topk": {"k": 3},
    "batch_topk": {"k": 3},
    "matryoshka": {"k": 3, "group_shares": [0.25, 0.75]},
    "jump_relu": {"sparsity": 0.5, "target": 2.0, "bandwidth": 0.25},
}


def drawn(*shape: int, seed: int, size: float = 1.0) -> Tensor:
    """Numbers that depend on the seed alone."""
    return size * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows(count: int = 29) -> Tensor:
    """Rows around a point that is not 0."""
    return 1.5 * drawn(count, WIDTH, seed=99) + 0.2


def random_coder(kind: str, *, centred: bool = True, about: Mapping[str, Any] = ABOUT) -> Coder:
    """A coder none of whose parameters is at its start; decoder rows have all lengths."""
    coder = CODERS[kind](WIDTH, LATENTS, centred=centred, **OPTIONS[kind])
    with torch.no_grad():
        for seed, (name, value) in enumerate(coder.named_parameters()):
            value.copy_(drawn(*value.shape, seed=seed, size=0.6))
            if name == "threshold":
                value.abs_()
        if kind in ("batch_topk", "matryoshka"):
            coder.threshold.fill_(0.35)  # type: ignore[operator, union-attr]
    coder.about = dict(about)
    return coder.eval().requires_grad_(False)


def write_folder(
    folder: Path, config: tuple[str, Mapping[str, Any]], weights: str, tensors: Mapping[str, Tensor]
) -> Path:
    """A JSON file and a file of tensors, which is a pickle where it is called so."""
    folder.mkdir(parents=True, exist_ok=True)
    name, entries = config
    (folder / name).write_text(json.dumps(entries))
    if weights.endswith(".pt"):
        torch.save(dict(tensors), folder / weights)
    else:
        plain = {name: value.contiguous().clone() for name, value in tensors.items()}
        save_file(plain, folder / weights)
    return folder


def reconstructed(
    x: Tensor,
    encoder: Tensor,
    encoder_bias: Tensor,
    decoder: Tensor,
    decoder_bias: Tensor,
    *,
    centred: bool,
    k: int | None = None,
    threshold: Tensor | float = 0.0,
) -> Tensor:
    """Row by row, latent by latent; matrices ``[latent width]``, of either float type."""
    made = []
    for row in x.double():
        seen = row - decoder_bias.double() if centred else row
        pre = [float(seen @ e.double() + b) for e, b in zip(encoder, encoder_bias, strict=True)]
        least = sorted(pre)[-k] if k else -float("inf")
        limits = torch.as_tensor(threshold, dtype=torch.float64).expand(len(pre))
        out = decoder_bias.double().clone()
        for strength, direction, limit in zip(pre, decoder, limits, strict=True):
            if strength >= least and strength > max(float(limit), 0.0):
                out += strength * direction.double()
        made.append(out)
    return torch.stack(made)
