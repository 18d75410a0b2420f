"""TopK coders: by hand, gradients, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from small_coders import LATENTS, assert_gradients, small_coder, small_rows

from sae.coders.coder import Moment
from sae.coders.topk import TopK

DEAD = torch.tensor([i in (1, 4, 6, 12) for i in range(LATENTS)])


def test_strengths_and_the_loss_by_hand() -> None:
    coder = TopK(3, 3, k=2, centred=False)
    with torch.no_grad():
        coder.encoder.copy_(torch.eye(3))
        coder.decoder.copy_(torch.eye(3))
        coder.decoder_bias.copy_(torch.tensor([0.0, 0.5, 0.0]))
    x = torch.tensor([[3.0, 1.0, 2.0], [-1.0, -4.0, 5.0]])
    strengths = torch.tensor([[3.0, 0.0, 2.0], [0.0, 0.0, 5.0]])
    assert torch.equal(coder.encode(x), strengths)
    codes = coder.codes(x)
    assert codes.values.tolist() == [[3.0, 2.0], [5.0, 0.0]]
    assert codes.indices.tolist() == [[0, 2], [2, 0]]
    for fast in (False, True):
        losses = coder.losses(x, Moment(fast=fast))
        error = (0.5**2 + 1**2 + 4.5**2) / 2
        assert losses.total.item() == pytest.approx(error)
        assert losses.fired.tolist() == [1, 0, 2]


@pytest.mark.parametrize("fast", [False, True])
def test_gradients_are_differences(fast: bool) -> None:
    """With the error, and its spread, held where AuxK explains it."""
    coder = small_coder("topk")
    x = small_rows()
    losses = coder.losses(x, Moment(dead=DEAD, fast=fast))
    left = x - losses.reconstruction
    spread = (left - left.mean(0)).pow(2).sum() / len(x)

    def slowly() -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        for row, wanted in zip(x, left, strict=True):
            pre = [
                ((row - coder.decoder_bias) @ coder.encoder[i] + coder.encoder_bias[i]).item()
                for i in range(coder.latents)
            ]
            strongest = sorted(range(coder.latents), key=lambda i: -pre[i])
            made = coder.decoder_bias.clone()
            for i in strongest[:3]:
                made += max(pre[i], 0.0) * coder.decoder[i]
            explained = torch.zeros_like(wanted)
            # An eighth of four dead latents is less than one: one it is.
            for i in [i for i in strongest if DEAD[i]][:1]:
                explained += pre[i] * coder.decoder[i]
            loss += (row - made).pow(2).sum() + 0.7 * (wanted - explained).pow(2).sum() / spread
        return loss / len(x)

    with torch.no_grad():
        assert torch.allclose(losses.total, slowly())
        assert_gradients(coder, losses.total, slowly)


def test_k_must_fit_the_dictionary() -> None:
    for k in (0, 14):
        with pytest.raises(ValueError, match=f"`k` must be between 1 and .* 13, got {k}"):
            TopK(5, 13, k=k)


def test_without_a_weight_or_dead_latents_there_is_no_auxiliary_part() -> None:
    x = small_rows()
    assert small_coder("topk", auxiliary=0.0).losses(x, Moment(dead=DEAD)).parts["auxiliary"] == 0
    nobody = torch.zeros(LATENTS, dtype=torch.bool)
    for dead in (None, nobody):
        assert small_coder("topk").losses(x, Moment(dead=dead)).parts["auxiliary"] == 0


def test_other_units_of_strengths_are_refused() -> None:
    coder = small_coder("topk")
    with pytest.raises(ValueError, match="Strengths of a topk coder must keep their units"):
        coder.scale_strengths(torch.linspace(1, 2, LATENTS))
