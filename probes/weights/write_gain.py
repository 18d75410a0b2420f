"""What happens between an output projection and the residual stream: gains, a norm, or nothing."""

from __future__ import annotations

import torch
from torch import nn

from probes.weights.linear_runs import Write
from probes.weights.norm_gain import NormGain, norm_gain

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_HALF_TOLERANCE = 5e-2


def write_gain(model: nn.Module, write: Write) -> NormGain | str:
    """Gains per channel of what a layer adds to the stream, or why they are not known.

    LayerScale and constant multipliers are gains; a norm after the projection (Gemma 2, OLMo 2)
    has gains too, and a scale, which depends on the token and is left out.
    """
    output = write.run.product
    width = output.shape[-1]
    if write.factor is not None and not write.norm:
        gain = torch.full((width,), write.factor, device=output.device)
        return NormGain("", gain)
    limit = _TOLERANCE.get(output.dtype, _HALF_TOLERANCE)
    name = write.run.source.path or "the output projection"
    if write.norm:
        module = model.get_submodule(write.norm)
        found = norm_gain(module, write.norm, width)
        if found is None:
            return f"What {name} gives passes {write.norm}, a norm of an unknown form."
        expected = module.forward(output)
    else:
        if write.added.shape != output.shape:
            return f"What {name} gives was not followed to the residual stream."
        rows, added = (t.reshape(-1, width).double() for t in (output, write.added))
        gain = (rows * added).sum(0) / rows.square().sum(0).clamp_min(1e-30)
        found = NormGain("", gain.float())
        expected = output * gain.to(output.dtype)
    if expected.shape != write.added.shape:
        return f"What {name} gives was not followed to the residual stream."
    apart = (expected.double() - write.added.double()).abs().amax()
    if float(apart) > limit * float(write.added.abs().amax().clamp_min(1e-12)):
        return (
            f"What {name} gives is changed, and not channel by channel, before it is added to the "
            "residual stream."
        )
    return found
