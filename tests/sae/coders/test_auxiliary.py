"""AuxK: by hand, and that latents that are negative everywhere learn."""

from __future__ import annotations

import pytest
import torch

from sae.coders.auxiliary import auxiliary_loss, chosen_of_dead

PRE = torch.tensor([[9.0, -1.0, 2.0, 0.5], [9.0, -3.0, -2.0, -4.0]])
DECODER = torch.tensor([[7.0, 7.0], [1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
LEFT = torch.tensor([[1.0, 3.0], [-2.5, 1.0]])
DEAD = torch.tensor([False, True, True, True])
SPREAD = 1.75**2 + 1.0**2


def test_by_hand_the_strongest_of_few() -> None:
    # An eighth of three is less than one: latent 2 in both rows, 2.0 and the negative -2.0.
    explained = torch.tensor([[0.0, 4.0], [0.0, -4.0]])
    wanted = (LEFT - explained).pow(2).sum(1).mean() / SPREAD
    assert torch.allclose(auxiliary_loss(PRE, DECODER, LEFT, DEAD, 2), wanted)


def test_by_hand_with_more_wanted_than_dead() -> None:
    """Two dead latents where four are wanted: half the weight."""
    dead = torch.tensor([False, True, False, True])
    explained = torch.tensor([[0.5, 0.5], [-3.0, 0.0]])
    wanted = 0.5 * (LEFT - explained).pow(2).sum(1).mean() / SPREAD
    assert torch.allclose(auxiliary_loss(PRE, DECODER, LEFT, dead, 4), wanted)


@pytest.mark.parametrize(("wanted", "chosen"), [(2, 2), (3, 3), (5, 3)])
def test_many_dead_are_those_of_loops(wanted: int, chosen: int) -> None:
    """Of 29 dead latents of 37: as many as wanted, at most three."""
    generator = torch.Generator().manual_seed(2)
    pre = torch.randn(7, 37, generator=generator)
    decoder, left = torch.randn(37, 5, generator=generator), torch.randn(7, 5, generator=generator)
    dead = torch.arange(37) >= 8
    loss = 0.0
    for values, row in zip(pre, left, strict=True):
        strongest = sorted(range(8, 37), key=lambda i: -values[i].item())[:chosen]
        explained = sum((values[i] * decoder[i] for i in strongest), torch.zeros(5))
        loss += (row - explained).pow(2).sum().item()
    loss /= (left - left.mean(0)).pow(2).sum().item()
    assert auxiliary_loss(pre, decoder, left, dead, wanted).item() == pytest.approx(loss, rel=1e-5)


def test_at_most_an_eighth_of_the_dead_and_at_least_one_are_chosen() -> None:
    given = [(4, 1), (4, 7), (4, 16), (4, 31), (4, 32), (4, 1_000), (384, 1_638)]
    assert [chosen_of_dead(k, dead) for k, dead in given] == [1, 1, 2, 3, 4, 4, 204]


def test_latents_that_never_rise_above_zero_learn() -> None:
    pre, decoder = PRE.clone().requires_grad_(), DECODER.clone().requires_grad_()
    dead = torch.tensor([False, True, False, False])
    auxiliary_loss(pre, decoder, LEFT, dead, 1).backward()
    assert pre.grad is not None and decoder.grad is not None
    assert (pre.grad[:, 1] != 0).all()
    assert pre.grad[:, [0, 2, 3]].abs().sum() == 0
    assert decoder.grad[1].abs().sum() > 0 and decoder.grad[[0, 2, 3]].abs().sum() == 0


def test_no_gradient_reaches_what_the_live_latents_left() -> None:
    left = LEFT.clone().requires_grad_()
    pre = PRE.clone().requires_grad_()
    auxiliary_loss(pre, DECODER, left, DEAD, 2).backward()
    assert left.grad is None


def test_it_does_not_change_with_the_unit_of_rows() -> None:
    loss = auxiliary_loss(PRE, DECODER, LEFT, DEAD, 2)
    assert torch.allclose(auxiliary_loss(10 * PRE, DECODER, 10 * LEFT, DEAD, 2), loss)


@pytest.mark.parametrize("dead", [None, torch.zeros(4, dtype=torch.bool)])
def test_nobody_dead_costs_nothing(dead: torch.Tensor | None) -> None:
    assert auxiliary_loss(PRE, DECODER, LEFT, dead, 2).item() == 0


def test_no_error_costs_nothing() -> None:
    assert auxiliary_loss(PRE, DECODER, torch.zeros(2, 2), DEAD, 2).item() == 0
