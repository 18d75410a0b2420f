"""JumpReLU: by hand, the gradients put in place of none, and where thresholds go."""

from __future__ import annotations

import pytest
import torch
from small_coders import assert_gradients, small_coder, small_rows

from sae.coders.coder import Moment
from sae.coders.jump_relu import JumpReLU, jump, step

PRE = torch.tensor([[1.2, 0.9, 5.0], [0.7, 0.2, 0.1]], dtype=torch.float64)
THRESHOLD = torch.tensor([1.0, 0.5, 0.3], dtype=torch.float64)
GRADIENT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)


def test_the_gradients_are_those_of_the_paper() -> None:
    """Of a window of 0.5: pre within 0.25 of its threshold."""
    pre, threshold = PRE.clone().requires_grad_(), THRESHOLD.clone().requires_grad_()
    jumped = jump(pre, threshold, 0.5)
    assert jumped.tolist() == [[1.2, 0.9, 5.0], [0.0, 0.0, 0.0]]
    jumped.backward(GRADIENT)
    # Inside: latent 0 in row 0 alone (0.2; row 1 is 0.3 away), latent 2 in row 1 (0.2).
    assert threshold.grad is not None and pre.grad is not None
    assert threshold.grad.tolist() == pytest.approx([-1.0 / 0.5 * 1, 0.0, -0.3 / 0.5 * 6])
    assert pre.grad.tolist() == [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]

    threshold.grad = None
    stepped = step(PRE.clone().requires_grad_(), threshold, 0.5)
    assert stepped.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    stepped.backward(GRADIENT)
    assert threshold.grad.tolist() == pytest.approx([-1 / 0.5 * 1, 0.0, -1 / 0.5 * 6])


def test_steps_give_the_encoder_no_gradient() -> None:
    coder = small_coder("jump_relu")
    pre = coder.pre_activations(small_rows())
    counted = step(pre, coder.threshold, coder.bandwidth).sum()  # type: ignore[arg-type]
    gradients = torch.autograd.grad(counted, [coder.encoder, coder.threshold], allow_unused=True)  # type: ignore[list-item]
    assert gradients[0] is None or gradients[0].abs().sum() == 0
    assert gradients[1].abs().sum() > 0


def test_smoothed_over_the_window_the_threshold_has_this_gradient() -> None:
    """The estimator is a kernel density: of spread pre-activations it finds the true slope.

    For pre uniform in 0 to 2, E[(pre · 1[pre > θ] - c)²] has the slope -(θ² - 2 c θ) / 2, and
    P(pre > θ) the slope -1/2.
    """
    threshold = torch.tensor([0.8], dtype=torch.float64, requires_grad=True)
    pre = torch.linspace(0, 2, 200_001, dtype=torch.float64)[:, None]
    loss = (jump(pre, threshold, 0.01) - 0.3).pow(2).mean()
    (slope,) = torch.autograd.grad(loss, [threshold])
    # Both sides of the window: above it the derivative is of θ - c, below of 0 - c.
    above, below = 2 * (0.8 - 0.3), 2 * (0.0 - 0.3)
    assert slope.item() == pytest.approx(-0.8 * (above + below) / 2 / 2, rel=0.02)
    assert -0.8 * (above + below) / 2 / 2 == pytest.approx(-(0.8**2 - 2 * 0.3 * 0.8) / 2)
    (slope,) = torch.autograd.grad(step(pre, threshold, 0.01).mean(), [threshold])
    assert slope.item() == pytest.approx(-0.5, rel=0.02)


def by_hand(target: float | None) -> JumpReLU:
    coder = JumpReLU(2, 2, sparsity=3.0, target=target, centred=False)
    with torch.no_grad():
        coder.encoder.copy_(torch.eye(2))
        coder.decoder.copy_(torch.eye(2))
        coder.threshold.copy_(torch.tensor([1.0, 2.0]))
    return coder


@pytest.mark.parametrize(("target", "excess"), [(None, 1.5), (1.0, 0.25), (6.0, 0.5625)])
def test_the_loss_by_hand(target: float | None, excess: float) -> None:
    x = torch.tensor([[1.5, 1.9], [4.0, 2.5]])
    losses = by_hand(target).losses(x, Moment(warmth=0.5))
    assert losses.reconstruction.tolist() == [[1.5, 0.0], [4.0, 2.5]]
    assert losses.parts["reconstruction"].item() == pytest.approx(1.9**2 / 2)
    assert losses.parts["sparsity"].item() == pytest.approx(3 * 0.5 * excess)
    assert losses.fired.tolist() == [2, 1]


def test_other_gradients_are_differences() -> None:
    coder = small_coder("jump_relu")
    x = small_rows()
    losses = coder.losses(x, Moment())

    def slowly() -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        active = 0
        for row in x:
            made = coder.decoder_bias.clone()
            for i in range(coder.latents):
                pre = (row - coder.decoder_bias) @ coder.encoder[i] + coder.encoder_bias[i]
                if pre > coder.threshold[i]:  # type: ignore[index]
                    made += pre * coder.decoder[i]
                    active += 1
            loss += (row - made).pow(2).sum() / len(x)
        return loss + 0.4 * (active / len(x) / 2.0 - 1) ** 2

    with torch.no_grad():
        assert torch.allclose(losses.total, slowly())
        names = {"encoder", "encoder_bias", "decoder", "decoder_bias"}
        assert_gradients(coder, losses.total, slowly, names)


def test_thresholds_stay_at_zero_or_above_and_can_leave_it() -> None:
    coder = by_hand(0.5)
    with torch.no_grad():
        coder.threshold.fill_(-0.2)
    x = torch.tensor([[0.001, 3.0], [4.0, 0.001]])
    coder.bandwidth = 0.1
    coder.losses(x, Moment()).total.backward()
    assert coder.threshold.tolist() == [0.0, 0.0]
    assert coder.threshold.grad is not None and (coder.threshold.grad < 0).all()


def test_sizes_follow_the_width_and_thresholds_move_as_at_norm_one() -> None:
    coder = JumpReLU(64, 3)
    assert coder.bandwidth == pytest.approx(0.008) and coder.start == pytest.approx(0.008)
    assert torch.allclose(coder.threshold, torch.full((3,), 0.008))
    groups = coder.parameter_groups(0.01)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates.pop(id(coder.threshold)) == pytest.approx(0.08)
    assert set(rates) == {id(p) for n, p in coder.named_parameters() if n != "threshold"}
    assert set(rates.values()) == {0.01}


def test_windows_must_be_open() -> None:
    with pytest.raises(ValueError, match="`bandwidth` and `target` must be positive"):
        JumpReLU(2, 2, bandwidth=0.0)
    with pytest.raises(ValueError, match="got 0.1, 0 and"):
        JumpReLU(2, 2, bandwidth=0.1, target=0)
