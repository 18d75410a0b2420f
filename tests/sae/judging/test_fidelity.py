"""Fidelity against numbers by hand, loops in float64, and formulas that are often put in place."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hand_coders import identity, nothing, written
from torch import Tensor

from sae.activations import TensorActivations
from sae.coders.coder import Coder
from sae.judging import one_pass
from sae.judging.fidelity import Fidelity, judge, judge_sites
from tests.drawn_coders import drawn_coder

HALVED = written([[1, 0], [0, 1]], [[0.5, 0], [0, 1]])
ROWS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [4.0, 2.0]])


def slow(coder: Coder, rows: Tensor, heads: int = 1) -> dict[str, float]:
    """Row by row, sums written out."""
    width = rows.shape[1]
    active = square = dot = made_square = cosine = ratio = 0.0
    sums, squares, errors = [0.0] * width, [0.0] * width, [0.0] * width
    for row in rows:
        x = row[None].to(coder.decoder)
        strengths = coder.encode(x)
        made = coder.decode(strengths)[0].double().tolist()
        x = x[0].double().tolist()
        active += int((strengths != 0).sum())
        one = sum(a * b for a, b in zip(x, made, strict=True))
        length, made_length = math.hypot(*x), math.hypot(*made)
        dot, square, made_square = dot + one, square + length**2, made_square + made_length**2
        cosine += one / (length * made_length)
        ratio += made_length / length
        for i in range(width):
            sums[i] += x[i]
            squares[i] += x[i] ** 2
            errors[i] += (x[i] - made[i]) ** 2
    n = len(rows)
    spread = [squares[i] / n - (sums[i] / n) ** 2 for i in range(width)]
    slices = [range(h * width // heads, (h + 1) * width // heads) for h in range(heads)]
    by_head = [1 - sum(errors[i] for i in s) / n / sum(spread[i] for i in s) for s in slices]
    return {
        "l0": active / n,
        "explained_variance": 1 - sum(errors) / n / sum(spread),
        "cosine": cosine / n,
        "l2_ratio": ratio / n,
        "reconstruction_bias": made_square / dot,
        "squared_error": sum(errors) / n,
        "variance": sum(spread),
        **{f"head {h}": value for h, value in enumerate(by_head)},
    }


def flat(found: Fidelity) -> dict[str, float | None]:
    numbers = found.record()
    numbers.pop("rows")
    by_head = numbers.pop("explained_variance_by_head")
    return numbers | {f"head {h}": value for h, value in enumerate(by_head)}


def test_by_hand() -> None:
    found = judge(HALVED, TensorActivations(ROWS, heads=2))
    assert found.rows == 3
    assert found.l0 == pytest.approx(4 / 3)
    # Errors 1, 0, 4; E|x|² = 25/3, E x = (2, 1).
    assert found.squared_error == pytest.approx(5 / 3)
    assert found.variance == pytest.approx(25 / 3 - 5)
    assert found.explained_variance == pytest.approx(0.5)
    assert found.explained_variance_by_head == pytest.approx((1 - 5 / 8, 1.0))
    assert found.cosine == pytest.approx((2 + 12 / math.sqrt(20 * 8)) / 3)
    assert found.l2_ratio == pytest.approx((0.5 + 1 + math.sqrt(8 / 20)) / 3)
    assert found.reconstruction_bias == pytest.approx(10 / 15)


@pytest.mark.parametrize("chunk_rows", [1, 2, 7, 101])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_as_loops_over_all_rows_whatever_the_batches(chunk_rows: int, dtype: torch.dtype) -> None:
    coder = drawn_coder(15, 23)
    rows = torch.randn(101, 15, generator=torch.Generator().manual_seed(1)).to(dtype)
    rows = rows * torch.linspace(0.2, 3, 101)[:, None].to(dtype) + 0.7
    found = judge(coder, TensorActivations(rows, heads=5, chunk_rows=chunk_rows))
    expected = slow(coder, rows, heads=5)
    assert flat(found).keys() == expected.keys()
    for name, value in expected.items():
        assert flat(found)[name] == pytest.approx(value, rel=1e-6), name


def test_memory_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    coder, rows = drawn_coder(15, 23), torch.randn(31, 15)
    whole = judge(coder, rows)
    monkeypatch.setattr(one_pass, "_BLOCK", 4 * 23)
    parts = judge(coder, rows)
    for name, value in flat(whole).items():
        assert flat(parts)[name] == pytest.approx(value, rel=1e-6), name


def test_it_is_not_the_mean_over_batches() -> None:
    rows = torch.cat([torch.randn(20, 4), 9 + 0.01 * torch.randn(20, 4)])
    coder = written(0.8 * torch.cat([torch.eye(4), -torch.eye(4)]), torch.eye(4).repeat(2, 1))
    coder.decoder[4:] *= -1
    found = judge(coder, TensorActivations(rows, chunk_rows=20, seed=None)).explained_variance
    parts = [judge(coder, part).explained_variance for part in rows.split(20)]
    assert found is not None
    assert found == pytest.approx(slow(coder, rows)["explained_variance"], rel=1e-5)
    assert abs(found - sum(part or 0 for part in parts) / 2) > 1


def test_a_far_mean_row_costs_no_digits() -> None:
    rows = torch.randn(997, 6, dtype=torch.float64)
    coder = identity(6, factor=0.9).double()
    near = judge(coder, rows)
    coder.decoder_bias += 3e6
    far = judge(coder, TensorActivations(rows + 3e6, chunk_rows=13))
    assert near.explained_variance == pytest.approx(0.99, abs=1e-3)
    assert far.explained_variance == pytest.approx(near.explained_variance, rel=1e-6)


def test_a_complete_dictionary_explains_everything() -> None:
    found = judge(identity(12), TensorActivations(torch.randn(53, 12) + 1, heads=3))
    assert found.explained_variance == pytest.approx(1, abs=1e-10)
    assert found.cosine == pytest.approx(1, abs=1e-10)
    assert found.reconstruction_bias == pytest.approx(1, abs=1e-6)
    assert found.l0 == 12


def test_shrinkage_that_was_planted_is_found() -> None:
    rows = torch.randn(53, 12)
    found = judge(identity(12, factor=0.7), rows)
    assert found.reconstruction_bias == pytest.approx(0.7, abs=1e-6)
    assert found.l2_ratio == pytest.approx(0.7, abs=1e-6)
    assert found.cosine == pytest.approx(1, abs=1e-6)
    # A lone feature of strength a that L1 reads as a - 0.5.
    strengths = torch.rand(211, 1, generator=torch.Generator().manual_seed(2)) + 1
    shrunk = written([[1, 0, 0]], [[1, 0, 0]], encoder_bias=[-0.5])
    found = judge(shrunk, strengths * torch.tensor([[1.0, 0, 0]]))
    a = strengths.double()
    expected = ((a - 0.5) ** 2).mean() / (a * (a - 0.5)).mean()
    assert found.reconstruction_bias == pytest.approx(expected.item(), rel=1e-6)
    assert found.reconstruction_bias is not None and found.reconstruction_bias < 0.75


def test_what_has_no_meaning_is_not_measured() -> None:
    still = judge(identity(3), torch.full((7, 3), 0.1))
    assert still.explained_variance is None
    assert still.explained_variance_by_head == (None,)
    assert still.cosine == pytest.approx(1, abs=1e-6)
    dark = judge(identity(3), torch.zeros(7, 3))
    assert (dark.cosine, dark.l2_ratio, dark.reconstruction_bias) == (None, None, None)
    none = judge(nothing(3), torch.randn(7, 3))
    assert none.reconstruction_bias is None
    assert none.cosine == 0.0 == none.l2_ratio
    assert none.explained_variance is not None and none.explained_variance < 0
    json.dumps([found.record() for found in (still, dark, none)], allow_nan=False)


def test_rows_of_zero_do_not_count_in_the_cosine() -> None:
    with_zero = judge(HALVED, torch.cat([ROWS, torch.zeros(2, 2)]))
    assert with_zero.cosine == pytest.approx(judge(HALVED, ROWS).cosine)
    assert with_zero.rows == 5


def test_several_sites_in_one_pass() -> None:
    class Once(TensorActivations):
        passes = 0

        def chunks(self, epoch: int, start: int = 0, every: int = 1):
            self.passes += 1
            return super().chunks(epoch, start, every)

    rows = {"language.L2": torch.randn(41, 15), "vision.L0": torch.randn(13, 6)}
    source = Once(rows, heads={"language.L2": 5, "vision.L0": 2}, chunk_rows=9)
    first, other, third = drawn_coder(15), drawn_coder(6), drawn_coder(15, seed=8)
    third.about = {"site": "language.L2"}
    coders = {"language.L2": first, "small": other, "again": third}
    found = judge_sites(coders, source, sites={"small": "vision.L0"})
    assert source.passes == 1
    for name, coder, site in (
        ("language.L2", first, "language.L2"),
        ("small", other, "vision.L0"),
        ("again", third, "language.L2"),
    ):
        expected = slow(coder, rows[site], heads=source.heads[site])
        assert flat(found[name]) == pytest.approx(expected, rel=1e-5)


def test_bad_input_is_refused_in_a_sentence() -> None:
    rows = {"a": torch.randn(5, 4), "b": torch.randn(5, 6)}
    with pytest.raises(ValueError, match="must be one of a, b, got None. Name it"):
        judge(drawn_coder(4), TensorActivations(rows))
    with pytest.raises(ValueError, match="must be one of a, b, got 'c'"):
        judge(drawn_coder(4), TensorActivations(rows), site="c")
    with pytest.raises(ValueError, match="must be as wide as the rows of b, 6, got 4"):
        judge(drawn_coder(4), TensorActivations(rows), site="b")
    broken = identity(4)
    broken.decoder[0, 0] = math.inf
    with pytest.raises(ValueError, match="'coder' must be finite, got NaN or infinity at input"):
        judge(broken, torch.randn(5, 4))
    with pytest.raises(ValueError, match="input must have at least one row, the data gave none"):
        judge(identity(4), _NoRows(torch.zeros(1, 4)))


class _NoRows(TensorActivations):
    def chunks(self, epoch: int, start: int = 0, every: int = 1):
        yield {"input": torch.zeros(0, 4)}
        yield {}
