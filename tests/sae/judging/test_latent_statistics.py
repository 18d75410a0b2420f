"""Firing of latents and duplicates, by hand and against loops."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hand_coders import identity, written

from sae.activations import TensorActivations
from sae.judging.duplicates import duplicates
from sae.judging.latent_statistics import LatentStatistics, LatentSums, latent_statistics
from sae.judging.one_pass import CodedRows
from tests.drawn_coders import drawn_coder


def test_by_hand() -> None:
    coder = written([[1, 0], [0, 1], [-1, 0]], [[1, 0], [0, 1], [1, 0.1]])
    rows = torch.tensor([[2.0, 0.0], [4.0, 3.0], [3.0, 0.0], [0.0, 0.0]])
    found = latent_statistics(coder, rows)
    assert found.rows == 4
    assert found.fired.tolist() == [3, 1, 0]
    assert found.density.tolist() == [0.75, 0.25, 0.0]
    assert found.mean_strength[:2].tolist() == [3.0, 3.0]
    assert found.largest_strength[:2].tolist() == [4.0, 3.0]
    assert math.isnan(found.mean_strength[2]) and math.isnan(found.largest_strength[2])
    assert found.dead_share == pytest.approx(1 / 3)
    assert found.dense_share == pytest.approx(2 / 3)
    assert found.duplicates is not None
    assert found.duplicates.shown.tolist() == [[0, 2]]
    assert found.duplicates.cosines.tolist() == pytest.approx([1 / math.sqrt(1.01)])


def of(fired: list[int], rows: int) -> LatentStatistics:
    nothing = torch.full((len(fired),), math.nan)
    return LatentStatistics(rows, torch.tensor(fired), nothing, nothing)


def test_dense_is_above_a_tenth_and_dead_is_never() -> None:
    found = of([0, 1, 10, 11, 100], 100)
    assert found.dense_share == pytest.approx(2 / 5)
    assert found.dead_share == pytest.approx(1 / 5)


def test_histogram_by_hand() -> None:
    # log10: -2 (1 of 100), -1 (10), -0.699 (20), 0 (100); the dead one is in no bin.
    edges, counts = of([0, 1, 10, 20, 100, 100], 100).density_histogram(0.5)
    assert edges == [-2.0, -1.5, -1.0, -0.5, 0.0]
    assert counts == [1, 0, 2, 2]
    # The rarest possible latent has a bin, also where its logarithm is between two edges.
    edges, counts = of([1, 997], 997).density_histogram(0.25)
    assert edges[0] <= math.log10(1 / 997) < edges[0] + 0.25
    assert (counts[0], counts[-1], sum(counts)) == (1, 1, 2)
    assert of([1, 0], 1).density_histogram()[1][-1] == 1


@pytest.mark.parametrize("chunk_rows", [1, 3, 64])
def test_as_loops_whatever_the_batches(chunk_rows: int) -> None:
    coder = drawn_coder(15, 23)
    rows = torch.randn(61, 15, generator=torch.Generator().manual_seed(4))
    found = latent_statistics(coder, TensorActivations(rows, chunk_rows=chunk_rows))
    strengths = coder.encode(rows).double()
    for latent in range(23):
        fired = [float(value) for value in strengths[:, latent] if value != 0]
        assert found.fired[latent] == len(fired)
        if fired:
            assert found.mean_strength[latent] == pytest.approx(sum(fired) / len(fired), rel=1e-6)
            assert found.largest_strength[latent] == pytest.approx(max(fired), rel=1e-6)
    assert found.dead_share + found.dense_share > 0
    json.dumps(found.record(), allow_nan=False)


def test_strengths_with_signs_are_not_taken_for_silence() -> None:
    sums = LatentSums(2)
    strengths = torch.tensor([[-3.0, 0.0], [-1.0, 0.0]])
    sums.add(CodedRows(torch.zeros(2, 1), strengths, torch.zeros(2, 1)))
    found = sums.statistics()
    assert found.fired.tolist() == [2, 0]
    assert found.largest_strength[0] == -1.0
    assert found.mean_strength[0] == -2.0


@pytest.mark.parametrize("block_rows", [1, 4, 7, 100])
def test_duplicates_as_all_pairs(block_rows: int) -> None:
    generator = torch.Generator().manual_seed(6)
    rows = torch.randn(31, 5, generator=generator)
    rows[7] = 2 * rows[3] + 0.05 * rows[4]
    rows[19] = 0.5 * rows[3]
    rows[30] = -rows[3]
    rows[11] = 0
    found = duplicates(rows, 0.8, block_rows=block_rows)
    expected = {}
    for i in range(31):
        for j in range(i + 1, 31):
            size = float(rows[i].norm() * rows[j].norm())
            cosine = float(rows[i] @ rows[j]) / size if size else 0.0
            if cosine > 0.8:
                expected[i, j] = cosine
    assert found.pairs == len(expected) >= 3
    named = [(int(i), int(j)) for i, j in found.shown]
    assert set(named) == set(expected)
    assert named[0] == (3, 19)
    assert found.cosines.tolist() == pytest.approx([expected[p] for p in named], abs=1e-6)
    assert found.cosines.tolist() == sorted(found.cosines.tolist(), reverse=True)
    touched = {latent for pair in expected for latent in pair}
    assert found.share == pytest.approx(len(touched) / 31)
    assert 30 not in touched and 11 not in touched


def test_many_pairs_are_counted_and_few_kept() -> None:
    found = duplicates(torch.ones(60, 3), block_rows=17)
    assert found.pairs == 60 * 59 // 2
    assert len(found.shown) == len({tuple(pair) for pair in found.shown.tolist()}) == 1_000
    assert found.share == 1.0
    assert len(found.record()["closest"]) == 10


def test_a_basis_and_its_negative_have_none() -> None:
    found = duplicates(identity(9).decoder)
    assert (found.pairs, found.share) == (0, 0.0)
    with pytest.raises(ValueError, match="`threshold` must be between 0 and 1, got 1.5"):
        duplicates(torch.ones(2, 2), 1.5)
