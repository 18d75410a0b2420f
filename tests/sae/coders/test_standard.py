"""ReLU coders: the loss by hand, both forms, and the shrinkage that theory gives."""

from __future__ import annotations

import pytest
import torch
from small_coders import assert_gradients, small_coder, small_rows

from sae.coders.coder import Moment
from sae.coders.decoder_rules import remove_parallel_gradient
from sae.coders.standard import Standard

A, B = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]])


def by_hand(form: str) -> Standard:
    """Latent 0 reads entry 0 and writes with length 2 or 1, latent 1 reads entry 1 less 0.5."""
    coder = Standard(2, 2, sparsity=0.5, form=form, centred=False)  # type: ignore[arg-type]
    with torch.no_grad():
        coder.encoder.copy_(torch.eye(2))
        coder.encoder_bias.copy_(torch.tensor([0.0, -0.5]))
        coder.decoder.copy_(torch.tensor([[2.0 if form == "april" else 1.0, 0.0], [0.0, 1.0]]))
        coder.decoder_bias.copy_(torch.tensor([0.0, 0.25]))
    return coder


@pytest.mark.parametrize(
    ("form", "first", "weighted"), [("april", 9.0, 6.0), ("kissane", 0.0, 3.0)]
)
def test_the_loss_by_hand(form: str, first: float, weighted: float) -> None:
    losses = by_hand(form).losses(torch.cat([A, B]), Moment(warmth=0.5))
    # Row 0: strength 3, written as 6 or 3 for 3, and 0.25 for 0. Row 1: strength 1.5, 1.75 for 2.
    error = (first + 0.0625 + 0.0625) / 2
    sparsity = 0.5 * 0.5 * (weighted + 1.5) / 2
    assert losses.parts["reconstruction"].item() == pytest.approx(error)
    assert losses.parts["sparsity"].item() == pytest.approx(sparsity)
    assert losses.total.item() == pytest.approx(error + sparsity)
    assert losses.fired.tolist() == [1, 1]


@pytest.mark.parametrize("form", ["april", "kissane"])
def test_gradients_are_differences(form: str) -> None:
    coder = small_coder("standard", form=form)
    x = small_rows()
    total = coder.losses(x, Moment(warmth=0.7)).total

    def slowly() -> torch.Tensor:
        loss = torch.zeros((), dtype=torch.float64)
        for row in x:
            strengths = [
                max(float((row - coder.decoder_bias) @ e + b), 0.0)
                for e, b in zip(coder.encoder, coder.encoder_bias, strict=True)
            ]
            made = coder.decoder_bias.clone()
            for strength, direction in zip(strengths, coder.decoder, strict=True):
                made += strength * direction
                length = direction.norm() if form == "april" else 1.0
                loss += 0.3 * 0.7 * strength * length
            loss += (row - made).pow(2).sum()
        return loss / len(x)

    with torch.no_grad():
        assert torch.allclose(total, slowly())
        assert_gradients(coder, total, slowly)


def test_the_forms_start_as_their_sources_say() -> None:
    april = Standard(48, 1_500, form="april")
    assert torch.allclose(april.decoder.norm(dim=1), torch.full((1_500,), 0.1))
    assert torch.equal(april.encoder, april.decoder)
    assert not april.unit_decoder
    kissane = Standard(48, 1_500, form="kissane")
    assert kissane.unit_decoder
    assert torch.allclose(kissane.decoder.norm(dim=1), torch.ones(1_500))
    bound = (6 / 1_500) ** 0.5
    assert kissane.encoder.abs().max() <= bound
    assert kissane.encoder.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    together = torch.nn.functional.cosine_similarity(kissane.encoder, kissane.decoder)
    assert together.mean().abs() < 0.02
    assert kissane.encoder_bias.abs().sum() == 0 == kissane.decoder_bias.abs().sum()


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(ValueError, match="`form` must be april or kissane, got 'may'"):
        Standard(2, 3, form="may")  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["april", "kissane"])
@pytest.mark.parametrize("sparsity", [0.4, 1.0])
def test_a_lone_feature_is_shrunk_by_half_the_weight(form: str, sparsity: float) -> None:
    """min_f (a - f)² + sparsity · f is at f = a - sparsity / 2, at every strength a above it.

    There, and not where the feature is read in full, no parameter has a gradient.
    """
    direction = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    strengths = torch.cat([torch.zeros(6), torch.linspace(1, 2, 5)]).double()
    x = strengths[:, None] * direction
    coder = Standard(3, 1, sparsity=sparsity, form=form).double()  # type: ignore[arg-type]
    with torch.no_grad():
        # The april form may write with any length: the loss does not see it.
        length = 0.5 if form == "april" else 1.0
        coder.encoder.copy_(direction[None] / length)
        coder.decoder.copy_(direction[None] * length)
        coder.encoder_bias.fill_(-sparsity / 2 / length)
    coder.decoder_bias.requires_grad_(False)
    assert _largest_gradient(coder, x) < 1e-12
    with torch.no_grad():
        read = coder.as_used().encode(x)[:, 0]
        assert torch.allclose(read, (strengths - sparsity / 2).clamp_min(0))
        coder.encoder_bias.fill_(0.0)
    assert _largest_gradient(coder, x) > 0.1


def _largest_gradient(coder: Standard, x: torch.Tensor) -> float:
    coder.zero_grad()
    coder.losses(x, Moment()).total.backward()
    remove_parallel_gradient(coder)
    return max(p.grad.abs().max().item() for p in coder.parameters() if p.grad is not None)
