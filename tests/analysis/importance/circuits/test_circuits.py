"""Factored circuits against their large products, eigenvalues and compositions known by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from analysis.importance.circuits.circuits import (
    absorbed,
    composition,
    copying,
    factored_norm,
    gram,
    mismatched,
    random_write,
)

HEADS, WIDTH, MODEL = 3, 5, 11


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_norm_is_that_of_the_large_product() -> None:
    left, right = drawn(HEADS, MODEL, WIDTH, seed=1), drawn(HEADS, WIDTH, 7, seed=2)
    large = (left.double() @ right.double()).flatten(1).norm(dim=1)
    torch.testing.assert_close(factored_norm(left, right), large, rtol=1e-12, atol=0)
    # By hand: [[1, 2], [0, 2]] @ [[1, 0], [1, 1]] = [[3, 2], [2, 2]], squares 9 + 4 + 4 + 4.
    two = factored_norm(torch.tensor([[1.0, 2], [0, 2]]), torch.tensor([[1.0, 0], [1, 1]]))
    assert float(two) == pytest.approx(21**0.5)


def test_copying_is_one_for_the_identity_and_minus_one_for_its_negative() -> None:
    frame = torch.linalg.qr(drawn(MODEL, WIDTH, seed=3)).Q
    assert float(copying(frame.mT, frame)) == pytest.approx(1.0)
    assert float(copying(-frame.mT, frame)) == pytest.approx(-1.0)
    # A quarter turn has eigenvalues i and -i: neither copied nor reversed.
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    assert float(copying(turn, torch.eye(2))) == pytest.approx(0.0, abs=1e-12)
    # Eigenvalues 3 and -1 of a triangular matrix: (3 - 1) / (3 + 1), whatever stands beside them.
    small = torch.tensor([[3.0, 8.0], [0.0, -1.0]])
    assert float(copying(small, torch.eye(2))) == pytest.approx(0.5)
    assert float(copying(torch.eye(2), small)) == pytest.approx(0.5)
    assert torch.isnan(copying(torch.zeros(2, 3), torch.zeros(3, 2)))


def test_copying_has_the_spectrum_of_the_large_map() -> None:
    write, read = drawn(HEADS, WIDTH, MODEL, seed=4), drawn(HEADS, MODEL, WIDTH, seed=5)
    words_in, words_out = drawn(13, MODEL, seed=6), drawn(MODEL, 13, seed=7)
    for between, large in (
        (None, read.double() @ write.double()),
        (
            words_out @ words_in,
            words_in.double() @ read.double() @ write.double() @ words_out.double(),
        ),
    ):
        values = torch.linalg.eigvals(large)
        expected = values.sum(-1).real / values.abs().sum(-1)
        torch.testing.assert_close(copying(write, read, between), expected, rtol=1e-4, atol=1e-5)


def test_composition_is_that_of_the_large_products() -> None:
    value, write = drawn(HEADS, MODEL, WIDTH, seed=8), drawn(HEADS, WIDTH, MODEL, seed=9)
    read, behind = drawn(2, MODEL, 7, seed=10), drawn(2, MODEL, 7, seed=11)
    found = composition(absorbed(value, write), absorbed(behind, read.mT).mT)
    assert found.shape == (HEADS, 2)
    for earlier in range(HEADS):
        for later in range(2):
            product = (value[earlier] @ write[earlier]) @ (read[later] @ behind[later].mT)
            assert float(found[earlier, later]) == pytest.approx(float(product.norm()), rel=1e-5)


def test_a_random_turn_keeps_the_size_and_meets_others_as_chance_does() -> None:
    write = drawn(HEADS, WIDTH, 97, seed=12)
    generator = torch.Generator().manual_seed(0)
    turned = random_write(write, generator)
    torch.testing.assert_close(gram(turned), gram(write), rtol=1e-4, atol=1e-4)
    assert float((turned - write).norm()) > 1
    wide = drawn(HEADS, 7, 5, seed=13)
    torch.testing.assert_close(
        gram(random_write(wide, generator)), gram(wide), rtol=1e-4, atol=1e-4
    )
    # Over many turns the mean square of the score is 1 / width.
    value, read = drawn(HEADS, 97, WIDTH, seed=14), drawn(HEADS, 97, WIDTH, seed=15)
    scale = factored_norm(value, write)[:, None] * factored_norm(read, read.mT)[None]
    columns = absorbed(read, read.mT).mT
    squares = [
        (composition(absorbed(value, random_write(write, generator)), columns) / scale)
        .square()
        .mean()
        for _ in range(40)
    ]
    assert float(torch.stack(squares).mean()) == pytest.approx(1 / 97, rel=0.1)


def test_mismatched_pairs_never_share_their_key_and_value_head() -> None:
    assert mismatched(3, (0, 1, 2)) == [(0, 1), (1, 2), (2, 0), (0, 2), (1, 0), (2, 1)]
    grouped = mismatched(6, (0, 0, 0, 1, 1, 1))
    assert all((one < 3) != (other < 3) for one, other in grouped) and len(grouped) == 18
    assert mismatched(4, (0, 0, 0, 0)) == [] and mismatched(1, (0,)) == []
    assert len(mismatched(32, tuple(range(32)))) == 64
