"""The choice over a batch against the search through the whole matrix."""

from __future__ import annotations

import pytest
import torch

from sae.coders.batch_topk import BatchTopK
from sae.coders.coder import Moment
from sae.sparse.losses import sparse_topk_losses
from sae.sparse.over_batch import encode_over_batch

LATENTS, WIDTH, BATCH = 211, 13, 29


def given(bias: float = 0.0):
    make = torch.Generator().manual_seed(4)
    x = torch.randn(BATCH, WIDTH, generator=make, dtype=torch.float64)
    encoder = torch.randn(LATENTS, WIDTH, generator=make, dtype=torch.float64)
    return x, encoder, torch.full((LATENTS,), bias, dtype=torch.float64)


def dense(found) -> torch.Tensor:
    empty = torch.zeros(BATCH, LATENTS, dtype=torch.float64)
    return empty.scatter_add(1, found.indices, found.values)


def expected(x, encoder, bias, k) -> torch.Tensor:
    pre = (x @ encoder.T + bias).relu()
    least = pre.flatten().topk(k * BATCH).values[-1]
    return pre * (pre >= least)


@pytest.mark.parametrize("k", [1, 7, 60, LATENTS])
def test_the_largest_of_the_batch_are_found(k):
    x, encoder, bias = given()
    found, _ = encode_over_batch(x, encoder, bias, k)
    assert torch.allclose(dense(found), expected(x, encoder, bias, k))


def test_rows_that_take_nearly_everything_are_looked_at_again():
    x, encoder, bias = given()
    x[[3, 17]] *= 100.0
    found, _ = encode_over_batch(x, encoder, bias, 7)
    wanted = expected(x, encoder, bias, 7)
    assert ((wanted > 0).sum(1) > 4 * 7).tolist().count(True) == 2
    assert torch.allclose(dense(found), wanted)


def test_only_positive_ones_fire():
    x, encoder, bias = given(bias=-12.0)
    found, _ = encode_over_batch(x, encoder, bias, 7)
    pre = x @ encoder.T + bias
    assert 0 < (pre > 0).sum() < 7 * BATCH
    assert torch.allclose(dense(found), pre.relu())
    found, _ = encode_over_batch(x, encoder, bias - 1e6, 7)
    assert not found.values.any()


@pytest.mark.parametrize("dead", [0, 40])
def test_losses_gradients_and_threshold_are_those_of_batch_topk(dead):
    made = []
    for _ in range(2):
        coder = BatchTopK(WIDTH, LATENTS, k=7, auxiliary=0.5, auxiliary_k=11, seed=1).train()
        with torch.no_grad():
            coder.decoder_bias += 0.3
        made.append(coder)
    mine, plain = made
    which = torch.arange(LATENTS) < dead
    x = given()[0].float()
    for step in range(3):
        a = sparse_topk_losses(
            mine, x + step, Moment(dead=which), over_batch=True, follow=mine._follow
        )
        b = plain.losses(x + step, Moment(dead=which, fast=False))
        assert a.total.item() == pytest.approx(b.total.item(), rel=1e-5)
        assert torch.equal(a.fired, b.fired) and a.fired.sum() == 7 * BATCH
        for one, other in zip(
            torch.autograd.grad(a.total, list(mine.parameters())),
            torch.autograd.grad(b.total, list(plain.parameters())),
            strict=True,
        ):
            assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    assert mine.threshold.item() == pytest.approx(plain.threshold.item(), rel=1e-5) and (
        mine.threshold > 0
    )
