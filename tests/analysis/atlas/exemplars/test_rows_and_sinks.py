"""The key outside sinks that each query reads most, against loops and values by hand."""

from __future__ import annotations

import pytest
import torch
from exemplar_batches import batch_call, text_batch, texts
from synthetic_calls import image_tokens, text_tokens, whole_call

from analysis.atlas.exemplars.reach import reach_of
from analysis.atlas.exemplars.row_events import row_events, value_norms
from analysis.atlas.exemplars.sink_keys import outside_sinks
from analysis.call_plan import CallPlan
from analysis.plan_cache import PlanCache
from probes.tokens.map import TokenMap


def _kept(pattern, tokens, sink=0.3):
    call = whole_call(pattern, tokens)
    plan, _ = PlanCache(TokenMap({tokens.tower: tokens}), tokens.rows).find(call)
    assert isinstance(plan, CallPlan)
    return outside_sinks(call, call.tiles(), reach_of(plan), sink)


def _causal(rows: list[list[float]]) -> torch.Tensor:
    width = len(rows)
    return torch.tensor([row + [0.0] * (width - len(row)) for row in rows])[None, None]


def test_a_key_that_most_queries_read_is_a_sink_of_that_head_alone():
    tokens = text_tokens([[0, 1, 2, 3, 4, 5]])
    tiny = 0.01
    reads_1 = _causal([
        [1.0], [0.1, 0.9], [0.1, 0.8, 0.1], [0.1, 0.8, 0.05, 0.05], [0.1, 0.1, 0.1, 0.1, 0.6],
        [0.1, 0.8, 0.1, 0.0, 0.0, 0.0],
    ])  # fmt: skip
    previous = _causal([
        [1.0], [1 - tiny, tiny], [tiny, 1 - 2 * tiny, tiny], [tiny, tiny, 1 - 3 * tiny, tiny],
        [tiny, tiny, tiny, 1 - 4 * tiny, tiny], [tiny, tiny, tiny, tiny, 1 - 5 * tiny, tiny],
    ])  # fmt: skip
    kept = _kept(torch.cat([reads_1, previous], 1), tokens)
    assert kept[0, 0].tolist() == [0, 0, 1, 1, 1, 1]
    assert kept[0, 1].tolist() == [0, 1, 1, 1, 1, 1]  # BOS only
    # The mean weight of key 1 is 0.68, where even weights would give it 0.29.
    assert _kept(reads_1, tokens, sink=0.7)[0, 0, 1] == 1
    assert (
        _kept(reads_1 * 0.8 + 0.2 * _causal([[1.0] + [0.0] * q for q in range(6)]), tokens)[0, 0, 1]
        == 1
    )  # 0.54 is less than twice that


def test_a_uniform_head_has_no_sinks_but_what_is_one_by_itself():
    image = image_tokens((2, 2))
    assert _kept(torch.full((1, 1, 5, 5), 0.2), image)[0, 0].tolist() == [0, 1, 1, 1, 1]
    bare = image_tokens((1, 3), cls=False)  # the first patch is no sink
    assert _kept(torch.full((1, 1, 3, 3), 1 / 3), bare)[0, 0].tolist() == [1, 1, 1]
    no_bos = text_tokens([[4, 5, 6]], bos=False)  # the first token of a text is
    assert _kept(torch.full((1, 1, 3, 3), 1 / 3).tril(), no_bos)[0, 0].tolist() == [0, 1, 1]


def test_one_strong_reader_makes_no_sink():
    pattern = torch.full((1, 1, 9, 9), 0.07)
    for query in (4, 5, 7):  # mean above 0.3, but of 3 readers of 9
        pattern[..., query, :] = 0.001
        pattern[..., query, 6] = 0.992
    assert pattern[..., 6].mean() > 0.3
    kept = _kept(pattern, image_tokens((3, 3), cls=False))
    assert kept[0, 0, 6] == 1


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_norms_of_grouped_values(kv_heads: int, monkeypatch):
    batch = text_batch(texts(3, seed=2))
    call = batch_call(batch, heads=4, kv_heads=kv_heads)
    matrix = torch.randn(4, 5, 11, generator=torch.Generator().manual_seed(1))
    norms = value_norms(call, matrix @ matrix.transpose(1, 2))
    for b in range(3):
        for h in range(4):
            for k in (0, 3, call.keys - 1):
                written = call.value[b, h * kv_heads // 4, k] @ matrix[h]
                assert float(norms[b, h, k]) == pytest.approx(float(written.norm()), abs=1e-5)
    monkeypatch.setattr("analysis.atlas.exemplars.row_events._NUMBERS", 3 * 4 * 5 * 2)
    torch.testing.assert_close(value_norms(call, matrix @ matrix.transpose(1, 2)), norms)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [None, 3])
def test_events_of_rows_are_those_of_a_loop(side: str, rows: int | None):
    batch = text_batch(texts(4, seed=3), side=side)
    call = batch_call(batch, heads=3)
    draw = torch.Generator().manual_seed(0)
    norms = torch.rand(4, 3, call.keys, generator=draw) + 0.1
    keep = (torch.rand(4, 3, call.keys, generator=draw) > 0.3).float()
    found = row_events(call, call.tiles(rows=rows), keep, norms)
    pattern = call.pattern()
    checked = 0
    for b, h, q in [(b, h, q) for b in range(4) for h in range(3) for q in range(call.queries)]:
        row = pattern[b, h, q]
        outside = {k: float(row[k]) for k in range(call.keys) if keep[b, h, k] and row[k] > 0}
        if not outside:
            assert found["weight"].key[b, h, q] == -1
            continue
        whole = float((row * norms[b, h]).sum())
        length = {k: float(norms[b, h, k]) for k in outside}
        written = {k: weight * length[k] for k, weight in outside.items()}
        strongest = max(outside, key=outside.__getitem__)
        for by, values in (("weight", outside), ("contribution", written)):
            best = max(values, key=values.__getitem__)
            event = found[by]
            assert int(event.key[b, h, q]) == best
            assert float(event.weight[b, h, q]) == pytest.approx(outside[best], rel=1e-5)
            share = outside[best] / sum(outside.values())
            assert float(event.share[b, h, q]) == pytest.approx(share, rel=1e-4)
            assert float(event.contribution[b, h, q]) == pytest.approx(written[best], rel=1e-4)
            of_row = float(event.contribution_share[b, h, q])
            assert of_row == pytest.approx(written[best] / whole, rel=1e-4)
            checked += best != strongest
    assert checked > 5  # the two criteria do differ
