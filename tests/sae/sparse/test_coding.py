"""Sparse coding against the plain form: values and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae.sparse.coding import sparse_coding
from sae.sparse.encoding import Dead

LATENTS, WIDTH = 211, 13


def weights(dtype: torch.dtype, batch: int, seed: int = 0) -> list[Tensor]:
    make = torch.Generator().manual_seed(seed)
    shapes = [(batch, WIDTH), (LATENTS, WIDTH), (LATENTS,), (LATENTS, WIDTH), (WIDTH,)]
    found = [torch.randn(*shape, generator=make, dtype=torch.float64) for shape in shapes]
    return [value.to(dtype).requires_grad_() for value in found]


def plain(x, encoder, encoder_bias, decoder, centre, k, dead) -> tuple[Tensor, Tensor | None]:
    pre = (x - centre) @ encoder.T + encoder_bias
    kept = torch.zeros_like(pre).scatter(1, pre.topk(k).indices, 1.0)
    explained = None
    if dead is not None:
        of_dead = pre[:, dead.latents]
        chosen = torch.zeros_like(of_dead).scatter(1, of_dead.topk(dead.k).indices, 1.0)
        explained = (of_dead * chosen) @ decoder[dead.latents]
    return (pre * kept).relu() @ decoder, explained


def sparse(dense_up_to: float) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def run(*given):
        found = sparse_coding(*given, dense_up_to=dense_up_to)
        return found.decoded, found.explained

    return run


def gradients(run, given: list[Tensor], k: int, dead: Dead | None) -> list[Tensor]:
    """The outputs, and what a function of both that is not symmetric in anything pulls back."""
    decoded, explained = run(*given, k, dead)
    outputs = [decoded] if explained is None else [decoded, explained]
    total = sum(
        (out * torch.linspace(1, 2 + i, out.numel(), dtype=out.dtype).view_as(out)).pow(2).sum()
        for i, out in enumerate(outputs)
    )
    return [*outputs, *torch.autograd.grad(total, given)]


CASES = {
    "no dead": (29, 7, None),
    "some dead": (29, 7, Dead(torch.arange(3, 60, 2), 5)),
    "all of the dead": (29, 7, Dead(torch.tensor([2, 210]), 2)),
    "all dead": (29, 7, Dead(torch.arange(LATENTS), 17)),
    "one row": (1, 3, Dead(torch.arange(50), 4)),
    "one latent": (29, 1, None),
    "more than are positive": (29, LATENTS, None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dense_up_to", [0, 1000])
@pytest.mark.parametrize(("dtype", "precision"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_values_and_all_gradients_are_those_of_the_plain_form(case, dense_up_to, dtype, precision):
    batch, k, dead = CASES[case]
    given = weights(dtype, batch)
    found = gradients(sparse(dense_up_to), given, k, dead)
    expected = gradients(plain, given, k, dead)
    assert len(found) == len(expected) == 6 + (dead is not None)
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).abs().max() <= precision * theirs.abs().max()
        assert theirs.abs().max() > 0


@pytest.mark.parametrize("rows", [1, 4, 29])
def test_blocks_of_rows_change_nothing(rows, monkeypatch):
    batch, k, dead = CASES["some dead"]
    given = weights(torch.float64, batch)
    whole = gradients(sparse(16), given, k, dead)
    monkeypatch.setattr("sae.sparse.encoding.rows_at_once", lambda *_: rows)
    for mine, theirs in zip(gradients(sparse(16), given, k, dead), whole, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dense_up_to", [0, 1000])
def test_gradcheck(dense_up_to):
    make = torch.Generator().manual_seed(11)
    shapes = [(3, 5), (17, 5), (17,), (17, 5), (5,)]
    given = [torch.randn(*s, generator=make, dtype=torch.float64) for s in shapes]
    dead = Dead(torch.tensor([1, 4, 5, 9, 16]), 2)

    def run(*tensors):
        found = sparse_coding(*tensors, 4, dead, dense_up_to=dense_up_to)
        return found.decoded, found.explained

    torch.autograd.gradcheck(run, [value.requires_grad_() for value in given])


def test_dead_latents_train_the_encoder_even_where_all_are_negative():
    x, encoder, bias, decoder, centre = weights(torch.float64, 29)
    with torch.no_grad():
        bias[:40] = -1000.0
    found = sparse_coding(x, encoder, bias, decoder, centre, 7, Dead(torch.arange(40), 5))
    assert found.explained is not None
    (of_encoder,) = torch.autograd.grad(found.explained.sum(), encoder)
    assert (of_encoder[:40].abs().sum(1) > 0).sum() > 5
    assert not of_encoder[40:].any()


def test_not_centred_and_frozen_inputs():
    x, encoder, bias, decoder, _ = weights(torch.float64, 29)
    zero = torch.zeros(WIDTH, dtype=torch.float64)
    decoded = sparse_coding(x.detach(), encoder, bias, decoder, None, 7).decoded
    expected, _ = plain(x.detach(), encoder, bias, decoder, zero, 7, None)
    assert torch.allclose(decoded, expected)
    mine = torch.autograd.grad(decoded.pow(2).sum(), [encoder, bias, decoder])
    theirs = torch.autograd.grad(expected.pow(2).sum(), [encoder, bias, decoder])
    assert all(torch.allclose(a, b) for a, b in zip(mine, theirs, strict=True))


def test_ties_keep_k_latents_and_their_gradients():
    x = torch.ones(2, 3, dtype=torch.float64)
    encoder = torch.ones(100, 3, dtype=torch.float64, requires_grad=True)
    decoder = torch.arange(300.0, dtype=torch.float64).view(100, 3)
    bias = torch.zeros(100, dtype=torch.float64)
    found = sparse_coding(x, encoder, bias, decoder, None, 2)
    assert found.strengths.tolist() == [[3.0, 3.0]] * 2
    expected = 3 * decoder[found.indices].sum(1)
    assert torch.allclose(found.decoded, expected)
    (of_encoder,) = torch.autograd.grad(found.decoded.sum(), encoder)
    for latent in range(100):
        times = int((found.indices == latent).sum())
        assert of_encoder[latent].tolist() == [times * decoder[latent].sum().item()] * 3


def test_autocast_around_the_backward_pass_changes_nothing():
    given = weights(torch.float32, 29)
    dead = Dead(torch.arange(40), 5)
    found = sparse_coding(*given, 7, dead)
    assert found.explained is not None
    total = found.decoded.sum() + found.explained.sum()
    plain = torch.autograd.grad(total, given, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        under = torch.autograd.grad(total, given)
    assert all(torch.equal(a, b) for a, b in zip(plain, under, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dense_up_to", [0, 1000])
def test_a_gpu_gives_the_same(case, dense_up_to):
    batch, k, dead = CASES[case]
    given = weights(torch.float64, batch)
    expected = gradients(plain, given, k, dead)
    there = [value.detach().cuda().requires_grad_() for value in given]
    if dead is not None:
        dead = Dead(dead.latents.cuda(), dead.k)
    found = gradients(
        lambda *all_given: tuple(
            None if out is None else out.cpu() for out in sparse(dense_up_to)(*all_given)
        ),
        there,
        k,
        dead,
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine.cpu() - theirs).abs().max() <= 1e-12 * theirs.abs().max()
