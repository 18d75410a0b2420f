"""Log probabilities with their handwritten gradient, against autograd's own."""

import math

import pytest
import torch

from analysis.importance import log_probability as module
from analysis.importance.log_probability import blocks_of_rows, log_probability


def _by_autograd(read, targets):
    return read.log_softmax(-1).gather(1, targets)


@pytest.mark.parametrize("block", [1, 14, 1 << 19])
def test_values_and_gradients_are_those_of_a_log_softmax(block, monkeypatch):
    monkeypatch.setattr(module, "_ROW_ELEMENTS", block)  # 1 row at once, 2 rows, all
    draw = torch.Generator().manual_seed(2)
    read = (9 * torch.randn(5, 7, generator=draw)).requires_grad_()
    targets = torch.tensor([[0, 3], [6, 6], [1, 0], [2, 5], [4, 4]])
    weight = torch.tensor([[1.0, -2.0], [0.5, 0.25], [0.0, 3.0], [1.0, 1.0], [-1.0, 0.0]])
    ours, theirs = log_probability(read, targets), _by_autograd(read, targets)
    torch.testing.assert_close(ours, theirs)
    (found,) = torch.autograd.grad((ours * weight).sum(), read)
    (expected,) = torch.autograd.grad((theirs * weight).sum(), read)
    torch.testing.assert_close(found, expected)
    assert float(expected.abs().max()) > 1


def test_the_gradient_by_hand():
    read = torch.tensor([[0.0, math.log(3.0), -math.inf]], requires_grad=True)
    value = log_probability(read, torch.tensor([[1]]))
    assert value.item() == pytest.approx(math.log(0.75))
    (gradient,) = torch.autograd.grad(4 * value.sum(), read)
    assert gradient.tolist() == [pytest.approx([-1.0, 1.0, 0.0])]


def test_the_gradient_against_finite_differences():
    read = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    targets = torch.tensor([[4, 0], [1, 1], [2, 3]])
    assert torch.autograd.gradcheck(lambda r: log_probability(r, targets), read.requires_grad_())


def test_no_reads_and_no_gradients_are_fine():
    assert log_probability(torch.zeros(0, 3), torch.zeros(0, 2, dtype=torch.long)).shape == (0, 2)
    with torch.inference_mode():
        assert log_probability(torch.zeros(1, 4), torch.tensor([[2]])).item() == pytest.approx(
            -math.log(4)
        )
    assert list(blocks_of_rows(torch.zeros(0, 3))) == []
