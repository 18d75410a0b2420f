"""Where in a prompt its answer's first token is predicted, with the image and without."""

from __future__ import annotations

import torch
from torch import Tensor

from probes.image_removal import Removed
from probes.inputs import Batch


def last_positions(batch: Batch) -> Tensor:
    """Long ``[batch]``: the last position of each prompt, in front of its answer if it has one."""
    ids = batch.tensors["input_ids"]
    mask = batch.tensors.get("attention_mask")
    real = torch.ones(ids.shape) if mask is None else mask.cpu()
    last = (real * torch.arange(1, ids.shape[1] + 1)).argmax(1)
    for row, start in enumerate(batch.answer_starts):
        if start > 0:
            last[row] = start - 1
    return last


def last_without(removed: Removed, last: Tensor) -> Tensor:
    """Long ``[batch]``: in the text alone, the last position that was kept up to each of ``last``.

    Where the image stands at the end of a prompt that is a token in front of it.
    """
    rows = zip(removed.kept, last.tolist(), strict=True)
    return torch.tensor([int(kept[: position + 1].max()) for kept, position in rows])
