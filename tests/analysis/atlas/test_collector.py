"""What is drawn of an attention call, against the whole pattern cut out and pooled by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from synthetic_calls import Anatomy, image_tokens, random_call, text_tokens, whole_call
from torch import Tensor

from analysis.atlas.collector import PatternCollector
from analysis.atlas.pattern_set import PatternSet
from analysis.atlas.pooling import pool
from analysis.atlas.sampling import Sampling, draw_samples
from probes.attention_call import AttentionCall
from probes.heads import Head, Site
from probes.inputs import Batch, Example
from probes.masks import AttentionMask
from probes.moment import Moment
from probes.tokens.map import ROLES, TokenMap, TowerTokens, blank_tokens

LONG = [5, 3, 8, 3, 8, 1, 5, 3, 9, 9, 4, 3, 8]
SHORT = [5, 7, 7, 2, 5, 7, 3]
SIDE = 5


def batch_of(tokens: TowerTokens | Sequence[TowerTokens] | None, count: int = 2) -> Batch:
    towers = [] if tokens is None else [tokens] if isinstance(tokens, TowerTokens) else tokens
    found = TokenMap({tower.tower: tower for tower in towers})
    return Batch({}, found, tuple(Example(f"e{number}") for number in range(count)))


def every(call: AttentionCall, count: int = 2, seed: int = 0) -> Sampling:
    """All heads of a call on all examples."""
    heads = [Head(call.site.tower, call.site.layer, head) for head in range(call.heads)]
    return draw_samples([f"e{number}" for number in range(count)], heads, count, seed)


def drawn(
    calls: AttentionCall | list[AttentionCall],
    batch: Batch,
    sampling: Sampling | None = None,
    side: int = SIDE,
    layout: Anatomy | None = None,
) -> PatternSet:
    calls = calls if isinstance(calls, list) else [calls]
    collector = PatternCollector(layout, sampling or every(calls[0], batch.size), side)
    collector.start_batch(batch)
    for call in calls:
        collector.listener(call)
    collector.finish_batch()
    return collector.patterns()


def image_of(found: PatternSet, example: str, head: int) -> np.ndarray:
    lines = found.samples
    place = lines.index[(lines["example"] == example) & (lines["head"] == head)]
    assert len(place) == 1
    return found.images[place[0]]


def line_of(found: PatternSet, example: str, head: int = 0) -> dict:
    lines = found.samples
    chosen = lines[(lines["example"] == example) & (lines["head"] == head)]
    return chosen.iloc[0].to_dict()


def assert_close(found: np.ndarray, pattern: Tensor, side: int = SIDE) -> None:
    """A drawn image equals a pattern ``[query key]`` that is renormalised and pooled."""
    rows = pattern.double() / pattern.double().sum(-1, keepdim=True)
    np.testing.assert_allclose(found, pool(rows, side).numpy(), atol=1e-3)


@pytest.mark.parametrize("side_of_padding", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [6, 2])
def test_text_is_drawn_without_its_padding(
    side_of_padding: str, causal: bool, kv_heads: int
) -> None:
    tokens = text_tokens([LONG, SHORT], width=17, side=side_of_padding)
    call = random_call(tokens, heads=6, kv_heads=kv_heads, causal=causal)
    found = drawn(call, batch_of(tokens))
    whole = call.pattern()
    for example, length in enumerate((13, 7)):
        start = 17 - length if side_of_padding == "left" else 0
        own = slice(start, start + length)
        for head in range(6):
            image = image_of(found, f"e{example}", head)
            assert_close(image, whole[example, head, own, own])
        line = line_of(found, f"e{example}")
        assert (line["queries"], line["keys"], line["view"]) == (length, length, "tokens")
        assert (line["causal"], line["part"], line["empty"]) == (causal, 0, 0)
        assert line["mass"] == pytest.approx(1)
    assert np.abs(image_of(found, "e0", 0) - image_of(found, "e0", 1)).max() > 0.05


def test_padding_and_batching_change_nothing() -> None:
    tokens = text_tokens([LONG, SHORT], width=19, side="left")
    together = drawn(random_call(tokens), batch_of(tokens))
    for example, ids in enumerate([LONG, SHORT]):
        alone = text_tokens([ids])
        call = random_call(replace(alone, example=alone.example + example))
        batch = replace(batch_of(alone, 1), examples=(Example(f"e{example}"),))
        sampling = draw_samples([f"e{example}"], [Head("language", 0, h) for h in range(3)], 1)
        single = drawn(call, batch, sampling)
        for head in range(3):
            one, other = (image_of(found, f"e{example}", head) for found in (together, single))
            np.testing.assert_allclose(one, other, atol=1e-3)


def test_only_sampled_pairs_are_drawn_in_the_order_of_the_sampling() -> None:
    tokens = text_tokens([LONG, SHORT, LONG[::-1]], width=13)
    call = random_call(tokens, heads=4)
    lines = [("language", 0, 2, "e1"), ("language", 0, 0, "e2"), ("language", 0, 2, "e2")]
    frame = pd.DataFrame(lines, columns=["tower", "layer", "head", "example"])
    found = drawn(call, batch_of(tokens, 3), Sampling(frame, 4))
    columns = ["tower", "layer", "head", "example"]
    assert [tuple(line) for line in found.samples[columns].to_numpy()] == lines
    whole = call.pattern()
    assert_close(found.images[0], whole[1, 2, :7, :7])
    assert_close(found.images[2], whole[2, 2])
    assert (found.side, found.seed) == (SIDE, 4)


def test_the_order_of_batches_changes_nothing() -> None:
    tokens = text_tokens([LONG, SHORT], width=13)
    call = random_call(tokens, heads=3)
    expected = drawn(call, batch_of(tokens))
    collector = PatternCollector(None, every(call), SIDE)
    assert call.query is not None and call.key is not None and call.mask.tensor is not None
    for row in (1, 0):
        alone = text_tokens([[LONG, SHORT][row]], width=13)
        part = replace(
            call, query=call.query[[row]], key=call.key[[row]], value=call.value[[row]],
            z=call.z[[row]], query_index=torch.arange(13)[None], key_index=torch.arange(13)[None],
            mask=AttentionMask(13, 13, tensor=call.mask.tensor[[row]]),
        )  # fmt: skip
        collector.start_batch(replace(batch_of(alone, 1), examples=(Example(f"e{row}"),)))
        collector.listener(part)
        assert collector.finish_batch() == 3
    found = collector.patterns()
    np.testing.assert_allclose(found.images, expected.images, atol=1e-3)
    pd.testing.assert_frame_equal(found.samples, expected.samples)


def test_biases_of_heads_and_rows_go_with_them() -> None:
    """An additive mask that differs by row and head, as T5's and Swin's do."""
    tokens = text_tokens([LONG, LONG])
    call = random_call(tokens, heads=4, kv_heads=2, causal=False)
    bias = torch.randn(2, 4, 13, 13, generator=torch.manual_seed(0)) * 3
    for tensor in (bias, bias[:1], bias[0], bias[:, :1], bias[0, 0]):
        moved = replace(call, mask=AttentionMask(13, 13, tensor=tensor))
        frame = pd.DataFrame(
            [("language", 0, 3, "e1"), ("language", 0, 1, "e1"), ("language", 0, 2, "e0")],
            columns=["tower", "layer", "head", "example"],
        )
        found = drawn(moved, batch_of(tokens), Sampling(frame, 0))
        whole = moved.pattern()
        for image, (row, head) in zip(found.images, ((1, 3), (1, 1), (0, 2)), strict=True):
            assert_close(image, whole[row, head])


def test_edits_are_drawn_as_they_act() -> None:
    tokens = text_tokens([LONG, LONG])
    call = random_call(tokens, heads=3, causal=False)
    call.pattern_edits.append(lambda tile, pattern: pattern.roll(1, dims=1).flip(-1))
    frame = pd.DataFrame([("language", 0, 2, "e1")], columns=["tower", "layer", "head", "example"])
    found = drawn(call, batch_of(tokens), Sampling(frame, 0))
    plain = replace(call, pattern_edits=[]).pattern()
    assert_close(found.images[0], plain[1, 1].flip(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pattern_that_the_model_wrote_out_is_taken_as_it_is(dtype: torch.dtype) -> None:
    tokens = text_tokens([LONG, SHORT], width=13)
    pattern = random_call(tokens, heads=3).pattern().to(dtype)
    call = replace(whole_call(pattern.float(), tokens), whole=pattern)
    found = drawn(call, batch_of(tokens))
    assert_close(image_of(found, "e1", 2), pattern[1, 2, :7, :7].float())
    assert line_of(found, "e1")["causal"]


def test_what_a_learned_sink_takes_is_told_by_the_mass() -> None:
    tokens = text_tokens([LONG])
    pattern = random_call(tokens, heads=2).pattern()
    found = drawn(whole_call(pattern * 0.25, tokens), batch_of(tokens, 1))
    assert_close(image_of(found, "e0", 1), pattern[0, 1])
    assert line_of(found, "e0")["mass"] == pytest.approx(0.25, abs=1e-6)


def test_patches_of_a_tile_are_drawn_and_renormalised() -> None:
    tokens = image_tokens((3, 5), images=2)
    call = random_call(tokens, heads=3, causal=False)
    found = drawn(call, batch_of(tokens))
    whole = call.pattern()
    for example in range(2):
        for head in range(3):
            patches = whole[example, head, 1:, 1:]
            assert_close(image_of(found, f"e{example}", head), patches)
            line = line_of(found, f"e{example}", head)
            assert line["mass"] == pytest.approx(float(patches.sum(-1).mean()), abs=1e-6)
            assert (line["view"], line["queries"], line["causal"]) == ("patches", 15, False)


def test_patches_stand_in_reading_order_whatever_the_model_does() -> None:
    tokens = image_tokens((3, 5), images=1, cls=False)
    order = torch.randperm(15, generator=torch.manual_seed(2))
    moved = replace(tokens, row=tokens.row[order], column=tokens.column[order])
    pattern = torch.softmax(torch.randn(1, 2, 15, 15, generator=torch.manual_seed(3)) * 3, -1)
    there = pattern[:, :, order][..., order]
    one = drawn(whole_call(pattern, tokens), batch_of(tokens, 1))
    other = drawn(whole_call(there, moved), batch_of(moved, 1))
    np.testing.assert_allclose(one.images, other.images, atol=1e-3)
    assert np.abs(one.images - drawn(whole_call(there, tokens), batch_of(tokens, 1)).images).max() \
        > 0.05  # fmt: skip


def test_a_patch_without_weight_on_patches_is_left_out_and_counted() -> None:
    tokens = image_tokens((2, 2), images=1)
    pattern = torch.zeros(1, 1, 5, 5)
    pattern[0, 0, :, 0] = 1
    pattern[0, 0, 1] = torch.tensor([0.5, 0.5, 0, 0, 0])
    found = drawn(whole_call(pattern, tokens), batch_of(tokens, 1), side=2)
    assert found.images[0].tolist() == [[1, 0], [0, 0]]
    assert line_of(found, "e0")["empty"] == 3
    assert line_of(found, "e0")["mass"] == pytest.approx(0.125)


def tiled(images: int = 2, tiles: int = 3) -> TowerTokens:
    """A row of the tower per tile, CLS first; example 0 has all of them, example 1 one."""
    count = images * tiles + 1
    tokens = image_tokens((2, 3), images=count)
    number = torch.arange(count).repeat_interleave(7)
    last = number == count - 1
    return replace(
        tokens,
        example=last.long(),
        image=(number // tiles).masked_fill(last, 0),
        tile=(number % tiles).masked_fill(last, 0),
    )


def test_one_tile_of_an_example_is_drawn_the_same_for_all_heads() -> None:
    tokens = tiled()
    call = random_call(replace(tokens, example=torch.arange(7).repeat_interleave(7)), causal=False)
    whole = call.pattern()
    parts = set()
    for seed in range(12):
        found = drawn(call, batch_of(tokens), every(call, seed=seed))
        part = int(line_of(found, "e0")["part"])
        parts.add(part)
        assert {line_of(found, "e0", head)["part"] for head in range(3)} == {part}
        assert line_of(found, "e1")["part"] == 0
        for head in range(3):
            assert_close(image_of(found, "e0", head), whole[part, head, 1:, 1:])
            assert_close(image_of(found, "e1", head), whole[6, head, 1:, 1:])
    assert len(parts) > 2 and parts <= set(range(6))


@pytest.mark.parametrize("seed", range(4))
def test_packed_images_and_images_in_calls_of_their_own_are_drawn_alike(seed: int) -> None:
    """Three images of one example: in rows, in one row under a mask, in one call each."""
    apart = replace(image_tokens((2, 3), images=3, cls=False), example=torch.zeros(18).long())
    apart = replace(apart, image=torch.arange(3).repeat_interleave(6))
    draw = torch.manual_seed(5)
    query, key = (torch.randn(3, 2, 6, 7, generator=draw) * 2 for _ in range(2))
    index = torch.arange(18).view(3, 6)
    rows = AttentionCall(
        Site("vision", 0), "attn", 0, query, query, AttentionMask(6, 6), query=query, key=key,
        query_index=index, key_index=index,
    )  # fmt: skip
    calls = [
        replace(
            rows, query=query[n : n + 1], key=key[n : n + 1], value=query[n : n + 1],
            z=query[n : n + 1], query_index=index[n : n + 1], key_index=index[n : n + 1],
        )
        for n in range(3)
    ]  # fmt: skip

    def pack(tensor: Tensor) -> Tensor:
        return tensor.transpose(0, 1).flatten(1, 2)[None]

    blocks = torch.block_diag(*[torch.ones(6, 6)] * 3).bool()
    packed = replace(
        rows, query=pack(query), key=pack(key), value=pack(query), z=pack(query),
        mask=AttentionMask(18, 18, tensor=blocks), query_index=index.view(1, 18),
        key_index=index.view(1, 18),
    )  # fmt: skip
    sampling = every(rows, 1, seed)
    found = [drawn(given, batch_of(apart, 1), sampling) for given in (rows, packed, calls)]
    for other in found[1:]:
        np.testing.assert_allclose(found[0].images, other.images, atol=1e-3)
        pd.testing.assert_frame_equal(found[0].samples, other.samples, check_exact=False, atol=1e-5)


def test_packed_texts_are_drawn_apart() -> None:
    tokens = blank_tokens("language", [7, 5], [1, 0], "text")
    pattern = torch.softmax(torch.randn(1, 2, 12, 12, generator=torch.manual_seed(0)), -1)
    index = torch.arange(12)[None]
    call = replace(whole_call(pattern), query_index=index, key_index=index)
    found = drawn(call, batch_of(tokens))
    for example, own in (("e1", slice(0, 7)), ("e0", slice(7, 12))):
        assert_close(image_of(found, example, 1), pattern[0, 1, own, own])
        assert line_of(found, example)["view"] == "tokens"


def test_examples_in_one_row_may_be_drawn_of_different_heads() -> None:
    tokens = blank_tokens("language", [7, 5], [0, 1], "text")
    pattern = torch.softmax(torch.randn(1, 4, 12, 12, generator=torch.manual_seed(0)) * 2, -1)
    index = torch.arange(12)[None]
    call = replace(whole_call(pattern), query_index=index, key_index=index)
    lines = [("language", 0, head, example) for head, example in ((0, "e1"), (2, "e0"), (2, "e1"))]
    frame = pd.DataFrame(lines, columns=["tower", "layer", "head", "example"])
    found = drawn(call, batch_of(tokens), Sampling(frame, 0))
    assert_close(found.images[0], pattern[0, 0, 7:, 7:])
    assert_close(found.images[1], pattern[0, 2, :7, :7])
    assert_close(found.images[2], pattern[0, 2, 7:, 7:])


def test_windows_of_a_known_image_are_windows() -> None:
    tokens = image_tokens((4, 3), images=1, cls=False)
    index = torch.arange(12).view(2, 6)
    pattern = torch.softmax(torch.randn(2, 2, 6, 6, generator=torch.manual_seed(1)), -1)
    calls = [
        replace(whole_call(pattern[[n]], tokens), query_index=index[[n]], key_index=index[[n]])
        for n in range(2)
    ]
    found = drawn(calls, batch_of(tokens, 1))
    line = line_of(found, "e0")
    assert (line["view"], line["queries"]) == ("window", 6)
    assert_close(image_of(found, "e0", 1), pattern[int(line["part"]), 1])


def test_windows_in_the_batch_axis_are_drawn_of_their_example() -> None:
    pattern = torch.softmax(torch.randn(8, 2, 6, 6, generator=torch.manual_seed(1)) * 2, -1)
    call = replace(whole_call(pattern), site=Site("vision", 0))
    parts = []
    for seed in range(6):
        found = drawn(call, batch_of(None), every(call, seed=seed))
        assert set(found.samples["view"]) == {"window"}
        for example in range(2):
            part = int(line_of(found, f"e{example}")["part"])
            parts.append((example, part))
            assert_close(image_of(found, f"e{example}", 1), pattern[4 * example + part, 1])
    assert len(set(parts)) > 4 and {part for _, part in parts} <= set(range(4))
    assert any(one != other for (_, one), (_, other) in zip(parts[::2], parts[1::2], strict=True))


def test_a_sequence_of_unknown_positions_is_drawn_without_what_nobody_may_read() -> None:
    tokens = text_tokens([LONG, SHORT], width=17, side="left")
    call = replace(random_call(tokens), query_index=None, key_index=None)
    found = drawn(call, batch_of(None))
    assert_close(image_of(found, "e1", 2), call.pattern()[1, 2, 10:, 10:])
    line = line_of(found, "e1")
    assert (line["view"], line["queries"], line["causal"]) == ("tokens", 7, True)


def test_cross_attention_reads_the_other_sequence_of_its_own_example() -> None:
    own = blank_tokens("cross", [4, 4], [0, 1], "text")
    other = text_tokens([LONG, SHORT], width=13)
    other = replace(other, tower="encoder")
    allowed = (other.role != ROLES.index("pad")).view(2, 1, 1, 13).expand(2, 1, 4, 13)
    draw = torch.manual_seed(0)
    query, key = torch.randn(2, 3, 4, 7, generator=draw), torch.randn(2, 3, 13, 7, generator=draw)
    call = AttentionCall(
        Site("cross", 0), "attn", 0, key, query, AttentionMask(4, 13, tensor=allowed),
        query=query, key=key, query_index=torch.arange(8).view(2, 4),
        key_index=torch.arange(26).view(2, 13), key_tower="encoder",
    )  # fmt: skip
    whole = call.pattern()
    for given in (call, replace(call, key_index=None)):
        found = drawn(given, batch_of([own, other]))
        for example, keys in enumerate((13, 7)):
            line = line_of(found, f"e{example}")
            assert (line["view"], line["queries"], line["keys"]) == ("cross", 4, keys)
            assert not line["causal"]
            assert_close(image_of(found, f"e{example}", 1), whole[example, 1, :, :keys])


def test_cross_attention_without_a_mask_is_cut_by_the_token_map() -> None:
    """Two examples packed in one row, one of them padded: nothing but the map tells them apart."""
    own = blank_tokens("cross", [4, 3], [0, 1], "text")
    other = replace(text_tokens([LONG, SHORT], width=13), tower="encoder")
    pattern = torch.softmax(torch.randn(1, 2, 7, 26, generator=torch.manual_seed(0)) * 2, -1)
    call = replace(
        whole_call(pattern), site=Site("cross", 0), key_tower="encoder",
        query_index=torch.arange(7)[None], key_index=torch.arange(26)[None],
    )  # fmt: skip
    found = drawn(call, batch_of([own, other]))
    for example, (queries, keys) in enumerate(((slice(0, 4), 13), (slice(4, 7), 7))):
        part = pattern[0, 1, queries, 13 * example : 13 * example + keys]
        assert_close(image_of(found, f"e{example}", 1), part)
        line = line_of(found, f"e{example}", 1)
        assert (line["queries"], line["keys"]) == part.shape
        assert line["mass"] == pytest.approx(float(part.sum(-1).mean()), abs=1e-6)


def test_heads_that_are_mixed_are_refused_with_a_sentence() -> None:
    tokens = text_tokens([LONG, SHORT], width=13)
    call = random_call(tokens)
    collector = PatternCollector(Anatomy(None, row_sums="any"), every(call), SIDE)
    collector.start_batch(batch_of(tokens))
    collector.listener(call)
    assert collector.finish_batch() == 0 == len(collector.patterns())
    (why,) = collector.not_drawn()["reason"].unique()
    assert "heads of language are mixed after the softmax" in why


def test_what_was_not_drawn_says_why() -> None:
    tokens = text_tokens([LONG, SHORT], width=13)
    call = random_call(tokens, heads=2)
    single = whole_call(torch.ones(2, 2, 1, 1), blank_tokens("language", [1, 1], [0, 1], "text"))
    heads = [Head("language", layer, head) for layer in range(3) for head in range(2)]
    collector = PatternCollector(None, draw_samples(["e0", "e1", "late"], heads, 3), SIDE)
    collector.start_batch(batch_of(tokens))
    collector.listener(call)
    broken = replace(call, site=Site("language", 2), query_index=None, key_index=None)
    assert broken.query is not None and broken.key is not None
    broken = replace(
        broken, query=broken.query[:1], key=broken.key[:1], value=broken.value[:1], z=broken.z[:1],
        mask=AttentionMask(13, 13),
    )  # fmt: skip
    collector.listener(broken)
    assert collector.finish_batch() == 4
    collector.start_batch(batch_of(blank_tokens("language", [1, 1], [0, 1], "text")))
    collector.listener(replace(single, site=Site("language", 1)))
    assert collector.finish_batch() == 0
    rest = collector.not_drawn()
    assert len(rest) == 18 - 4 and len(collector.patterns()) == 4
    reasons = rest.groupby("layer")["reason"].unique().to_dict()
    assert reasons[0].tolist() == ["The example did not reach the layer, or was left out."]
    assert "must have at least 2 queries and 2 keys" in reasons[1][0]
    assert "The 1 rows of an attention call of language.L2 must be a multiple" in reasons[2][0]


def test_nan_is_refused_with_the_head() -> None:
    tokens = text_tokens([LONG])
    pattern = random_call(tokens, heads=3).pattern()
    pattern[0, 2, 7, 3] = float("nan")
    call = whole_call(pattern, tokens, layer=4)
    collector = PatternCollector(None, every(call, 1), SIDE)
    collector.start_batch(batch_of(tokens, 1))
    collector.listener(call)
    with pytest.raises(ValueError, match=r"pattern of language\.L4H2 must be finite"):
        collector.finish_batch()


def test_it_must_be_started_and_the_model_must_not_write() -> None:
    tokens = text_tokens([LONG])
    call = random_call(tokens)
    collector = PatternCollector(None, every(call, 1), SIDE)
    with pytest.raises(RuntimeError, match=r"Call start_batch\(\)"):
        collector.listener(call)
    collector.start_batch(batch_of(tokens, 1))
    for writing in (replace(call, step=1), replace(call, moment=Moment(generated=3))):
        with pytest.raises(RuntimeError, match="must be drawn in a plain forward"):
            collector.listener(writing)
    found, missing = collector.patterns(), collector.not_drawn()
    assert len(found) == 0 and found.images.shape == (0, SIDE, SIDE)
    assert len(missing) == len(collector.sampling) > 0
    assert missing["reason"].str.contains("did not reach the layer").all()


def test_a_batch_that_failed_leaves_nothing_behind() -> None:
    tokens = text_tokens([LONG])
    call = random_call(tokens)
    collector = PatternCollector(None, every(call, 1), SIDE)
    collector.start_batch(batch_of(tokens, 1))
    collector.listener(call)
    collector.start_batch(batch_of(tokens, 1))
    assert collector.finish_batch() == 0


@pytest.mark.parametrize("edited", [False, True])
def test_no_whole_pattern_of_a_call_is_ever_held(
    monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    tokens = text_tokens([list(range(700))] * 3)
    call = random_call(tokens, heads=5)
    if edited:
        call.pattern_edits.append(lambda tile, pattern: pattern)
    monkeypatch.setattr("probes.attention_call.TILE_ELEMENTS", {"cpu": 1 << 16})
    sizes: list[int] = []
    real = AttentionCall._tile

    def watched(self: AttentionCall, batch: slice, rows: slice):
        tile = real(self, batch, rows)
        sizes.append(tile.pattern.numel())
        return tile

    monkeypatch.setattr(AttentionCall, "_tile", watched)
    frame = pd.DataFrame([("language", 0, 4, "e1")], columns=["tower", "layer", "head", "example"])
    found = drawn(call, batch_of(tokens, 3), Sampling(frame, 0))
    monkeypatch.undo()
    assert_close(found.images[0], call.pattern([4])[1, 0])
    assert max(sizes) <= (1 << 16 if edited is False else 5 * 700 * 18)
    if not edited:
        assert sum(sizes) <= 700 * 700  # one head of one example, and no more
