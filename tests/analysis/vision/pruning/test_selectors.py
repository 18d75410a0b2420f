"""The scores of visual tokens by hand, and their traps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from analysis.vision.patch_statistics import Need
from analysis.vision.pruning.evit import Evit, thinned_out
from analysis.vision.pruning.faster_vlm import FasterVlm
from analysis.vision.pruning.fastv import FastV
from analysis.vision.pruning.flowcut import Flow, FlowCut, flowed
from analysis.vision.pruning.hiprune import HiPrune, around
from analysis.vision.pruning.selection import SELECTORS, selector_of
from analysis.vision.pruning.selector import Depths, Tile, budget

LLAVA = Depths(vision=24, features=22, pruned_from=2)


def _kept(found: Tensor) -> list[int]:
    return found.nonzero()[:, 0].tolist()


def _grid(rows: int, columns: int) -> Tile:
    return Tile(torch.arange(rows).repeat_interleave(columns), torch.arange(columns).repeat(rows))


def test_the_published_layers_of_llava() -> None:
    assert [need.layer for need in FasterVlm().needs(LLAVA)] == [22]
    assert [need.layer for need in Evit().needs(Depths(12, 11, 0))] == [3, 6, 9]
    assert [need.layer for need in HiPrune().needs(LLAVA)] == [8, 22], "the ninth, counted from 1"
    assert [need.layer for need in HiPrune(depth=16 / 32).needs(Depths(32, 31, 0))] == [15, 31]
    assert [need.layer for need in FlowCut().needs(LLAVA)][::3] == list(range(22))
    assert FastV().needs(LLAVA) == (Need("language", 1, "deciding_attention"),)


def test_faster_vlm_and_fastv_take_the_largest() -> None:
    tile = _grid(1, 5)
    scores = torch.tensor([0.1, 0.4, 0.2, 0.4, 0.3])
    for selector in (FasterVlm(), FastV()):
        seen = {selector.needs(LLAVA)[0]: scores}
        assert _kept(selector.kept(seen, LLAVA, tile, 2)) == [1, 3]
        assert _kept(selector.kept(seen, LLAVA, tile, 3)) == [1, 3, 4]
        assert _kept(selector.kept(seen, LLAVA, tile, 1)) == [1], "of equal ones the first"


def test_evit_thins_out_in_three_steps() -> None:
    """Of 8 tokens one eighth stays: 4, 2, 1. What the first stage drops cannot come back."""
    first = torch.tensor([8.0, 7, 6, 5, 4, 3, 2, 1])
    second = torch.tensor([1.0, 2, 3, 4, 9, 9, 9, 9])
    third = torch.tensor([9.0, 9, 5, 4, 9, 9, 9, 9])
    assert _kept(thinned_out([first, second, third], 1)) == [2]
    assert _kept(thinned_out([first, second], 2)) == [2, 3]
    # ceil(.7 * 10) = 7, then ceil(.7 * 7) = 5, then what was asked for.
    stages = [torch.arange(10.0), -torch.arange(10.0), torch.arange(10.0)]
    assert _kept(thinned_out(stages[:1], 7)) == [3, 4, 5, 6, 7, 8, 9]
    rate = (4 / 10) ** (1 / 3)
    assert math.ceil(rate * 10) == 8 and math.ceil(rate * 8) == 6
    assert _kept(thinned_out(stages, 4)) == [4, 5, 6, 7]


def test_hiprune_by_hand() -> None:
    """4 x 6 tokens, a budget of 12, half of it for anchors: round(.5 * 12 / 5) = 1."""
    tile = _grid(4, 6)
    shallow, deep = torch.zeros(24), torch.arange(24.0).flip(0)
    shallow[11] = 1.0  # the last of the second row
    objects, registers = HiPrune(0.5).needs(LLAVA)
    found = HiPrune(0.5).kept({objects: shallow, registers: deep}, LLAVA, tile, 12)
    # 10 and 5 and 17 surround 11; 12, the first of the next row, does not. The rest by `deep`.
    assert _kept(found) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 17]
    assert _kept(around(torch.arange(24) == 11, tile)) == [5, 10, 17]
    assert _kept(around(torch.arange(24) == 0, tile)) == [1, 6]


def test_hiprune_with_budgets_at_both_ends() -> None:
    tile = _grid(3, 3)
    shallow = torch.tensor([0.0, 3, 0, 2, 9, 1, 0, 4, 0])
    deep = torch.tensor([9.0, 1, 1, 1, 1, 1, 1, 1, 8])
    objects, registers = HiPrune().needs(LLAVA)
    seen = {objects: shallow, registers: deep}
    assert _kept(HiPrune(0.1).kept(seen, LLAVA, tile, 2)) == [0, 8], "no anchor, registers only"
    # One anchor and four buffers do not fit into 3: the anchor, and what receives most around it.
    assert _kept(HiPrune(1.0).kept(seen, LLAVA, tile, 3)) == [1, 4, 7]
    assert _kept(HiPrune(1.0).kept(seen, LLAVA, tile, 9)) == list(range(9))


def test_neighbours_of_another_tile_are_none() -> None:
    """Tokens are compared within a tile, so places are those of one grid."""
    tile = Tile(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 0]))
    assert _kept(around(torch.tensor([True, False, False]), tile)) == [1]


def test_flowcut_by_hand() -> None:
    """Three layers, five patches, two to stay: pruning at r = 2 and r = 0."""
    first = Flow(
        torch.tensor([0.1, 0.2, 0.3, 0.05, 0.15]),
        torch.tensor([0.2, 0.2, 0.1, 0.1, 0.2]),
        torch.tensor([1.0, 2.0, 1.0, 4.0, 1.0]),
    )
    # Shares of attention: .125 .25 .375 .0625 .1875; of similarity: .25 .25 .125 .125 .25.
    score = [0.375, 1.0, 0.5, 0.75, 0.4375]
    shares = [0.125, 0.25, 0.375, 0.0625, 0.1875]
    ratio = -sum(share * math.log(share) for share in shares) / math.log(5)
    gone = (5 - 2) / math.sqrt(2) * (1 - ratio**2)
    assert round(gone) == 0 and gone > 0.3, "one more layer like it would matter"
    second = Flow(first.attention.flip(0), first.similarity, first.norm)
    # .1875 + .0625 + .375 + .25 + .125 of attention; the scores before halve.
    later = [0.4375, 0.625, 0.5, 1.5, 0.375]
    halves = [(a + b) / 2 for a, b in zip(score, later, strict=True)]
    third = Flow(torch.tensor([9.0, 0, 0, 0, 0]), torch.tensor([1.0, 0, 0, 0, 0]), first.norm)
    last = [(halves[0] + 2.0) / 2, *[half / 2 for half in halves[1:]]]
    order = sorted(range(5), key=lambda patch: -last[patch])
    assert order[:2] == [0, 3]
    assert _kept(flowed([first, second, third], 2)) == [0, 3]
    assert _kept(flowed([first], 3)) == [1, 2, 3]
    assert _kept(flowed([first, second, third], 5)) == [0, 1, 2, 3, 4]


def test_flowcut_drops_early_where_attention_is_narrow_and_what_is_gone_stays_gone() -> None:
    """All attention on one of four patches: entropy 0, so round((4 - 1) / sqrt(2)) = 2 go."""
    narrow = Flow(torch.tensor([0.0, 0, 0, 1]), torch.zeros(4), torch.ones(4))
    wide = Flow(torch.tensor([9.0, 1, 1, 1]) / 12, torch.zeros(4), torch.ones(4))
    assert _kept(flowed([narrow, wide, wide], 1)) == [0]  # of equal ones the first two stay: 0, 3
    low = Flow(torch.tensor([9.0, 1, 1, 1]) / 12, torch.zeros(4), torch.tensor([1.0, 50, 1, 1]))
    assert _kept(flowed([narrow, wide, low], 1)) == [0], "1 is gone"
    nothing = flowed([Flow(torch.zeros(3), torch.zeros(3), torch.ones(3))], 2)
    assert _kept(nothing) == [0, 1], "no attention at all is no NaN"


def test_flowcut_against_the_definition_in_loops() -> None:
    generator = torch.Generator().manual_seed(3)
    for target in (1, 3, 7, 12):
        layers = [
            Flow(*(torch.rand(13, generator=generator).double() ** 4 for _ in range(3)))
            for _ in range(7)
        ]
        assert _kept(flowed(layers, target)) == _flowed_in_loops(layers, target)


def _flowed_in_loops(layers: list[Flow], target: int) -> list[int]:
    alive, cumulative = list(range(13)), {}
    for number, layer in enumerate(layers):
        to_come = len(layers) - 1 - number
        if len(alive) <= target:
            break
        total = [sum(float(column[i]) for i in alive) for column in layer[:2]]
        for i in alive:
            score = sum(float(layer[k][i]) / total[k] for k in range(2)) * float(layer.norm[i])
            cumulative[i] = (cumulative[i] + score) / 2 if number else score
        if to_come % 2:
            continue
        entropy = 0.0
        for i in alive:
            share = float(layer.attention[i]) / total[0]
            entropy -= share * math.log(share)
        ratio = entropy / math.log(len(alive))
        gone = len(alive)
        if to_come:
            gone = round((len(alive) - target) / math.sqrt(to_come) * (1 - ratio * ratio))
        stay = max(target, len(alive) - gone)
        alive = sorted(sorted(alive, key=lambda i: -cumulative[i])[:stay])
    return alive


def test_a_budget_is_at_least_one_token() -> None:
    assert [budget(keep, 16) for keep in (0.01, 0.25, 0.334, 1.0)] == [1, 4, 5, 16]


def test_towers_that_are_too_short_and_names_that_are_unknown() -> None:
    with pytest.raises(ValueError, match="reads the last layer but one of the vision tower, which"):
        FasterVlm().needs(Depths(1, 0, 0))
    with pytest.raises(ValueError, match="flowcut reads all layers of the vision tower but the la"):
        FlowCut().needs(Depths(2, 1, 0))
    with pytest.raises(ValueError, match="`from_layer` must be at least 1, got 0"):
        FastV().needs(Depths(2, 1, 0))
    with pytest.raises(ValueError, match=r"must be one of faster_vlm, evit, .*, got 'dyvte'"):
        selector_of("dyvte")
    assert list(SELECTORS) == ["faster_vlm", "evit", "hiprune", "flowcut", "fastv"]
