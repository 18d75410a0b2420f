"""Gated coders: by hand, and that the copy of the decoder is frozen."""

from __future__ import annotations

import pytest
import torch
from small_coders import assert_gradients, small_coder, small_rows

from sae.coders.coder import Moment
from sae.coders.gated import Gated


def by_hand() -> Gated:
    coder = Gated(2, 2, sparsity=0.5, centred=False)
    with torch.no_grad():
        coder.encoder.copy_(torch.eye(2))
        coder.decoder.copy_(torch.eye(2))
        coder.encoder_bias.copy_(torch.tensor([-1.0, 0.5]))
        coder.magnitude_log_scale.copy_(torch.tensor([2.0, 3.0]).log())
        coder.magnitude_bias.copy_(torch.tensor([0.25, -7.0]))
    return coder


def test_strengths_and_the_loss_by_hand() -> None:
    coder = by_hand()
    x = torch.tensor([[3.0, 2.0], [0.5, 4.0]])
    # Row 0: gates 2 and 2.5 are open, magnitudes 2·3 + 0.25 and 3·2 - 7 = -1, cut to 0.
    # Row 1: gate -0.5 is shut though its magnitude is 1.25; gate 4.5, magnitude 3·4 - 7 = 5.
    strengths = torch.tensor([[6.25, 0.0], [0.0, 5.0]])
    assert torch.allclose(coder.encode(x), strengths)
    losses = coder.losses(x, Moment(warmth=0.5))
    error = (3.25**2 + 2**2 + 0.5**2 + 1**2) / 2
    sparsity = 0.5 * 0.5 * (2 + 2.5 + 0 + 4.5) / 2
    by_gate = (1**2 + 0.5**2 + 0.5**2 + 0.5**2) / 2
    assert losses.parts["reconstruction"].item() == pytest.approx(error)
    assert losses.parts["sparsity"].item() == pytest.approx(sparsity)
    assert losses.parts["gate"].item() == pytest.approx(by_gate)
    assert losses.total.item() == pytest.approx(error + sparsity + by_gate)
    assert losses.fired.tolist() == [1, 1]


def test_gradients_are_differences_with_the_decoder_held_in_the_gate_part() -> None:
    coder = small_coder("gated")
    x = small_rows()
    held, held_bias = coder.decoder.detach().clone(), coder.decoder_bias.detach().clone()

    def slowly() -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        for row in x:
            made, by_gate = coder.decoder_bias.clone(), held_bias.clone()
            for i in range(coder.latents):
                read = (row - coder.decoder_bias) @ coder.encoder[i]
                gate = read + coder.encoder_bias[i]
                magnitude = read * coder.magnitude_log_scale[i].exp() + coder.magnitude_bias[i]
                if gate > 0:
                    made += max(magnitude.item(), 0.0) * coder.decoder[i]
                    by_gate += gate * held[i]
                    loss += 0.3 * 0.7 * gate
            loss += (row - made).pow(2).sum() + (row - by_gate).pow(2).sum()
        return loss / len(x)

    total = coder.losses(x, Moment(warmth=0.7)).total
    with torch.no_grad():
        assert torch.allclose(total, slowly())
        assert_gradients(coder, total, slowly)


def test_a_decoder_that_learns_from_the_gate_part_is_another_loss() -> None:
    """What SAELens 6.54 does: the test above would not pass on it."""
    coder = small_coder("gated")
    x = small_rows()
    (ours,) = torch.autograd.grad(coder.losses(x, Moment()).total, [coder.decoder])
    gate = coder.pre_activations(x)
    thawed = (x - coder.decode(gate.relu())).pow(2).sum(1).mean()
    (more,) = torch.autograd.grad(thawed, [coder.decoder])
    assert more.abs().max() > 0.1
    (of_error,) = torch.autograd.grad((x - coder(x)).pow(2).sum(1).mean(), [coder.decoder])
    assert torch.allclose(ours, of_error)


def test_with_equal_biases_and_no_scale_it_is_relu() -> None:
    coder = small_coder("gated")
    with torch.no_grad():
        coder.magnitude_log_scale.zero_()
        coder.magnitude_bias.copy_(coder.encoder_bias)
    x = small_rows()
    assert torch.allclose(coder.encode(x), coder.pre_activations(x).relu())
