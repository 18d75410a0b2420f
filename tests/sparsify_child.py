"""Run by sparsify's own interpreter: it writes folders and says what it makes of rows."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig

FOLDER = Path(sys.argv[1])


def main() -> None:
    rows = load_file(FOLDER / "rows.safetensors")["z"].flatten(1)
    (FOLDER / "said").mkdir()
    generator = torch.Generator().manual_seed(5)
    for name, settings in (
        ("layers.0.attn", {"num_latents": 11}),
        ("layers.1.attn", {"expansion_factor": 2, "normalize_decoder": False, "multi_topk": True}),
    ):
        coder = SparseCoder(rows.shape[1], SparseCoderConfig(k=3, **settings))
        with torch.no_grad():
            for parameter in coder.parameters():
                parameter.copy_(0.6 * torch.randn(parameter.shape, generator=generator))
        coder.save_to_disk(FOLDER / "theirs" / name)
        read = SparseCoder.load_from_disk(FOLDER / "theirs" / name)
        found = read.encode(rows)
        made = read.decode(found.top_acts, found.top_indices)
        save_file(
            {"reconstruction": made.detach().contiguous()}, FOLDER / "said" / f"{name}.safetensors"
        )


if __name__ == "__main__":
    main()
