"""Resampling: which latents begin again, where, and what the optimiser forgets."""

from __future__ import annotations

import pytest
import torch
from small_coders import KINDS, LATENTS, WIDTH, small_coder, small_rows

from sae.coders.coder import Moment
from sae.coders.resampling import Resampled, resample
from sae.coders.standard import Standard

DEAD = torch.tensor([i in (1, 4, 6) for i in range(LATENTS)])
LIVE = ~DEAD


def stepped(coder: torch.nn.Module, x: torch.Tensor) -> torch.optim.Adam:
    optimiser = torch.optim.Adam(coder.parameters(), lr=1e-3)
    coder.losses(x, Moment(dead=DEAD)).total.backward()  # type: ignore[operator]
    optimiser.step()
    optimiser.zero_grad()
    return optimiser


@pytest.mark.parametrize("kind", KINDS)
def test_dead_latents_begin_again_at_rows_and_others_stay(kind: str) -> None:
    coder, x = small_coder(kind).train(), small_rows(40)
    optimiser = stepped(coder, x)
    kept = {name: value.detach().clone() for name, value in coder.state_dict().items()}
    moments = {n: optimiser.state[p]["exp_avg_sq"].clone() for n, p in coder.named_parameters()}
    assert resample(coder, optimiser, x, DEAD) == Resampled(renewed=3, left=0)

    directions = x - coder.decoder_bias
    directions = directions / directions.norm(dim=1, keepdim=True)
    assert torch.allclose((coder.decoder[DEAD] @ directions.T).amax(1), torch.ones(3).double())
    norm = 0.2 * kept["encoder"][LIVE].norm(dim=1).mean()
    assert torch.allclose(coder.encoder[DEAD], coder.decoder[DEAD] * norm)
    assert torch.allclose(coder.encoder_bias[DEAD], torch.zeros(3).double())
    if kind == "gated":
        assert coder.magnitude_bias[DEAD].abs().sum() == 0  # type: ignore[index]
        assert coder.magnitude_log_scale[DEAD].abs().sum() == 0  # type: ignore[index]
    if kind == "jump_relu":
        assert coder.threshold[DEAD].tolist() == [coder.start] * 3  # type: ignore[index]

    for name, parameter in coder.named_parameters():
        state = optimiser.state[parameter]
        if name == "decoder_bias":
            assert torch.equal(parameter, kept[name])
            assert torch.equal(state["exp_avg_sq"], moments[name])
            continue
        assert torch.equal(parameter[LIVE], kept[name][LIVE]), name
        assert state["exp_avg"][DEAD].abs().sum() == 0 == state["exp_avg_sq"][DEAD].abs().sum()
        assert torch.equal(state["exp_avg_sq"][LIVE], moments[name][LIVE])
        assert moments[name][LIVE].abs().sum() > 0


def test_rows_are_drawn_by_the_square_of_their_loss() -> None:
    """Losses 1 and 3: nine times in ten the second row."""
    x = torch.tensor([[1.0, 0.0], [0.0, 3.0**0.5]])
    dead, second = torch.tensor([False, True]), 0
    for seed in range(600):
        coder = Standard(2, 2, form="kissane")
        with torch.no_grad():
            coder.encoder.fill_(-1.0)
        resample(coder, None, x, dead, seed=seed)
        second += int(coder.decoder[1, 1] > 0.5)
    assert second / 600 == pytest.approx(0.9, abs=0.04)


def test_fewer_rows_than_dead_latents_renew_as_many() -> None:
    coder, x = small_coder("standard"), small_rows(2)
    before = coder.decoder.detach().clone()
    assert resample(coder, None, x, DEAD) == Resampled(renewed=2, left=1)
    changed = (coder.decoder != before).any(1)
    assert changed.nonzero().flatten().tolist() == [1, 4]
    # Two rows, each taken once.
    assert not torch.allclose(coder.decoder[1], coder.decoder[4])


def test_rows_that_are_reconstructed_or_lie_at_the_bias_are_not_drawn() -> None:
    coder = Standard(2, 3, form="kissane", centred=True)
    with torch.no_grad():
        coder.encoder.fill_(0.0)
        coder.encoder[0, 0] = 1.0
        coder.decoder[0] = torch.tensor([1.0, 0.0])
    # Row 0 is read in full, row 1 is the bias itself: row 2 alone can be drawn.
    x = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, -3.0]])
    dead = torch.tensor([False, True, True])
    assert resample(coder, None, x, dead) == Resampled(renewed=1, left=1)
    assert coder.decoder[1].tolist() == [0.0, -1.0]


def test_nothing_dead_or_no_rows_change_nothing() -> None:
    coder = small_coder("standard")
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    nobody = torch.zeros(LATENTS, dtype=torch.bool)
    assert resample(coder, None, small_rows(), nobody) == Resampled(0, 0)
    assert resample(coder, None, small_rows(0), DEAD) == Resampled(0, 3)
    at_bias = coder.decoder_bias.detach().expand(4, WIDTH)
    assert resample(coder, None, at_bias, DEAD) == Resampled(0, 3)
    assert all(torch.equal(value, before[name]) for name, value in coder.state_dict().items())


def test_a_dictionary_without_a_live_latent_begins_again() -> None:
    coder = small_coder("standard")
    norm = 0.2 * coder.encoder.norm(dim=1).mean().item()
    everyone = torch.ones(LATENTS, dtype=torch.bool)
    assert resample(coder, None, small_rows(50), everyone).renewed == LATENTS
    assert torch.allclose(coder.encoder.norm(dim=1), torch.full((LATENTS,), norm).double())


def test_a_width_of_as_many_latents_keeps_the_bias_of_the_output() -> None:
    coder, x = Standard(4, 4, form="kissane"), torch.randn(9, 4, generator=torch.manual_seed(0))
    optimiser = torch.optim.Adam(coder.parameters())
    coder.losses(x, Moment()).total.backward()
    optimiser.step()
    kept = optimiser.state[coder.decoder_bias]["exp_avg"].clone()
    resample(coder, optimiser, x, torch.tensor([True, False, False, True]))
    assert torch.equal(optimiser.state[coder.decoder_bias]["exp_avg"], kept)
    assert optimiser.state[coder.encoder_bias]["exp_avg"][[0, 3]].abs().sum() == 0


def test_the_draw_follows_its_seed_and_chunks_change_nothing() -> None:
    x = small_rows(40)
    found = []
    for seed, size in ((3, 40), (3, 7), (4, 40)):
        coder = small_coder("standard")
        resample(coder, None, x, DEAD, seed=seed, batch_size=size)
        found.append(coder.decoder.detach().clone())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_huge_and_tiny_losses_do_not_leave_the_range_of_numbers() -> None:
    for scale in (1e-12, 1e12):
        coder = Standard(3, 4, form="kissane", centred=False)
        x = scale * torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, -1.0]])
        with torch.no_grad():
            coder.encoder.fill_(0.0)
        assert resample(coder, None, x, torch.ones(4, dtype=torch.bool)).renewed == 3
        assert torch.isfinite(coder.decoder).all()
