"""Tiles, masks and proofs of one attention call, against plain softmax."""

import math

import pytest
import torch
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.masks import FORBIDDEN, AttentionMask

BATCH, HEADS, KV_HEADS, QUERIES, KEYS, WIDTH = 2, 6, 3, 7, 11, 5


def make(
    mask: AttentionMask, *, kv_heads: int = HEADS, dtype: torch.dtype = torch.float32
) -> tuple[AttentionCall, Tensor]:
    """A call and its pattern by the textbook."""
    chance = torch.Generator().manual_seed(3)
    query = torch.randn(BATCH, HEADS, mask.queries, WIDTH, generator=chance)
    key = torch.randn(BATCH, kv_heads, mask.keys, WIDTH, generator=chance)
    value = torch.randn(BATCH, kv_heads, mask.keys, WIDTH, generator=chance)
    query, key, value = (t.to(dtype) for t in (query, key, value))
    wide = [t.float().repeat_interleave(HEADS // kv_heads, 1) for t in (key, value)]
    scores = query.float() @ wide[0].mT / math.sqrt(WIDTH)
    allowed = mask.allowed(slice(None), slice(0, mask.queries))
    if mask.tensor is not None and mask.tensor.dtype != torch.bool:
        scores = scores + mask.tensor
    pattern = scores.masked_fill(~allowed, -math.inf).softmax(-1).nan_to_num(0)
    z = (pattern @ wide[1]).to(dtype)
    call = AttentionCall(
        Site("language", 0), "a", 0, value, z, mask, query, key, 1 / math.sqrt(WIDTH)
    )
    return call, pattern


def padding() -> Tensor:
    keep = torch.ones(BATCH, 1, 1, KEYS, dtype=torch.bool)
    keep[0, ..., :4] = False
    return keep


def masks() -> dict[str, AttentionMask]:
    causal = torch.ones(KEYS, KEYS, dtype=torch.bool).tril()
    left_padded = causal & padding()
    window = left_padded & causal.triu(-3)
    bias = torch.randn(1, HEADS, KEYS, KEYS, generator=torch.Generator().manual_seed(1))
    biased = bias.masked_fill(~causal, torch.finfo(torch.float32).min)
    return {
        "none": AttentionMask(QUERIES, KEYS),
        "causal": AttentionMask(KEYS, KEYS, causal=True),
        "cross padded": AttentionMask(QUERIES, KEYS, tensor=padding()),
        "causal padded": AttentionMask(KEYS, KEYS, tensor=left_padded),
        "window padded": AttentionMask(KEYS, KEYS, tensor=window),
        "bias per head": AttentionMask(KEYS, KEYS, tensor=biased),
        "two axes": AttentionMask(KEYS, KEYS, tensor=causal),
        "minus ten thousand": AttentionMask(
            KEYS, KEYS, tensor=torch.where(causal, 0.0, -10000.0)[None, None]
        ),
    }


@pytest.mark.parametrize("name", list(masks()))
@pytest.mark.parametrize("kv_heads", [HEADS, KV_HEADS])
def test_pattern_is_the_softmax_whatever_the_mask_and_the_tiles(name: str, kv_heads: int) -> None:
    call, expected = make(masks()[name], kv_heads=kv_heads)
    assert torch.allclose(call.pattern(), expected, atol=1e-6)
    for rows in (1, 3, 64):
        for tile in call.tiles(rows=rows):
            part = expected[tile.batch, :, tile.rows]
            assert torch.allclose(tile.pattern, part[..., : tile.keys], atol=1e-6)
            assert not part[..., tile.keys :].any()
    assert call.worst_mismatch() < 1e-6
    spot = call.spot_mismatch()
    assert spot is not None and spot < 1e-6


def test_a_wrong_scale_or_a_forgotten_mask_does_not_pass_the_proof() -> None:
    call, _ = make(masks()["causal"])
    call.scale *= 1.1
    assert call.worst_mismatch() > 1e-3
    call, _ = make(masks()["causal padded"])
    call.mask = masks()["causal"]
    assert call.worst_mismatch() > 1e-3


def test_queries_that_may_read_nothing_are_empty_not_uniform_and_not_nan() -> None:
    call, _ = make(masks()["causal padded"])
    pattern = call.pattern()
    assert not pattern[0, :, :4].any()
    assert torch.allclose(pattern[1].sum(-1), torch.ones(HEADS, KEYS))


@pytest.mark.parametrize("name", ["none", "causal", "causal padded", "bias per head"])
def test_entropy_from_scores_is_the_entropy_of_the_pattern(name: str) -> None:
    call, expected = make(masks()[name])
    for tile in call.tiles(rows=3):
        part = expected[tile.batch, :, tile.rows].double()
        plain = torch.special.entr(part).sum(-1)
        assert torch.allclose(tile.entropy_nats.double(), plain, atol=1e-5)


def test_entropy_of_one_key_is_zero_and_of_a_uniform_row_its_logarithm() -> None:
    mask = AttentionMask(KEYS, KEYS, causal=True)
    call, _ = make(mask)
    assert call.query is not None
    call.query = torch.zeros_like(call.query)
    entropy = torch.cat([tile.entropy_nats for tile in call.tiles()], dim=-1)
    assert torch.allclose(entropy[0, 0], torch.arange(1, KEYS + 1).float().log(), atol=1e-5)


def test_counts_are_the_number_of_allowed_keys() -> None:
    for mask in masks().values():
        allowed = mask.allowed(slice(None), slice(0, mask.queries))[:, 0]
        assert torch.equal(mask.counts(), allowed.sum(-1))


def test_tiles_leave_out_keys_that_none_of_their_rows_may_read() -> None:
    ends = [tile.keys for tile in make(masks()["causal padded"])[0].tiles(rows=3)]
    assert max(ends) == KEYS
    assert ends[0] == 3
    window = masks()["window padded"]
    assert window.key_end(slice(0, 5)) == 5


def test_only_the_heads_that_are_asked_for_are_kept() -> None:
    call, expected = make(masks()["causal"])
    assert torch.allclose(call.pattern([4, 1]), expected[:, [4, 1]], atol=1e-6)


def test_half_precision_is_recomputed_in_float32() -> None:
    call, expected = make(masks()["causal"], dtype=torch.bfloat16)
    assert call.pattern().dtype == torch.float32
    assert torch.allclose(call.pattern(), expected, atol=1e-5)
    assert call.worst_mismatch() < 1e-2


def test_a_written_out_softmax_is_given_out_as_it_is() -> None:
    call, expected = make(masks()["causal"])
    written = AttentionCall(
        call.site, "a", 0, call.value, call.z, AttentionMask(KEYS, KEYS), whole=expected
    )
    assert torch.equal(written.pattern(), expected)
    assert written.worst_mismatch() < 1e-6
    allowed = written.allowed(slice(0, 1), slice(0, KEYS), KEYS)
    assert torch.equal(allowed[0, 0], torch.ones(KEYS, KEYS).tril().bool())


def test_score_edits_keep_what_a_learned_sink_takes() -> None:
    # Rows sum to .6: the sink keeps its .4 of the scores when a pair is forbidden.
    whole = torch.tensor([[[[0.3, 0.2, 0.1]]]])
    call = AttentionCall(
        Site("language", 0),
        "a",
        0,
        torch.ones(1, 1, 3, 2),
        torch.ones(1, 1, 1, 2),
        AttentionMask(1, 3),
        whole=whole,
    )
    call.score_edits.append(lambda _, scores: scores.index_fill(-1, torch.tensor([1]), -1e30))
    assert torch.allclose(call.pattern()[0, 0, 0], torch.tensor([0.375, 0.0, 0.125]), atol=1e-6)


def test_additive_values_up_to_the_limit_forbid() -> None:
    tensor = torch.tensor([0.0, -9999.0, FORBIDDEN, -torch.inf])[None, None, None]
    allowed = AttentionMask(1, 4, tensor=tensor).allowed(slice(None), slice(0, 1))
    assert allowed.flatten().tolist() == [True, True, False, False]


def test_queries_that_may_read_nothing_prove_nothing() -> None:
    nothing = AttentionMask(KEYS, KEYS, tensor=torch.zeros(1, 1, 1, KEYS, dtype=torch.bool))
    call, _ = make(nothing)
    assert call.spot_mismatch() is None
