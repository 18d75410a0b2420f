"""Closed forms for replaced queries and keys, against brute force and autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from synthetic_calls import random_call, text_tokens, whole_call
from torch import Tensor

from analysis.importance.estimates.attention_gradients import NodeDrops, node_drops
from probes.attention_call import AttentionCall

IDS = [[9, 4, 7, 4, 5], [9, 3, 2, 1, 6, 8, 4]]


def call_of(
    side: str = "left", causal: bool = True, kv_heads: int = 2, sharpness: float = 6.0
) -> AttentionCall:
    return random_call(
        text_tokens(IDS, side=side), heads=6, kv_heads=kv_heads, causal=causal, sharpness=sharpness
    )


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def z_of(call: AttentionCall, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Float64 ``[batch head query width]`` by plain attention over all pairs."""
    group = call.heads // call.kv_heads
    query, key, value = query.double(), key.double(), value.double()
    scores = query @ key.repeat_interleave(group, 1).mT * call.scale
    allowed = call.allowed(slice(None), slice(0, call.queries), call.keys)
    scores = scores.masked_fill(~allowed, float("-inf"))
    pattern = torch.softmax(scores, -1).nan_to_num(0.0)
    return pattern @ value.repeat_interleave(group, 1)


def parts(call: AttentionCall) -> tuple[Tensor, Tensor, Tensor]:
    assert call.query is not None and call.key is not None
    return call.query, call.key, call.value


def drops_of(call: AttentionCall, gradient: Tensor, rows: int | None = None) -> NodeDrops:
    query, key, value = drawn(6, 1, 7, seed=1), drawn(call.kv_heads, 1, 7, seed=2), 0.3
    return node_drops(
        call, [gradient], query=query, key=key, value=torch.full((1,), value), rows=rows
    )[0]


@pytest.fixture(params=["left", "right", "two-way", "single keys"])
def call(request: pytest.FixtureRequest) -> AttentionCall:
    kind = request.param
    if kind == "two-way":
        return call_of("right", causal=False)
    if kind == "single keys":
        return call_of(kv_heads=6)
    return call_of(kind)


def test_query_fix_is_exact_on_a_metric_linear_in_the_pattern(call: AttentionCall) -> None:
    query, key, value = parts(call)
    gradient = drawn(2, 6, call.queries, 5, seed=3)
    metric = (z_of(call, query, key, value) * gradient).sum(-1)
    other = drawn(6, 1, 7, seed=1).expand_as(query)
    expected = metric - (z_of(call, other, key, value) * gradient).sum(-1)
    assert torch.allclose(drops_of(call, gradient).query.double(), expected, atol=1e-4)
    assert float(expected.abs().amax()) > 1


def test_key_fix_is_that_of_every_key_replaced_alone(call: AttentionCall) -> None:
    query, key, value = parts(call)
    gradient = drawn(2, 6, call.queries, 5, seed=3)
    metric = (z_of(call, query, key, value) * gradient).sum(-1)
    expected = torch.zeros_like(metric)
    other = drawn(call.kv_heads, 1, 7, seed=2).expand_as(key)
    for place in range(call.keys):
        changed = key.clone()
        changed[:, :, place] = other[:, :, place]
        expected += metric - (z_of(call, query, changed, value) * gradient).sum(-1)
    assert torch.allclose(drops_of(call, gradient).key.double(), expected, atol=1e-4)
    assert float(expected.abs().amax()) > 1


def test_plain_estimates_are_those_of_autograd(call: AttentionCall) -> None:
    gradient = drawn(2, 6, call.queries, 5, seed=3)
    # One leaf per query head, so that shared keys are told apart.
    group = call.heads // call.kv_heads
    query, key, value = (t.detach().double() for t in parts(call))
    key, value = (t.repeat_interleave(group, 1) for t in (key, value))
    alone = call_of(kv_heads=6)
    alone.mask, alone.scale = call.mask, call.scale
    query.requires_grad_(True)
    key.requires_grad_(True)
    value.requires_grad_(True)
    metric = (z_of(alone, query, key, value) * gradient).sum()
    dq, dk, dv = torch.autograd.grad(metric, [query, key, value])
    new_query = drawn(6, 1, 7, seed=1)
    new_key = drawn(call.kv_heads, 1, 7, seed=2).repeat_interleave(group, 0)
    found = drops_of(call, gradient)
    expected = {
        "query_plain": ((query - new_query) * dq).sum((-1, -2)),
        "key_plain": ((key - new_key) * dk).sum((-1, -2)),
        "value": ((value - 0.3) * dv).sum((-1, -2)),
    }
    for node, total in expected.items():
        made = getattr(found, node).double().sum(-1)
        assert torch.allclose(made, total.detach(), rtol=1e-3, atol=1e-4), node


def test_tiles_change_nothing(call: AttentionCall) -> None:
    gradient = drawn(2, 6, call.queries, 5, seed=3)
    whole, split = drops_of(call, gradient), drops_of(call, gradient, rows=2)
    for node in ("query", "query_plain", "key", "key_plain", "value"):
        assert torch.allclose(getattr(whole, node), getattr(split, node), atol=1e-5)


def test_key_fix_survives_a_row_that_reads_one_key_alone() -> None:
    """1 - p is far below what a float near 1 can tell, and still decides where attention goes."""
    call = call_of(kv_heads=6)
    query, key, value = (t.double() for t in parts(call))
    call.query, call.key = query.float() * 9, key.float()
    other = -2 * key.float()
    gradient = drawn(2, 6, call.queries, 5, seed=3)
    metric = (z_of(call, call.query, call.key, value) * gradient).sum(-1)
    expected = torch.zeros_like(metric)
    for place in range(call.keys):
        changed = call.key.clone()
        changed[:, :, place] = other[:, :, place]
        expected += metric - (z_of(call, call.query, changed, value) * gradient).sum(-1)
    made = node_drops(call, [gradient], query=torch.zeros(1), key=other, value=torch.zeros(1))[0]
    pattern = call.pattern()
    assert bool((pattern[:, :, 1:] == 1).any()), "some row must be saturated for this test"
    assert torch.isfinite(made.key).all()
    assert torch.allclose(made.key.double(), expected, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda p, moved, g, total: (p - moved) * g,  # the other keys of the row do not change
        lambda p, moved, g, total: (p - moved) * (g - total),  # they change, but not by 1 / (1 - p)
    ],
)
def test_simpler_key_formulas_are_wrong(wrong: Callable[..., Tensor]) -> None:
    call = call_of(kv_heads=6)
    query, key, value = (t.double() for t in parts(call))
    gradient = drawn(2, 6, call.queries, 5, seed=3).double()
    scores = (query @ key.mT * call.scale).tril()
    other = (query @ drawn(6, 1, 7, seed=2).double().expand_as(key).mT * call.scale).tril()
    p = call.pattern().double()
    g = gradient @ value.mT
    total = (p * g).sum(-1, keepdim=True)
    odds = p.clamp(1e-12, 1 - 1e-12).logit()
    moved = torch.sigmoid(odds + other - scores)
    guess = wrong(p, moved, g, total).sum(-1)
    right = drops_of(call, gradient.float()).key.double()
    assert not torch.allclose(guess, right, atol=1e-1)


def test_half_precision_keys_are_read_in_float32() -> None:
    call = call_of(sharpness=2.0)
    gradient = drawn(2, 6, call.queries, 5, seed=3)
    exact = drops_of(call, gradient)
    query, key, value = parts(call)
    call.query, call.key, call.value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    half = node_drops(
        call, [gradient],
        query=drawn(6, 1, 7, seed=1), key=drawn(2, 1, 7, seed=2), value=torch.full((1,), 0.3),
    )[0]  # fmt: skip
    assert half.key.dtype == torch.float32
    for node in ("query", "key"):
        assert torch.allclose(getattr(half, node), getattr(exact, node), atol=0.2)


def test_a_written_out_softmax_has_no_queries() -> None:
    pattern = torch.softmax(drawn(2, 3, 5, 5), -1)
    call = whole_call(pattern)
    some = torch.zeros(1)
    with pytest.raises(ValueError, match="writes out its own softmax there"):
        node_drops(call, [drawn(2, 3, 5, 3)], query=some, key=some, value=some)


def test_values_are_left_out_where_none_are_given(call: AttentionCall) -> None:
    gradient = drawn(2, 6, call.queries, 5, seed=3)
    whole = drops_of(call, gradient)
    query, key = drawn(6, 1, 7, seed=1), drawn(call.kv_heads, 1, 7, seed=2)
    (found,) = node_drops(call, [gradient], query=query, key=key)
    assert found.value is None and whole.value is not None
    for node in ("query", "query_plain", "key", "key_plain"):
        assert torch.equal(getattr(found, node), getattr(whole, node))
