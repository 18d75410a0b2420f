"""Sparse products against loops."""

from __future__ import annotations

import warnings

import pytest
import torch

from sae.sparse.by_latent import ByLatent, decode
from sae.sparse.products import linear, rows_at_once
from sae.sparse.some_columns import SomeColumns

BATCH, K, LATENTS, WIDTH = 5, 3, 11, 7


@pytest.fixture(params=[torch.float32, torch.float64])
def given(request):
    make = torch.Generator().manual_seed(3)
    # Latent 10 is chosen nowhere, latent 0 at every row.
    indices = torch.stack([torch.randperm(9, generator=make)[:K] + 1 for _ in range(BATCH)])
    indices[:, 1] = 0
    values = torch.randn(BATCH, K, generator=make, dtype=request.param)
    x = torch.randn(BATCH, WIDTH, generator=make, dtype=request.param)
    weights = torch.randn(LATENTS, WIDTH, generator=make, dtype=request.param)
    return indices, values, x, weights


def test_decoding_sums_the_chosen_rows(given):
    indices, values, _, weights = given
    found = decode(values, indices, weights)
    for row in range(BATCH):
        expected = sum(values[row, i] * weights[indices[row, i]] for i in range(K))
        assert torch.allclose(found[row], expected, rtol=1e-5, atol=1e-6)


def test_rows_of_each_latent_are_summed(given):
    indices, values, x, _ = given
    found = ByLatent(indices, LATENTS).rows(values, x)
    expected = torch.zeros(LATENTS, WIDTH, dtype=x.dtype)
    for row in range(BATCH):
        for i in range(K):
            expected[indices[row, i]] += values[row, i] * x[row]
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not found[10].any() and found[0].any()


def test_dots_come_back_where_they_were_asked_for(given):
    indices, _, x, weights = given
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ByLatent(indices, LATENTS).dots(weights, x)
    for row in range(BATCH):
        for i in range(K):
            expected = weights[indices[row, i]] @ x[row]
            assert found[row, i].item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


def test_one_row_and_one_latent():
    x, weights = torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]])
    of_latent = ByLatent(torch.tensor([[0]]), 1)
    assert of_latent.rows(torch.tensor([[4.0]]), x).tolist() == [[8.0, 12.0]]
    assert of_latent.dots(weights, x).tolist() == [[31.0]]


@pytest.mark.parametrize("at_once", [1, 2, BATCH])
def test_dense_columns_are_the_sparse_products(given, at_once, monkeypatch):
    monkeypatch.setattr("sae.sparse.some_columns.rows_at_once", lambda *_: at_once)
    indices, values, x, weights = given
    wanted = torch.randn(BATCH, WIDTH, generator=torch.Generator().manual_seed(5)).to(x.dtype)
    columns, of_latent = SomeColumns(values, indices, LATENTS), ByLatent(indices, LATENTS)
    assert torch.allclose(columns.decode(weights), decode(values, indices, weights), atol=1e-5)
    of_values, of_encoder, of_decoder = columns.gradients(x, weights, wanted)
    dots = of_latent.dots(weights, wanted)
    assert torch.allclose(of_values, dots, atol=1e-5)
    assert torch.allclose(of_encoder, of_latent.rows(dots, x), atol=1e-5)
    assert torch.allclose(of_decoder, of_latent.rows(values, wanted), atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_linear_is_torchs(dtype, rows):
    make = torch.Generator().manual_seed(7)
    x = torch.randn(rows, 13, generator=make).to(dtype)
    weight, bias = torch.randn(11, 13, generator=make), torch.randn(11, generator=make)
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    precision = 0.1 if dtype == torch.bfloat16 else 1e-5
    found = linear(x, weight.to(dtype), bias.to(dtype))
    assert found.dtype == dtype and found.shape == (rows, 11)
    assert torch.allclose(found.double(), expected, atol=precision)
    turned = linear(x.T.contiguous().T, weight.to(dtype).T.contiguous().T)
    assert torch.allclose(turned.double(), expected - bias.double(), atol=precision)


def test_blocks_have_rows_however_many_columns():
    assert rows_at_once(16_384, torch.device("cpu")) == 256
    assert rows_at_once(1 << 30, torch.device("cpu")) == 1
