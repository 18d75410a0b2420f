"""What a norm does to the directions of its input, apart from the scale: gains and centring."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
_HALF_TOLERANCE = 5e-2
_SEED = 7


@dataclass(frozen=True)
class NormGain:
    """A norm as ``norm(x) = (C x * gain) / scale(x) + shift``, C the identity or ``x - mean(x)``.

    Verified on random inputs: LayerNorm and RMSNorm are of this form, also with gains stored as
    ``1 + weight``.

    Attributes:
        gain: float32 ``[width]``.
        centred: whether the mean over the width is taken away first (LayerNorm).
    """

    path: str
    gain: Tensor = field(repr=False)
    centred: bool = False

    def fold(self, matrix: Tensor) -> Tensor:
        """``[..., width, out]`` that acts on the norm's input instead of its output."""
        folded = self.gain.to(matrix.device)[:, None] * matrix
        return folded - folded.mean(-2, keepdim=True) if self.centred else folded

    def fold_output(self, matrix: Tensor) -> Tensor:
        """``[..., in, width]`` with what the norm does to its output's directions."""
        centred = matrix - matrix.mean(-1, keepdim=True) if self.centred else matrix
        return centred * self.gain.to(matrix.device)


def norm_gain(module: nn.Module, path: str, width: int) -> NormGain | None:
    """The gains of a norm's module, or ``None`` where it is not of the form of `NormGain`."""
    reference = next((p for p in module.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if reference is None else reference.dtype
    device = torch.device("cpu") if reference is None else reference.device
    generator = torch.Generator().manual_seed(_SEED)
    # Three axes, as in a model: some norms count on them.
    x = torch.randn(1, 3, width, generator=generator).to(device, dtype)
    signs = _balanced_signs(width).to(device, dtype)[None]
    try:
        with torch.no_grad():
            # Odd in x but for the shift, which the difference of x and -x takes away.
            odd = (module.forward(x) - module.forward(-x)).double()[0] / 2
            patterns = (module.forward(signs) - module.forward(-signs)).double()[0] / 2
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return None  # a norm that reads more than one tensor, or another shape
    x, signs = x[0], signs[0]
    if odd.shape != x.shape:
        return None
    ratios = patterns / signs.double() * signs.double().square().mean().sqrt()
    gain = torch.where(signs[0] != 0, ratios[0], ratios[1])
    limit = _TOLERANCE.get(dtype, _HALF_TOLERANCE)
    for centred in (True, False):
        moved = x.double() - x.double().mean(-1, keepdim=True) if centred else x.double()
        expected = moved * gain
        size = odd.norm(dim=-1, keepdim=True) / expected.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        error = (expected * size - odd).abs().amax() / odd.abs().amax().clamp_min(1e-12)
        if float(error) <= limit:
            return NormGain(path, gain.float(), centred)
    return None


def _balanced_signs(width: int) -> Tensor:
    """``[2, width]`` of 1 and -1 with mean 0; where the width is odd, each row has one 0.

    The mean is 0 and all entries are alike in size, so that a norm divides all by one number.
    """
    signs = torch.ones(2, width)
    signs[:, 1::2] = -1
    if width % 2:
        signs[0, -1] = 0
        signs[1, 0] = 0
    return signs
