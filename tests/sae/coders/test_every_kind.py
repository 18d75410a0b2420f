"""Laws that all kinds of coders obey."""

from __future__ import annotations

import pytest
import torch
from small_coders import KINDS, LATENTS, OPTIONS, small_coder, small_rows

from sae.coders.coder import Moment
from sae.coders.registry import CODERS


@pytest.fixture(params=KINDS)
def coder(request: pytest.FixtureRequest):
    made = small_coder(request.param)
    if hasattr(made, "set_threshold"):
        made.set_threshold(small_rows())
    return made.eval()


def test_every_kind_is_tested() -> None:
    assert set(KINDS) == set(CODERS)


@pytest.mark.parametrize("factor", [0.25, 3.7])
def test_rescaled_coders_are_of_rows_that_were_divided(coder, factor: float) -> None:
    x = small_rows(seed=1)
    with torch.no_grad():
        strengths, reconstruction = coder.encode(x / factor), coder(x / factor)
        before = coder(x)
        coder.rescale(factor)
        assert torch.allclose(coder.encode(x), strengths * factor, rtol=1e-12, atol=1e-13)
        assert torch.allclose(coder(x), reconstruction * factor, rtol=1e-12, atol=1e-13)
        assert not torch.allclose(coder(x), before)
    if factor == 0.25:
        # A power of two: nothing is rounded.
        assert torch.equal(coder.encode(x), strengths * factor)


def test_rescaling_by_halves_is_rescaling_back(coder) -> None:
    kept = {name: value.clone() for name, value in coder.state_dict().items()}
    coder.rescale(8.0)
    coder.rescale(0.125)
    assert all(torch.equal(value, kept[name]) for name, value in coder.state_dict().items())


def test_what_replaces_a_coder_reconstructs_the_same(coder) -> None:
    x = small_rows(29, seed=2)
    used = coder.as_used()
    with torch.no_grad():
        assert torch.allclose(used(x), coder(x), rtol=1e-12, atol=1e-12)
        assert torch.equal(used.encode(x) > 0, coder.encode(x) > 0)
        assert torch.allclose(used.decoder.norm(dim=1), torch.ones(LATENTS, dtype=torch.float64))
    assert used.as_used().architecture == used.architecture


def test_what_replaces_a_coder_shares_no_memory_with_it() -> None:
    for kind in ("standard", "batch_topk", "matryoshka"):
        coder = small_coder(kind)
        used = coder.as_used()
        kept = coder.decoder.detach().clone()
        with torch.no_grad():
            used.decoder.zero_()
            used.encoder.zero_()
        assert torch.equal(coder.decoder, kept)


def test_codes_are_the_dense_strengths(coder) -> None:
    x = small_rows(7, seed=3)
    with torch.no_grad():
        strengths, codes = coder.encode(x), coder.codes(x)
        assert 0 < (strengths > 0).sum() < strengths.numel()
        assert torch.equal(codes.dense(LATENTS), strengths)
        assert (codes.values.diff(dim=1) <= 0).all()
        assert coder.codes(x[:0]).dense(LATENTS).shape == (0, LATENTS)


def test_losses_are_the_sum_of_their_parts_and_count_what_fires(coder) -> None:
    x = small_rows(17, seed=4)
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[[2, 5, 11]] = True
    losses = coder.train().losses(x, Moment(dead=dead))
    parts = dict(losses.parts)
    error = (x - losses.reconstruction).pow(2).sum(1).mean()
    assert torch.allclose(parts["reconstruction"], error)
    if "prefixes" in parts:
        del parts["reconstruction"]
    assert torch.allclose(torch.stack(list(parts.values())).sum(), losses.total)
    assert len(parts) >= 2
    assert all(part.item() > 0 and not part.requires_grad for part in parts.values())
    assert losses.fired.shape == (LATENTS,)
    assert 0 < losses.fired.sum() <= 17 * LATENTS and losses.fired.max() <= 17
    if coder.architecture in ("standard", "gated", "jump_relu"):
        assert torch.equal(losses.fired, (coder.encode(x) > 0).sum(0))
    losses.total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in coder.parameters())


def test_settings_make_the_same_coder_again(coder) -> None:
    twin = CODERS[coder.architecture](
        coder.width, coder.latents, centred=coder.centred, **coder.settings
    ).double()
    twin.load_state_dict(coder.state_dict())
    x = small_rows(seed=5)
    assert twin.settings == coder.settings
    assert torch.equal(twin.encode(x), coder.encode(x))
    assert torch.equal(twin.losses(x, Moment()).total, coder.losses(x, Moment()).total)


def test_centring_takes_the_bias_from_the_input() -> None:
    for kind in KINDS:
        centred = small_coder(kind).eval()
        plain = small_coder(kind, centred=False).eval()
        x = small_rows(seed=6)
        shifted = x - centred.decoder_bias
        assert torch.allclose(centred.encode(x), plain.encode(shifted), rtol=1e-12, atol=1e-12)
        by_hand = shifted @ centred.encoder.T + centred.encoder_bias
        assert torch.allclose(centred.pre_activations(x), by_hand, rtol=1e-12, atol=1e-12)


def test_far_from_zero_bfloat16_reads_no_worse() -> None:
    """Rows 30 times as far away as they vary: what a product in bfloat16 loses stays the same."""
    for kind in KINDS:
        coder, x = small_coder(kind).float(), small_rows(40).float()
        exact = coder.pre_activations(x)
        worst = []
        for shift in (0.0, 30.0):
            with torch.no_grad():
                coder.decoder_bias.add_(shift)
            with torch.autocast("cpu", torch.bfloat16):
                worst.append((coder.pre_activations(x + shift) - exact).abs().max().item())
        assert 0 < worst[1] < 2 * worst[0], kind


@pytest.mark.parametrize("width", [1, 3, 10])
def test_rows_of_another_width_are_a_sentence(width: int) -> None:
    for kind in KINDS:
        sentence = rf"Rows must have the coder's width, 5, got \[5, {width}\]\. Give"
        with pytest.raises(ValueError, match=sentence):
            small_coder(kind).encode(torch.ones(5, width, dtype=torch.float64))


def test_a_seed_decides_the_start_and_no_global_one() -> None:
    for kind in KINDS:
        first = CODERS[kind](7, 11, seed=3, **OPTIONS[kind])
        torch.manual_seed(5)
        again = CODERS[kind](7, 11, seed=3, **OPTIONS[kind])
        other = CODERS[kind](7, 11, seed=4, **OPTIONS[kind])
        assert not torch.equal(first.decoder, other.decoder)
        assert all(
            torch.equal(a, b)
            for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True)
        )


def test_bfloat16_rows_and_parameters_are_coded() -> None:
    for kind in KINDS:
        coder = small_coder(kind).to(torch.bfloat16).eval()
        x = small_rows(3).to(torch.bfloat16)
        assert coder(x).dtype == torch.bfloat16
        losses = coder.train().losses(x, Moment(dead=torch.ones(LATENTS, dtype=torch.bool)))
        losses.total.backward()
        assert torch.isfinite(losses.total)


def test_autocast_trains_float32_parameters() -> None:
    for kind in KINDS:
        coder = small_coder(kind).float().train()
        x = small_rows(19).float()
        moment = Moment(dead=torch.ones(LATENTS, dtype=torch.bool))
        plain = coder.losses(x, moment).total
        with torch.autocast("cpu", torch.bfloat16):
            half = coder.losses(x, moment)
        half.total.backward()
        assert half.total.dtype == torch.float32
        assert torch.allclose(half.total, plain, rtol=0.1)
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in coder.parameters())


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="`width` and `latents` must be positive, got 0 and 4"):
        CODERS["standard"](0, 4)
