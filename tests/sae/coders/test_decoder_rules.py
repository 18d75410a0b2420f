"""Unit rows: gradients without their parallel part, lengths that move into strengths."""

from __future__ import annotations

import pytest
import torch
from small_coders import LATENTS, WIDTH, small_coder, small_rows

from sae.coders.coder import Moment
from sae.coders.decoder_rules import make_rows_unit, remove_parallel_gradient, with_unit_rows
from sae.coders.topk import TopK


def test_the_parallel_part_goes_by_hand() -> None:
    coder = TopK(2, 2, k=1)
    with torch.no_grad():
        # The second row is not unit: the rule asks for directions alone.
        coder.decoder.copy_(torch.tensor([[0.6, 0.8], [0.0, 2.0]]))
    coder.decoder.grad = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    remove_parallel_gradient(coder)
    # Along (0.6, 0.8): 2.2; (1, 2) - 2.2 (0.6, 0.8) = (-0.32, 0.24).
    assert torch.allclose(coder.decoder.grad, torch.tensor([[-0.32, 0.24], [3.0, 0.0]]))


def test_a_step_without_the_parallel_part_keeps_lengths_to_first_order() -> None:
    coder = small_coder("topk")
    coder.losses(small_rows(), Moment()).total.backward()
    remove_parallel_gradient(coder)
    assert coder.decoder.grad is not None and coder.decoder.grad.abs().max() > 0.01
    moved = coder.decoder - 1e-4 * coder.decoder.grad
    assert torch.allclose(moved.norm(dim=1), torch.ones(LATENTS).double(), atol=1e-6)


def test_rows_become_unit_and_zeros_stay() -> None:
    coder = TopK(2, 3, k=1)
    with torch.no_grad():
        coder.decoder.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0], [-0.5, 0.0]]))
    make_rows_unit(coder)
    assert torch.allclose(coder.decoder, torch.tensor([[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]]))


def test_kinds_without_the_rule_are_left_alone() -> None:
    coder = small_coder("standard")
    coder.losses(small_rows(), Moment()).total.backward()
    assert coder.decoder.grad is not None
    gradient, rows = coder.decoder.grad.clone(), coder.decoder.detach().clone()
    remove_parallel_gradient(coder)
    make_rows_unit(coder)
    assert torch.equal(coder.decoder.grad, gradient) and torch.equal(coder.decoder, rows)
    coder.zero_grad(set_to_none=True)
    remove_parallel_gradient(coder)


@pytest.mark.parametrize("kind", ["standard", "gated", "jump_relu"])
def test_lengths_move_into_strengths(kind: str) -> None:
    coder = small_coder(kind).eval()
    lengths = torch.linspace(0.2, 3, LATENTS).double()
    with torch.no_grad():
        coder.decoder.mul_((lengths / coder.decoder.norm(dim=1))[:, None])
        coder.decoder[4] = 0.0
    unit = with_unit_rows(coder)
    x = small_rows(23)
    lengths[4] = 1.0
    assert torch.allclose(unit.encode(x), coder.encode(x) * lengths, rtol=1e-12, atol=1e-13)
    assert torch.allclose(unit(x), coder(x), rtol=1e-12, atol=1e-12)
    ones = torch.ones(LATENTS).double()
    ones[4] = 0.0
    assert torch.allclose(unit.decoder.norm(dim=1), ones)
    assert coder.decoder.norm(dim=1).max() > 2 and unit.decoder.shape == (LATENTS, WIDTH)
