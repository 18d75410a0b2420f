"""Shares of heads by weights and by data, and how many roles a head has."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sae.activations.tensor_rows import TensorActivations
from sae.reading.head_shares import decoder_shares, firing_shares, top_features
from sae.reading.polysemanticity import (
    co_firing,
    effective_number,
    polysemanticity,
    slice_similarity,
)
from tests.drawn_coders import drawn_coder

ROWS = torch.randn(211, 15, generator=torch.Generator().manual_seed(8))


def activations(chunk: int | None = None) -> TensorActivations:
    parts = ROWS if chunk is None else list(ROWS.split(chunk))
    return TensorActivations(parts, name="input", heads=5)


def test_decoder_shares_by_hand() -> None:
    coder = drawn_coder(6, 3, k=2)
    with torch.no_grad():
        coder.decoder[0] = torch.tensor([3.0, 4.0, 0.0, 0.0, 0.0, 5.0])
        coder.decoder[1] = 0.0
    shares = decoder_shares(coder, 3)
    assert torch.allclose(shares[0], torch.tensor([0.5, 0.0, 0.5]))
    assert bool(shares[1].isnan().all())
    assert float(shares[2].sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match="`heads` must divide the coder's width 6, got 4"):
        decoder_shares(coder, 4)


def test_firing_shares_equal_loops_whatever_the_chunks() -> None:
    coder = drawn_coder(15, 11, k=4)
    found = firing_shares(activations(), coder, "input")
    strengths = coder.encode(ROWS)
    mean, size = torch.zeros(11, 5), torch.zeros(11, 5)
    for latent in range(11):
        fires = [row for row in range(211) if float(strengths[row, latent]) != 0]
        assert int(found.firings[latent]) == len(fires)
        for head in range(5):
            part = slice(3 * head, 3 * head + 3)
            added = [float(ROWS[row, part] @ coder.encoder[latent, part]) for row in fires]
            mean[latent, head] = sum(added) / len(added) if added else math.nan
            size[latent, head] = sum(map(abs, added)) / len(added) if added else math.nan
    assert torch.allclose(found.mean.float(), mean, atol=1e-5, equal_nan=True)
    assert torch.allclose(found.mean_size.float(), size, atol=1e-5, equal_nan=True)
    assert not torch.allclose(mean.abs(), size, atol=1e-3)
    assert found.rows == 211
    other = firing_shares(activations(17), coder, "input")
    assert torch.allclose(found.mean_size, other.mean_size, atol=1e-9, equal_nan=True)
    assert torch.allclose(found.shares.nansum(1), (found.firings > 0).double())
    with pytest.raises(ValueError, match="must have site vision.L1 with width 15"):
        firing_shares(activations(), coder, "vision.L1")


def test_firing_shares_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    coder = drawn_coder(15, 11, k=4)
    whole = firing_shares(activations(), coder, "input")
    monkeypatch.setattr("sae.reading.head_shares._ELEMENTS", 40)
    small = firing_shares(activations(), coder, "input")
    assert torch.allclose(whole.mean, small.mean, atol=1e-9, equal_nan=True)
    assert torch.equal(whole.firings, small.firings)


def test_a_latent_that_never_fires_has_no_shares() -> None:
    coder = drawn_coder(15, 11, k=4)
    coder.encoder_bias[3] = -1e4
    found = firing_shares(activations(), coder, "input")
    assert int(found.firings[3]) == 0 and bool(found.shares[3].isnan().all())


def test_top_features_are_largest_first_and_only_the_living() -> None:
    shares = torch.tensor([[0.1, 0.9], [0.5, 0.5], [math.nan, math.nan], [0.5, 0.5], [0.7, 0.3]])
    assert top_features(shares, 3).tolist() == [[4, 1, 3], [0, 1, 3]]
    alive = torch.tensor([True, False, True, True, True])
    assert top_features(shares, 3, alive).tolist() == [[4, 3, 0], [0, 3, 4]]
    assert top_features(shares, 9).shape == (2, 5)
    assert top_features(shares, 9)[:, -1].tolist() == [2, 2]
    assert top_features(shares, 9, alive).shape == (2, 4)


def test_the_effective_number_by_hand() -> None:
    assert effective_number(torch.ones(7, 7)) == pytest.approx(1)
    assert effective_number(torch.eye(7)) == pytest.approx(7)
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(1, 1))
    expected = math.exp(-(2 / 3) * math.log(2 / 3) - (1 / 3) * math.log(1 / 3))
    assert effective_number(blocks) == pytest.approx(expected)
    half = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    expected = math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert effective_number(half) == pytest.approx(expected)
    assert math.isnan(effective_number(torch.ones(0, 0)))


def test_a_head_with_one_role_is_told_from_random_features() -> None:
    coder = drawn_coder(30, 60, k=5)
    with torch.no_grad():  # ten features write one direction at head 1, with either sign
        signs = torch.tensor([1.0, -1.0]).repeat(5)[:, None]
        coder.decoder[:10] *= 0.1
        coder.decoder[:10, 6:12] = signs * torch.arange(1.0, 7.0)
    top = top_features(decoder_shares(coder, 5), 10)
    assert sorted(top[1].tolist()) == list(range(10))
    found = polysemanticity(top, slice_similarity(coder, 5), torch.arange(60), draws=40)
    assert float(found.roles[1]) == pytest.approx(1, abs=1e-4)
    assert float(found.null_low[1]) > 2
    others = [0, 2, 3, 4]
    assert bool((found.roles[others] > 3).all())
    assert bool((found.null_low <= found.null_mean).all())
    assert bool((found.null_mean <= found.null_high).all())
    again = polysemanticity(top, slice_similarity(coder, 5), torch.arange(60), draws=40)
    assert torch.equal(found.null_mean, again.null_mean)
    read = polysemanticity(top, slice_similarity(coder, 5, "encoder"), torch.arange(60), draws=9)
    assert float(read.roles[1]) > 3
    with pytest.raises(ValueError, match="`of` must be 'decoder' or 'encoder'"):
        slice_similarity(coder, 5, "both")
    with pytest.raises(ValueError, match="at least 10 candidates and one draw, got 4"):
        polysemanticity(top, slice_similarity(coder, 5), torch.arange(4))


def test_co_firing_equals_loops() -> None:
    coder = drawn_coder(15, 11, k=4)
    coder.encoder_bias[3] = -1e4
    features = torch.tensor([9, 3, 0, 5])
    found = co_firing(activations(17), coder, "input", features)
    fires = coder.encode(ROWS) != 0

    def cosine(one: int, other: int) -> float:
        if one == other:
            return 1.0
        both = sum(bool(row[one] and row[other]) for row in fires)
        size = int(fires[:, one].sum()) * int(fires[:, other].sum())
        return both / math.sqrt(size) if size else 0.0

    matrix: Tensor = found(2, torch.tensor([5, 3, 9]))
    for i, one in enumerate((5, 3, 9)):
        for j, other in enumerate((5, 3, 9)):
            assert float(matrix[i, j]) == pytest.approx(cosine(one, other))
    with pytest.raises(ValueError, match="Firings must have been counted for every feature"):
        found(0, torch.tensor([5, 7]))
