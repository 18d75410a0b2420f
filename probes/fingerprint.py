"""Tell one set of weights from another that has the same name and shapes."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor, nn

_SAMPLED = 64


def fingerprint(model: nn.Module) -> str:
    """Sixteen hex digits: of every parameter name, type, shape, and 64 values spread over it.

    The same wherever the model lies. Training changes it; a single number changed by hand may not.

    >>> layer = nn.Linear(2, 3)
    >>> before = fingerprint(layer)
    >>> _ = layer.weight.data.add_(0.5)
    >>> before == fingerprint(layer)
    False
    """
    total = blake2b(digest_size=8)
    for name, parameter in model.named_parameters():
        total.update(f"{name}\0{parameter.dtype}\0{tuple(parameter.shape)}\n".encode())
        values = parameter.detach()
        if values.is_meta or not values.numel() or type(values) is not Tensor:
            continue  # not in memory, or packed in a layout of a quantiser's own
        flat = values.reshape(-1)
        step = max(1, flat.numel() // _SAMPLED)
        sample = flat[::step][:_SAMPLED].cpu().contiguous()
        total.update(sample.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
