"""The sparse loss of TopK against its own plain one."""

from __future__ import annotations

import pytest
import torch

from sae.coders.batch_topk import BatchTopK
from sae.coders.coder import Moment
from sae.coders.topk import TopK
from sae.sparse.losses import sparse_topk_losses

LATENTS, WIDTH, BATCH = 509, 37, 53


def coder(**more) -> TopK:
    made = TopK(WIDTH, LATENTS, **{"k": 7, "auxiliary_k": 11, "auxiliary": 0.5} | more)
    make = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=make))
    return made


def dead(count: int) -> torch.Tensor:
    found = torch.zeros(LATENTS, dtype=torch.bool)
    found[torch.randperm(LATENTS, generator=torch.Generator().manual_seed(2))[:count]] = True
    return found


def rows(batch: int = BATCH) -> torch.Tensor:
    return torch.randn(batch, WIDTH, generator=torch.Generator().manual_seed(3))


def both(made: TopK, x: torch.Tensor, moment: Moment):
    """Losses and gradients, sparse and plain."""
    found = []
    for losses_of in (lambda x: sparse_topk_losses(made, x, moment), None):
        given = x.clone().requires_grad_()
        losses = losses_of(given) if losses_of else made.dense_losses(given, moment)
        gradients = torch.autograd.grad(losses.total, [given, *made.parameters()])
        found.append((losses, gradients))
    return found


@pytest.mark.parametrize("count", [0, 1, 11, 40, LATENTS])
@pytest.mark.parametrize("centred", [True, False])
def test_losses_and_gradients_are_the_plain_ones(count, centred):
    made = coder(centred=centred)
    (mine, my_gradients), (plain, gradients) = both(made, rows(), Moment(dead=dead(count)))
    assert mine.total.item() == pytest.approx(plain.total.item(), rel=1e-5)
    assert mine.parts.keys() == plain.parts.keys()
    for name, value in plain.parts.items():
        assert mine.parts[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert (mine.parts["auxiliary"] > 0) == (count > 0)
    assert torch.equal(mine.fired, plain.fired) and mine.fired.sum() > 0
    assert torch.allclose(mine.reconstruction, plain.reconstruction, atol=1e-5)
    for a, b in zip(my_gradients, gradients, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_wrong_forms_of_auxk_would_be_seen():
    # AuxK is a third of the encoder's gradient here: without it, or with negative pre-activations
    # cut off as some implementations do, the comparison above fails.
    made = coder(auxiliary=50.0)
    moment = Moment(dead=dead(40))
    (_, with_dead), _ = both(made, rows(), moment)
    (_, without), _ = both(made, rows(), Moment())
    encoder = [name for name, _ in made.named_parameters()].index("encoder") + 1
    apart = (with_dead[encoder] - without[encoder])[moment.dead].norm()
    assert apart > 0.1 * with_dead[encoder].norm()


@pytest.mark.parametrize("batch", [1, 2])
def test_small_batches(batch):
    (mine, my_gradients), (plain, gradients) = both(coder(), rows(batch), Moment(dead=dead(40)))
    assert mine.total.item() == pytest.approx(plain.total.item(), rel=1e-5)
    for a, b in zip(my_gradients, gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * b.abs().max().item() + 1e-12)


def test_without_auxk_nothing_is_asked_of_dead_latents():
    made = coder(auxiliary=0.0)
    (mine, my_gradients), (_, gradients) = both(made, rows(), Moment(dead=dead(40)))
    assert mine.parts["auxiliary"] == 0
    for a, b in zip(my_gradients, gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-5 * b.abs().max().item())


def test_bfloat16_autocast_stays_near_float32():
    made, x, moment = coder(), rows(), Moment(dead=dead(40))
    exact = sparse_topk_losses(made, x, moment)
    with torch.autocast("cpu", torch.bfloat16):
        half = sparse_topk_losses(made, x, moment)
    assert half.reconstruction.dtype == torch.float32
    assert half.total.item() == pytest.approx(exact.total.item(), rel=0.02)
    (a,), (b,) = (torch.autograd.grad(it.total, [made.encoder]) for it in (half, exact))
    assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.98


def test_rows_of_another_type_are_taken_in_the_parameters():
    made = coder()
    low = rows().bfloat16()
    assert sparse_topk_losses(made, low, Moment()).total.item() == pytest.approx(
        made.dense_losses(low.float(), Moment()).total.item(), rel=1e-5
    )


@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_coders_take_the_sparse_path_where_it_is_allowed(kind, monkeypatch):
    made = kind(WIDTH, LATENTS, k=7)
    expected = made.losses(rows(), Moment(fast=False)).total.item()
    monkeypatch.setattr(kind, "dense_losses", None)
    assert made.losses(rows(), Moment()).total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", [TopK, BatchTopK])
def test_where_torch_has_no_sparse_products_the_plain_path_is_taken(kind, monkeypatch):
    made, plain = kind(WIDTH, LATENTS, k=7), object()
    monkeypatch.setattr(kind, "dense_losses", lambda *_: plain)
    assert made.double().losses(rows().double(), Moment()) is not plain
    assert made.losses(rows().double(), Moment(fast=False)) is plain
    assert made.bfloat16().losses(rows().bfloat16(), Moment()) is plain
    # Apple's devices have none; this one stands for them.
    assert made.float().to("meta").losses(rows().to("meta"), Moment()) is plain
