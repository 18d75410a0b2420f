"""The engine: what must not change a score, and what it says when something is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from synthetic_calls import (
    Anatomy,
    as_dict,
    furthest,
    image_tokens,
    null,
    random_call,
    scored,
    text_tokens,
    value,
    whole_call,
)

from analysis.engine import Engine
from analysis.measures import available_measures, select_measures
from analysis.scores import BatchScores
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.masks import AttentionMask
from probes.tokens.map import TokenMap, blank_tokens

EVERY = ["all", "stable_rank"]
SENTENCE = [5, 3, 8, 3, 8, 1, 5, 3, 9, 9, 4, 3, 8]
SHORT = [5, 7, 7, 2, 5, 7, 3]


def random_matrix(heads: int, width: int = 5) -> torch.Tensor:
    return torch.randn(heads, width, 11, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_the_size_of_tiles_changes_nothing(rows: int, causal: bool) -> None:
    tokens = text_tokens([list(torch.randint(0, 9, (67,)))] * 2)
    call = random_call(tokens, causal=causal)
    whole = scored(call, tokens, measures=EVERY, rows=67, matrix=random_matrix(3))
    tiled = scored(call, tokens, measures=EVERY, rows=rows, matrix=random_matrix(3))
    assert furthest(whole, tiled)[0] < 1e-6


@pytest.mark.parametrize("rows", [4, 35])
def test_the_size_of_tiles_changes_nothing_on_patches(rows: int) -> None:
    tokens = image_tokens((5, 7), images=2)
    call = random_call(tokens, causal=False)
    whole = scored(call, tokens, measures=EVERY, rows=36)
    assert furthest(whole, scored(call, tokens, measures=EVERY, rows=rows))[0] < 1e-6


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_and_batching_change_nothing(side: str, causal: bool) -> None:
    matrix = random_matrix(3)
    alone = []
    for example, ids in enumerate([SENTENCE, SHORT]):
        tokens = text_tokens([ids])
        drawn = replace(tokens, example=tokens.example + example)
        call = random_call(drawn, causal=causal)
        alone.append(scored(call, tokens, measures=EVERY, matrix=matrix))
    tokens = text_tokens([SENTENCE, SHORT], width=17, side=side)
    together = scored(
        random_call(tokens, causal=causal), tokens, measures=EVERY, matrix=matrix, rows=4
    )
    for example, expected in enumerate(alone):
        part = BatchScores(
            together.columns,
            together.numerator[example : example + 1],
            together.denominator[example : example + 1],
            together.null_numerator[example : example + 1],
            together.null_denominator[example : example + 1],
        )
        far, column = furthest(expected, part)
        assert far < 1e-5, column


def test_padding_does_not_move_curves() -> None:
    plain = text_tokens([SENTENCE, SHORT])
    padded = text_tokens([SENTENCE, SHORT], width=19, side="left")
    key = "language", 0, "sink_weight"
    first = scored(random_call(plain), plain).curves[key]
    second = scored(random_call(padded), padded).curves[key]
    assert first.numerator.shape == (3, 13)
    torch.testing.assert_close(first.value, second.value, atol=1e-6, rtol=0)
    assert first.denominator[0].tolist() == [2.0] * 7 + [1.0] * 6


def test_heads_may_be_permuted() -> None:
    tokens = text_tokens([SENTENCE])
    call = random_call(tokens, heads=5)
    order = [3, 0, 4, 2, 1]
    assert call.query is not None and call.key is not None
    moved = replace(
        call, query=call.query[:, order], key=call.key[:, order], value=call.value[:, order],
        z=call.z[:, order],
    )  # fmt: skip
    matrix = random_matrix(5)
    before = as_dict(scored(call, tokens, matrix=matrix))
    after = as_dict(scored(moved, tokens, matrix=matrix[order]))
    for (tower, layer, head, measure, variant), found in after.items():
        expected = before[tower, layer, order[head], measure, variant]
        assert found == pytest.approx(expected, abs=1e-6), (measure, variant)


def test_the_same_mask_in_other_forms_gives_the_same_scores() -> None:
    tokens = text_tokens([SENTENCE])
    call = random_call(tokens)
    allowed = torch.ones(13, 13, dtype=torch.bool).tril()
    added = torch.zeros(1, 1, 13, 13).masked_fill(~allowed, torch.finfo(torch.float32).min)
    expected = scored(call, tokens, measures=EVERY)
    for tensor in (allowed, allowed[None, None], added):
        other = replace(call, mask=AttentionMask(13, 13, tensor=tensor))
        assert furthest(expected, scored(other, tokens, measures=EVERY))[0] < 1e-6
    assert (
        furthest(expected, scored(whole_call(call.pattern(), tokens), tokens, measures=EVERY))[0]
        > 0.1
    )  # z is another there; everything else is compared below
    only_pattern = [name for name in expected_names(expected) if not name.endswith("_norm")]
    first = scored(call, tokens, measures=only_pattern)
    second = scored(whole_call(call.pattern(), tokens), tokens, measures=only_pattern)
    assert furthest(first, second)[0] < 1e-6


def expected_names(scores: BatchScores) -> list[str]:
    return list(dict.fromkeys(column.measure for column in scores.columns))


def test_grouped_keys_equal_repeated_keys() -> None:
    tokens = text_tokens([SENTENCE])
    call = random_call(tokens, heads=6, kv_heads=2)
    assert call.key is not None
    repeated = replace(
        call, key=call.key.repeat_interleave(3, 1), value=call.value.repeat_interleave(3, 1)
    )
    assert furthest(scored(call, tokens), scored(repeated, tokens))[0] < 1e-6


def test_a_head_without_preference_scores_its_null() -> None:
    tokens = text_tokens([SENTENCE, SHORT])
    for causal in (True, False):
        call = random_call(tokens, causal=causal, sharpness=0.0)
        scores = scored(call, tokens, measures=EVERY)
        for column, (found, expected) in as_dict(scores).items():
            if column[3] not in ("z_norm", "contribution_norm"):
                assert found == pytest.approx(expected, abs=1e-5), column


def test_a_patch_head_without_preference_scores_its_null() -> None:
    tokens = image_tokens((3, 5), images=2)
    call = random_call(tokens, causal=False, sharpness=0.0)
    scores = scored(call, tokens)
    for column, (found, expected) in as_dict(scores).items():
        if column[3] != "z_norm":
            assert found == pytest.approx(expected, abs=1e-5), column
    curve = scores.curves["vision", 0, "hop_mass"]
    torch.testing.assert_close(curve.value[0], curve.null, atol=1e-6, rtol=0)


def test_several_calls_of_a_site_add_up() -> None:
    """Two windows in calls of their own equal two windows in the batch axis."""
    tokens = image_tokens((4, 3), cls=False)
    index = torch.arange(12).view(2, 6)
    pattern = torch.softmax(torch.randn(2, 3, 6, 6, generator=torch.manual_seed(1)), -1)
    values = torch.ones(2, 3, 6, 2)

    def call(rows: slice) -> AttentionCall:
        return AttentionCall(
            Site("vision", 0), "attn", 0, values[rows], values[rows], AttentionMask(6, 6),
            whole=pattern[rows], query_index=index[rows], key_index=index[rows],
        )  # fmt: skip

    together = scored(call(slice(0, 2)), tokens)
    apart = scored([call(slice(0, 1)), call(slice(1, 2))], tokens)
    assert furthest(together, apart)[0] < 1e-6
    assert value(together, "column_norm") > 0


def test_packed_images_equal_images_apart() -> None:
    """Two images in one row under a block-diagonal mask equal two rows of the batch."""
    apart = image_tokens((2, 3), images=2, cls=False)
    draw = torch.manual_seed(5)
    query, key = (torch.randn(2, 3, 6, 7, generator=draw) * 2 for _ in range(2))
    index = torch.arange(12).view(2, 6)
    values = torch.randn(2, 3, 6, 5, generator=draw)
    two = AttentionCall(
        Site("vision", 0), "attn", 0, values, values, AttentionMask(6, 6), query=query, key=key,
        query_index=index, key_index=index,
    )  # fmt: skip
    blocks = torch.block_diag(*[torch.ones(6, 6)] * 2).bool()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(0, 1).flatten(1, 2)[None]

    one = AttentionCall(
        Site("vision", 0), "attn", 0, pack(values), pack(values),
        AttentionMask(12, 12, tensor=blocks), query=pack(query), key=pack(key),
        query_index=index.view(1, 12), key_index=index.view(1, 12),
    )  # fmt: skip
    left = scored(two, apart, measures=EVERY)
    right = scored(one, apart, measures=EVERY, rows=5)
    assert furthest(left, right)[0] < 1e-5
    torch.testing.assert_close(left.numerator, right.numerator, atol=1e-5, rtol=1e-5)


def test_windows_of_unknown_place_are_measured_without_positions() -> None:
    pattern = torch.softmax(torch.randn(6, 2, 4, 4, generator=torch.manual_seed(2)), -1)
    scores = scored(whole_call(pattern), image_tokens((4, 3), images=3), examples=3)
    assert scores.numerator.shape[0] == 3
    expected = -(pattern * pattern.log()).sum(-1)
    assert value(scores, "entropy", head=1) == pytest.approx(float(expected[:, 1].mean()), abs=1e-5)
    first = scores.numerator[0, 0] / scores.denominator[0, 0]
    assert float(first) == pytest.approx(float(expected[:2, 0].mean()), abs=1e-5)
    assert "role_mass" not in expected_names(scores)
    assert "not known" in scores.reasons["language", "role_mass"]
    with pytest.raises(KeyError):
        value(scores, "confidence", "no_sink")


def test_rows_that_cannot_be_divided_are_not_measured() -> None:
    scores = scored(whole_call(torch.ones(5, 2, 1, 1)), None, examples=3)
    assert not scores.columns
    assert scores.reasons["language", "entropy"] == (
        "The 5 rows of an attention call of language.L0 must be a multiple of the 3 examples to "
        "tell them apart, so the layer is not measured."
    )


def test_steps_of_generation_add_their_queries() -> None:
    tokens = text_tokens([SHORT]).with_generated(1)
    full = random_call(replace(tokens, starts=tokens.starts), heads=2)
    assert full.query is not None and full.key is not None
    prompt = replace(
        full, query=full.query[:, :, :7], key=full.key[:, :, :7], value=full.value[:, :, :7],
        z=full.z[:, :, :7], mask=AttentionMask(7, 7, causal=True),
        query_index=torch.arange(7)[None], key_index=torch.arange(7)[None],
    )  # fmt: skip
    step = replace(
        full, query=full.query[:, :, 7:], z=full.z[:, :, 7:], mask=AttentionMask(1, 8),
        query_index=torch.tensor([[7]]), key_index=torch.arange(8)[None], step=1,
    )  # fmt: skip
    both, at_once = scored([prompt, step], tokens), scored(full, tokens)
    a, b = as_dict(both), as_dict(at_once)
    per_query = {
        "entropy", "confidence", "attention_distance", "induction", "previous_token",
        "first_key", "head_similarity", "z_norm", "role_mass", "self_attention",
    }  # fmt: skip
    for column, pair in b.items():
        if column[3] in per_query:
            assert a[column][0] == pytest.approx(pair[0], abs=1e-6), column
    only_prompt = scored(prompt, tokens)
    for name in ("column_norm", "overfocus"):
        assert value(both, name) == value(only_prompt, name)


def test_cross_attention_has_roles_of_both_towers() -> None:
    text, image = text_tokens([SHORT]), image_tokens((2, 2))
    text = replace(text, tower="cross")
    pattern = torch.softmax(torch.randn(1, 2, 7, 5, generator=torch.manual_seed(4)), -1)
    call = whole_call(pattern, key_tower="vision")
    call = replace(
        call, site=Site("cross", 0), query_index=torch.arange(7)[None],
        key_index=torch.arange(5)[None],
    )  # fmt: skip
    scores = scored(call, [text, image])
    expected = float(pattern[0, 1, 1:, 0].mean())
    assert value(scores, "role_mass", "text->cls", head=1) == pytest.approx(expected, abs=1e-6)
    assert value(scores, "first_key", head=1) == pytest.approx(
        float(pattern[0, 1, :, 0].mean()), abs=1e-6
    )
    assert "reads another" in scores.reasons["cross", "induction"]
    assert "reads another" in scores.reasons["cross", "self_attention"]


def test_nan_names_tower_and_layer() -> None:
    tokens = text_tokens([SHORT])
    good, bad = random_call(tokens, layer=1), random_call(tokens, layer=2)
    bad.z[0, 1, 3, 2] = float("nan")
    message = r"attention output of language\.L2 must be finite, got NaN or infinity\. Check the w"
    with pytest.raises(ValueError, match=message):
        scored([good, bad], tokens)
    infinite = random_call(tokens, layer=2)
    infinite.z[0, 1, 3, 2] = float("inf")
    with pytest.raises(ValueError, match=message):
        scored([good, infinite], tokens)


def test_nan_of_padding_is_no_error() -> None:
    tokens = text_tokens([SENTENCE, SHORT], side="left")
    call = random_call(tokens)
    expected = scored(call, tokens)
    call.z[1, :, 0] = float("nan")
    assert furthest(expected, scored(call, tokens))[0] == 0


def test_a_batch_must_be_started() -> None:
    tokens = text_tokens([SHORT])
    with pytest.raises(RuntimeError, match="must be started"):
        Engine(None, select_measures("entropy")).listener(random_call(tokens))


def test_the_call_is_left_as_it_was() -> None:
    tokens = text_tokens([SENTENCE, SHORT])
    pattern = random_call(tokens).pattern()
    before = pattern.clone()
    scored(whole_call(pattern, tokens), tokens, measures=EVERY)
    assert torch.equal(pattern, before)


def test_batches_merge_and_survive_a_file() -> None:
    first, second = text_tokens([SENTENCE, SHORT]), text_tokens([SHORT], bos=False)
    parts = [scored(random_call(tokens), tokens) for tokens in (first, second)]
    merged = BatchScores.merge(parts)
    assert merged.numerator.shape[0] == 3 and merged.examples == ("0", "1", "0")
    for column, (found, _) in as_dict(merged).items():
        sums = [
            (float(part.numerator[:, i].sum()), float(part.denominator[:, i].sum()))
            for part in parts
            for i, c in enumerate(part.columns)
            if (c.tower, c.layer, c.head, c.measure, c.variant) == column
        ]
        expected = sum(n for n, _ in sums) / sum(d for _, d in sums)
        assert found == pytest.approx(expected), column
    curve = merged.curves["language", 0, "sink_weight"]
    assert curve.denominator[0].tolist() == [3.0] * 7 + [1.0] * 6
    again = BatchScores.from_tensors(*merged.to_tensors())
    assert again.columns == merged.columns and again.reasons == merged.reasons
    assert torch.equal(again.numerator, merged.numerator)
    assert torch.equal(again.curves["language", 0, "sink_weight"].value, curve.value)
    with pytest.raises(ValueError, match="at least one batch"):
        BatchScores.merge([])


def test_two_batches_do_not_mix() -> None:
    tokens = text_tokens([SHORT])
    engine = Engine(None, select_measures("entropy"))
    found = []
    for _ in range(2):
        engine.start_batch(TokenMap({"language": tokens}), ["a"])
        engine.listener(random_call(tokens))
        found.append(engine.finish_batch())
    assert torch.equal(found[0].numerator, found[1].numerator)
    assert found[0].examples == ("a",)


def test_units_ranges_and_names() -> None:
    tokens = text_tokens([SENTENCE, SHORT])
    scores = scored(random_call(tokens), tokens, measures=EVERY)
    units = {}
    for column, found in zip(scores.columns, scores.values.tolist(), strict=True):
        assert column.measure.isidentifier()
        measure = column.measure, column.variant
        assert units.setdefault(measure, column.unit) == column.unit
        if column.unit in ("share", "cosine"):
            assert -1e-6 <= found <= 1 + 1e-6, column
        assert found >= -1e-6 or column.measure == "block", column


def test_unknown_measures_are_named_with_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"got 'entropi'\. Did you mean entropy"):
        select_measures(["entropi"])
    with pytest.raises(ValueError, match="at least one measure"):
        select_measures([])
    names = [measure.name for measure in select_measures("all")]
    assert "stable_rank" not in names and "entropy" in names
    assert [m.name for m in select_measures("induction,entropy")] == ["entropy", "induction"]
    assert select_measures(["all", "stable_rank"])[-1].name == "stable_rank"
    assert all(name == measure.name for name, measure in available_measures().items())


def test_an_unknown_tower_is_measured_by_rows() -> None:
    tokens = text_tokens([SHORT])
    call = random_call(blank_tokens("audio", [7], [0], "special"))
    scores = scored(call, tokens)
    assert "entropy" in expected_names(scores) and "first_key" not in expected_names(scores)
    assert null(scores, "entropy") > 0


@pytest.mark.parametrize("coarse", [0, 1 << 30])
def test_both_ways_to_multiply_agree(coarse: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles are multiplied entry by entry, large ones batch row by batch row."""
    tokens = text_tokens([SENTENCE, SHORT])
    call = random_call(tokens, heads=5)
    expected = scored(call, tokens)
    monkeypatch.setattr("analysis.tile_view._COARSE_ENTRIES", coarse)
    assert furthest(expected, scored(call, tokens))[0] < 1e-6


def test_pattern_measures_are_not_taken_where_heads_are_mixed_after_the_softmax() -> None:
    tokens = blank_tokens("language", [5, 5], [0, 1], "text")
    layout = Anatomy(None, row_sums="any")
    engine = Engine(layout, select_measures(["entropy", "z_norm"]))
    engine.start_batch(TokenMap({"language": tokens}), 2)
    engine.listener(random_call(tokens))
    scores = engine.finish_batch()
    assert {column.measure for column in scores.columns} == {"z_norm"}
    assert "rows of a pattern are no distributions" in scores.reasons["language", "entropy"]
