"""BatchTopK and Matryoshka: against loops, and the threshold that replaces the batch."""

from __future__ import annotations

import pytest
import torch
from small_coders import LATENTS, ROWS, assert_gradients, small_coder, small_rows
from torch import Tensor

from sae.coders.batch_topk import BatchTopK
from sae.coders.coder import Coder, Moment
from sae.coders.jump_relu import JumpReLU
from sae.coders.matryoshka import Matryoshka

DEAD = torch.tensor([i in (1, 4, 6, 12) for i in range(LATENTS)])


def slow_pre(coder: Coder, x: Tensor) -> list[list[float]]:
    return [
        [
            ((row - coder.decoder_bias) @ coder.encoder[i] + coder.encoder_bias[i]).item()
            for i in range(coder.latents)
        ]
        for row in x
    ]


def slow_strengths(pre: list[list[float]], k: int) -> list[list[float]]:
    """All positive entries sorted, the first k per row on average kept."""
    entries = sorted(
        ((value, r, i) for r, row in enumerate(pre) for i, value in enumerate(row) if value > 0),
        reverse=True,
    )
    found = [[0.0] * len(row) for row in pre]
    for value, r, i in entries[: k * len(pre)]:
        found[r][i] = value
    return found


def slow_loss(coder: BatchTopK, x: Tensor, left: Tensor, prefixes: tuple[int, ...]) -> Tensor:
    """The mean over prefixes, and AuxK of an error that is held."""
    pre = slow_pre(coder, x)
    strengths = slow_strengths(pre, coder.k)
    spread = (left - left.mean(0)).pow(2).sum() / len(x)
    loss = torch.zeros((), dtype=torch.float64)
    for r, row in enumerate(x):
        for end in prefixes:
            made = coder.decoder_bias.clone()
            for i in range(end):
                made += strengths[r][i] * coder.decoder[i]
            loss += (row - made).pow(2).sum() / len(prefixes)
        dead = sorted((i for i in range(LATENTS) if DEAD[i]), key=lambda i: -pre[r][i])
        explained = torch.zeros_like(row)
        # An eighth of four dead latents is less than one: one it is.
        for i in dead[:1]:
            explained += pre[r][i] * coder.decoder[i]
        loss += 0.7 * (left[r] - explained).pow(2).sum() / spread
    return loss / len(x)


@pytest.mark.parametrize("kind", ["batch_topk", "matryoshka"])
@pytest.mark.parametrize("threshold", [-1.0, 0.2, 50.0])
def test_loss_and_gradients_are_those_of_loops(kind: str, threshold: float) -> None:
    """Wherever the running threshold stands that the search begins at."""
    coder = small_coder(kind)
    assert isinstance(coder, BatchTopK)
    coder.threshold.fill_(threshold)
    x = small_rows()
    losses = coder.losses(x, Moment(dead=DEAD))
    left = x - losses.reconstruction
    # A quarter of 13 is 3.25: the first prefix holds 3.
    prefixes = (3, LATENTS) if kind == "matryoshka" else (LATENTS,)
    with torch.no_grad():
        wanted = slow_loss(coder, x, left, prefixes)
        assert torch.allclose(losses.total, wanted)
        assert losses.fired.sum() == 3 * ROWS
        assert_gradients(coder, losses.total, lambda: slow_loss(coder, x, left, prefixes))


def test_rows_share_what_the_batch_has() -> None:
    coder = BatchTopK(2, 2, k=1, centred=False)
    with torch.no_grad():
        coder.encoder.copy_(torch.eye(2))
    pre = torch.tensor([[5.0, 4.0], [1.0, -2.0], [2.0, 0.5]])
    assert coder.trained_strengths(pre).tolist() == [[5.0, 4.0], [0.0, 0.0], [2.0, 0.0]]


def test_fewer_positive_values_than_wanted_all_fire() -> None:
    coder = BatchTopK(2, 2, k=2, centred=False)
    pre = torch.tensor([[-5.0, 4.0], [-1.0, -2.0]])
    assert coder.trained_strengths(pre).tolist() == [[0.0, 4.0], [0.0, 0.0]]
    assert coder.trained_strengths(pre.abs().neg()).abs().sum() == 0
    assert coder.threshold.item() == 4.0


def test_the_threshold_follows_the_least_that_fired() -> None:
    coder = BatchTopK(2, 2, k=1, threshold_rate=0.25)
    first, second = torch.tensor([[3.0, 2.0], [1.0, 0.5]]), torch.tensor([[9.0, 8.0], [6.0, 0.0]])
    assert coder.threshold.item() == -1.0
    coder.trained_strengths(first)
    assert coder.threshold.item() == 2.0
    coder.trained_strengths(second)
    assert coder.threshold.item() == pytest.approx(2 + 0.25 * (8 - 2))
    coder.eval().trained_strengths(first)
    assert coder.threshold.item() == pytest.approx(3.5)


def test_used_latents_fire_above_the_threshold_whatever_the_batch() -> None:
    coder = small_coder("batch_topk").eval()
    assert isinstance(coder, BatchTopK)
    x = small_rows(31)
    assert torch.equal(coder.encode(x), coder.pre_activations(x).relu())
    coder.set_threshold(x)
    # The least that fired is the threshold itself, and is not above it.
    coder.threshold.mul_(1 + 1e-9)
    together = coder.encode(x)
    assert torch.allclose(together, torch.cat([coder.encode(row[None]) for row in x]))
    assert (together > 0).sum() == 31 * 3 - 1
    used = coder.as_used()
    assert isinstance(used, JumpReLU)
    assert used.threshold.tolist() == [coder.threshold.item()] * LATENTS


def test_an_untrained_coder_becomes_one_without_a_threshold() -> None:
    coder = small_coder("matryoshka").eval()
    used = coder.as_used()
    assert used.architecture == "jump_relu"
    x = small_rows()
    assert torch.equal(used.encode(x), coder.encode(x))


def test_what_is_said_of_a_coder_goes_with_it() -> None:
    coder = small_coder("batch_topk").requires_grad_(False).eval()
    coder.about = {"site": "language.L2"}
    used = coder.as_used()
    assert used.about == {"site": "language.L2"}
    assert not used.training and not used.encoder.requires_grad


def test_prefixes_by_hand() -> None:
    """The first latent alone leaves 16, both leave 4: their mean is minimised."""
    coder = Matryoshka(2, 2, k=2, centred=False, group_shares=[0.5, 0.5])
    with torch.no_grad():
        coder.encoder.copy_(torch.eye(2))
        coder.decoder.copy_(torch.eye(2))
        coder.encoder_bias.copy_(torch.tensor([0.0, -2.0]))
    losses = coder.losses(torch.tensor([[3.0, 4.0]]), Moment())
    assert losses.parts["reconstruction"].item() == 4.0
    assert losses.parts["prefixes"].item() == 10.0 == losses.total.item()
    assert losses.reconstruction.tolist() == [[3.0, 2.0]]


def test_prefixes_are_shares_of_the_dictionary() -> None:
    assert Matryoshka(8, 640).prefixes == (20, 60, 140, 300, 640)
    assert Matryoshka(8, 10, k=2, group_shares=[0.3, 0.3, 0.4]).prefixes == (3, 6, 10)


def test_shares_that_make_no_prefixes_are_refused() -> None:
    for shares in ([0.5, 0.4], [], [1.5, -0.5]):
        with pytest.raises(ValueError, match="`group_shares` must be positive and sum to 1"):
            Matryoshka(8, 64, k=2, group_shares=shares)
    with pytest.raises(ValueError, match="a latent of its own, .* prefixes of \\[0, 10\\]"):
        Matryoshka(8, 10, k=2, group_shares=[0.01, 0.99])
