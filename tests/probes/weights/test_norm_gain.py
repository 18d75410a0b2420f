"""Gains and centring of norms, read off their behaviour."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from probes.weights.norm_gain import norm_gain


class OnePlus(nn.Module):
    """RMSNorm whose gains are stored minus one (Gemma)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class Squashing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x * self.weight)


@pytest.mark.parametrize("width", [7, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gains_of_layer_norm_and_rms_norm(width: int, dtype: torch.dtype) -> None:
    gains = torch.linspace(-1.0, 2.0, width) + 0.1
    layer, rms = nn.LayerNorm(width), nn.RMSNorm(width, eps=1e-6)
    with torch.no_grad():
        for norm in (layer, rms):
            norm.weight.copy_(gains)
        layer.bias.copy_(torch.linspace(3.0, 5.0, width))
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.03, "atol": 0.03}
    for norm, centred in ((layer, True), (rms, False)):
        found = norm_gain(norm.to(dtype), "norm", width)
        assert found is not None and found.centred is centred
        torch.testing.assert_close(found.gain, gains.to(dtype).float(), **close)


def test_gains_stored_minus_one_are_told_by_what_the_norm_does() -> None:
    found = norm_gain(OnePlus(5), "norm", 5)
    assert found is not None and not found.centred
    torch.testing.assert_close(found.gain, torch.tensor([0.5, 1.0, 1.5, 2.0, 2.5]))


def test_what_is_no_norm_has_no_gains() -> None:
    assert norm_gain(Squashing(), "squash", 7) is None
    assert norm_gain(nn.GroupNorm(1, 3), "group", 7) is None


def test_folding_on_both_sides() -> None:
    norm = nn.LayerNorm(5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5, 3.0]))
    found = norm_gain(norm, "norm", 5)
    assert found is not None
    x, matrix = torch.randn(4, 5), torch.randn(5, 3)
    scale = (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    with torch.no_grad():
        torch.testing.assert_close(
            x @ found.fold(matrix) / scale, norm(x) @ matrix, atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(found.fold_output(x) / scale, norm(x), atol=1e-4, rtol=1e-4)
