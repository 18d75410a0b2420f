"""Adam on a coder against torch's own, by hand: rates, clipping, rows of the decoder, moments."""

from __future__ import annotations

import pytest
import torch
from small_coders import small_coder, small_rows

from sae.coders.coder import Moment
from sae.coders.defaults import Defaults
from sae.training.distributed import Processes
from sae.training.optimiser import Optimiser
from sae.training.schedule import Schedule

SCHEDULE = Schedule(steps=9, warm_up=3, decay=4, sparsity_warm_up=0)
PEAK = 0.02


def optimiser(coder, clip: float | None = None) -> Optimiser:
    chosen = Defaults(learning_rate=PEAK, betas=(0.5, 0.9), source="here")
    made = Optimiser(coder, chosen, SCHEDULE, clip, Processes())
    made.place(torch.device("cpu"))
    return made


def learn(coder, mine: Optimiser, step: int) -> torch.Tensor:
    size = mine.read(coder.losses(small_rows(seed=step), Moment(step=step)).total)
    mine.step(step)
    return size


def test_rates_follow_the_schedule_in_groups_of_their_own():
    coder = small_coder("jump_relu").train()
    mine = optimiser(coder)
    assert [mine.rate(step) / PEAK for step in range(9)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4]
    )
    learn(coder, mine, 7)
    rates = [group["lr"] for group in mine.adam.param_groups]
    assert rates == pytest.approx([PEAK / 2, PEAK / 2 * 5**0.5])  # thresholds move faster


@pytest.mark.parametrize("clip", [None, 0.37])
def test_steps_are_torchs_with_the_rules_of_the_decoder(clip: float | None):
    coder, by_hand = small_coder("topk").train(), small_coder("topk").train()
    mine = optimiser(coder, clip)
    adam = torch.optim.Adam(by_hand.parameters(), lr=PEAK, betas=(0.5, 0.9))
    for step in range(4):
        size = learn(coder, mine, step)
        loss = by_hand.losses(small_rows(seed=step), Moment(step=step)).total
        loss.backward()
        rows, gradient = by_hand.decoder.detach(), by_hand.decoder.grad
        assert gradient is not None
        unit = rows / rows.norm(dim=1, keepdim=True)
        gradient -= (gradient * unit).sum(1, keepdim=True) * unit
        gradients = [p.grad for p in by_hand.parameters() if p.grad is not None]
        norm = torch.cat([one.flatten() for one in gradients]).norm()
        if clip is not None:
            assert norm > clip, "nothing is clipped here: the test is empty"
            for one in gradients:
                one *= clip / norm
        adam.param_groups[0]["lr"] = PEAK * SCHEDULE.learning_rate(step)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            by_hand.decoder /= by_hand.decoder.norm(dim=1, keepdim=True)
        wanted = loss.detach() if clip is None else loss.detach() + norm
        assert size.item() == pytest.approx(wanted.item(), rel=1e-9)
        for name, value in coder.state_dict().items():
            assert torch.allclose(value, by_hand.state_dict()[name], rtol=1e-5, atol=1e-7), name
    assert all(parameter.grad is None for parameter in coder.parameters())


def test_moments_are_taken_up_by_another():
    coder = small_coder("gated").train()
    mine = optimiser(coder)
    for step in range(3):
        learn(coder, mine, step)
    other = small_coder("gated", seed=4).train()
    other.load_state_dict(coder.state_dict())
    again = optimiser(other)
    kept = {name: value.clone() for name, value in mine.tensors().items()}
    # Six parameters, each with its steps and two moments; other tensors are left alone.
    assert len(kept) == 6 * 3 and all(name.startswith("optimiser/") for name in kept)
    again.restore({**kept, "coder/encoder": torch.zeros(1)})
    for step in range(3, 6):
        learn(coder, mine, step)
        learn(other, again, step)
    for name, value in other.state_dict().items():
        assert torch.equal(value, coder.state_dict()[name]), name
    fresh = small_coder("gated").train()
    fresh.load_state_dict(coder.state_dict())
    forgetful = optimiser(fresh)
    learn(coder, mine, 6)
    learn(fresh, forgetful, 6)
    assert not torch.equal(fresh.encoder, coder.encoder)
