"""Rows that a user has: tensors, tensors by site, streams."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sae.activations.as_activations import as_activations
from sae.activations.source import Activations
from sae.activations.tensor_rows import TensorActivations


def rows(count: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_pass_holds_every_row_once_in_an_order_of_the_epoch() -> None:
    x = rows(53)
    source = TensorActivations(x, heads=3, chunk_rows=11)
    assert isinstance(source, Activations)
    assert source.widths == {"input": 6} and source.heads == {"input": 3}
    passes = [torch.cat([c["input"] for c in source.chunks(e)]) for e in (0, 1, 0)]
    assert torch.equal(passes[0], passes[2]) and not torch.equal(passes[0], passes[1])
    for found in passes:
        assert torch.equal(found.sort(0).values, x.sort(0).values) and not torch.equal(found, x)
    parts = list(source.chunks(1))
    assert [part["input"].shape[0] for part in parts] == [10, 11, 10, 11, 11]
    assert torch.equal(next(iter(source.chunks(1, 3)))["input"], parts[3]["input"])
    plain = TensorActivations(x, seed=None, chunk_rows=11)
    assert torch.equal(torch.cat([c["input"] for c in plain.chunks(4)]), x)


def test_sites_of_fewer_rows_are_spread_over_the_chunks() -> None:
    source = TensorActivations(
        {"a": rows(30), "b": rows(6, 4)}, heads={"a": 2, "b": 4}, chunk_rows=10
    )
    assert source.rows == {"a": 30, "b": 6} and source.heads == {"a": 2, "b": 4}
    assert [c["b"].shape[0] for c in source.chunks(0)] == [2, 2, 2]


def test_streams() -> None:
    parts = [rows(5, seed=i) for i in range(4)]
    listed = TensorActivations(parts)
    first = [chunk["input"] for chunk in listed.chunks(0)]
    assert {int(x[0, 0] * 1e6) for x in first} == {int(x[0, 0] * 1e6) for x in parts}
    assert [listed.rows, len(first)] == [None, 4]
    made = TensorActivations(lambda epoch: (rows(5, seed=10 * epoch + i) for i in range(3)))
    assert torch.equal(next(iter(made.chunks(2, 1)))["input"], rows(5, seed=21))
    once = TensorActivations(iter(parts), name="x")
    assert torch.equal(torch.cat([c["x"] for c in once.chunks(0)]), torch.cat(parts))
    with pytest.raises(ValueError, match="gone through again, but the stream .* is at its end"):
        list(once.chunks(1))


def test_what_is_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'input' must be a floating tensor \[row width\], got"):
        TensorActivations(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="floating tensor"):
        TensorActivations(torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one row"):
        TensorActivations(torch.zeros(0, 3))
    with pytest.raises(ValueError, match=r"`heads` must divide the width of 'input', 6, got 4"):
        TensorActivations(rows(5), heads=4)
    with pytest.raises(ValueError, match="at least one chunk"):
        TensorActivations([])
    with pytest.raises(ValueError, match="must be a tensor .* got int"):
        TensorActivations(3)  # type: ignore[arg-type]
    uneven = TensorActivations([rows(5), rows(5, 7)], seed=None)
    with pytest.raises(ValueError, match=r"must be \[row 6\], got \[5, 7\] in chunk 1"):
        list(uneven.chunks(0))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_named(bad: float) -> None:
    x = rows(20)
    x[13, 2] = bad
    source = TensorActivations({"fine": rows(20), "vision.L2": x}, chunk_rows=5, seed=None)
    with pytest.raises(
        ValueError, match=r"vision.L2 must be finite.* in 1 of 5 rows of chunk 2 of"
    ):
        list(source.chunks(1))


def test_large_rows_are_no_infinity() -> None:
    x = torch.full((40, 6), 3e38)
    assert list(TensorActivations(x).chunks(0))
    assert list(TensorActivations(torch.full((40, 6), 6e4).half()).chunks(0))


def test_anything_becomes_a_source(tmp_path) -> None:
    source = TensorActivations(rows(5))
    assert as_activations(source) is source
    array = as_activations(np.ones((4, 6), dtype=np.float32), "vision.L0", 2)
    assert array.widths == {"vision.L0": 6} and array.heads == {"vision.L0": 2}
    with pytest.raises(ValueError, match=r"is not a store of head outputs: it has no plan.json"):
        as_activations(tmp_path)


def test_the_record_tells_tensors_apart() -> None:
    assert TensorActivations(rows(5)).about == TensorActivations(rows(5)).about
    assert TensorActivations(rows(5)).about != TensorActivations(rows(5, seed=1)).about
