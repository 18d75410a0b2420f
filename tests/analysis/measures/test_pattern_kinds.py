"""Stripes and blocks by plain loops, and seven planted kinds told apart by features."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from synthetic_calls import (
    furthest,
    image_tokens,
    null,
    packed_call,
    random_call,
    scored,
    text_tokens,
    value,
    whole_call,
)
from torch import Tensor

from analysis.scores import BatchScores
from probes.masks import AttentionMask

IDS = [[9, *range(1, 17)], [9, 4, 7, 4, 5], [9, 3, 2, 1, 6, 8, 4, 2, 2, 7, 1]]
KINDS = ("diagonal", "previous", "stripe", "block", "uniform", "row_band", "mixture")
FEATURES = {
    "vision": [("self_attention", ""), ("row_band", "left"), ("row_band", "up"),
               ("row_band", "down"), ("stripe", ""), ("block", ""), ("block", "edges"),
               ("entropy_normalised", ""), ("best_offset", "patches")],
    "language": [("self_attention", ""), ("previous_token", ""), ("stripe", ""), ("block", ""),
                 ("block", "edges"), ("entropy_normalised", ""), ("best_offset", "tokens"),
                 ("best_offset", "tokens_back")],
}  # fmt: skip


def loops(pattern: Tensor, causal: bool) -> dict[tuple[str, str], float]:
    """Stripe and block of one head and one sequence ``[query key]``."""
    rows = pattern.double().tolist()
    n = len(rows)

    def cosine(left: list[float], right: list[float]) -> float:
        product = sum(a * b for a, b in zip(left, right, strict=True))
        sizes = (sum(a * a for a in part) for part in (left, right))
        return product / (next(sizes) * next(sizes)) ** 0.5

    stripe = 0.0
    for k in range(n):
        readers = [q for q in range(n) if not causal or k <= q]
        column = [rows[q][k] for q in readers]
        chance = sum(1 / ((q + 1) if causal else n) for q in readers)
        alike = sum(column) ** 2 / (sum(w * w for w in column) * len(readers))
        stripe += max(0.0, sum(column) - chance) * alike / n
    near = [cosine(rows[q], rows[q - 1]) for q in range(1, n)]
    every = [cosine(rows[q], rows[p]) for q in range(n) for p in range(n) if p != q]
    change = [1 - c for c in near]
    return {
        ("stripe", ""): stripe,
        ("block", ""): sum(near) / len(near) - sum(every) / len(every),
        ("block", "edges"): sum(c * c for c in change) / sum(max(c, 0.01) for c in change),
    }


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("rows", [1, 3, 64])
def test_stripe_and_block_equal_plain_loops(side: str, causal: bool, rows: int) -> None:
    tokens = text_tokens(IDS, side=side)
    call = random_call(tokens, heads=6, kv_heads=2, causal=causal, sharpness=1.0)
    scores = scored(call, tokens, measures=["stripe", "block"], rows=rows)
    for example, ids in enumerate(IDS):
        start = 17 - len(ids) if side == "left" else 0
        real = slice(start, start + len(ids))
        for head in (0, 5):
            expected = loops(call.pattern()[example, head, real, real], causal)
            for place, column in enumerate(scores.columns):
                if column.head == head:
                    found = scores.numerator[example, place] / scores.denominator[example, place]
                    number = expected[column.measure, column.variant]
                    assert float(found) == pytest.approx(number, abs=2e-6), (column, example)


def test_windows_without_positions_are_sequences_of_their_own() -> None:
    """Two windows of each of two images in the batch axis, as in a Swin."""
    call = random_call(image_tokens((2, 3), images=4, cls=False), causal=False)
    call = replace(call, query_index=None, key_index=None)
    scores = scored(call, None, measures=["stripe", "block", "row_band"], examples=2)
    assert "positions of vision are not known" in scores.reasons["vision", "row_band"]
    for example in range(2):
        parts = [loops(call.pattern()[row, 1], False) for row in (2 * example, 2 * example + 1)]
        for place, column in enumerate(scores.columns):
            if column.head == 1:
                found = scores.numerator[example, place] / scores.denominator[example, place]
                number = sum(part[column.measure, column.variant] for part in parts) / 2
                assert float(found) == pytest.approx(number, abs=2e-6)


def test_sequences_packed_in_one_row_do_not_touch() -> None:
    call, packed = packed_call((6, 9), causal=False)
    scores = scored(call, packed, measures=["stripe", "block"], rows=4)
    for example, part in enumerate((slice(0, 6), slice(6, 15))):
        expected = loops(call.pattern()[0, 2, part, part], False)
        for place, column in enumerate(scores.columns):
            if column.head == 2:
                found = scores.numerator[example, place] / scores.denominator[example, place]
                assert float(found) == pytest.approx(
                    expected[column.measure, column.variant], abs=2e-6
                )


def test_stripe_and_block_by_hand() -> None:
    n = 12
    place = torch.arange(n)
    group = place // 4
    blocks = (group[:, None] == group).float()
    window = ((place[:, None] - place).abs() <= 2).float()
    stripe = torch.eye(n)[5].repeat(n, 1)
    pattern = torch.stack([blocks, window, stripe]) + 1e-7
    pattern /= pattern.sum(-1, keepdim=True)
    tokens = text_tokens([list(range(n))])
    scores = scored(whole_call(pattern[None], tokens), tokens, measures=["stripe", "block"])
    # 9 of 11 neighbours share a block, and 3 of 11 other rows.
    assert value(scores, "block", "", 0) == pytest.approx(9 / 11 - 3 / 11, abs=1e-5)
    assert value(scores, "block", "edges", 0) == pytest.approx(2 / (2 + 9 * 0.01), abs=1e-4)
    # A sliding window is as much alike, but changes at every step.
    assert value(scores, "block", "", 1) > 0.3
    assert value(scores, "block", "edges", 1) < 0.25
    assert value(scores, "stripe", "", 2) == pytest.approx(11 / 12, abs=1e-5)
    assert value(scores, "block", "", 2) == pytest.approx(0, abs=1e-5)
    assert value(scores, "stripe", "", 0) == pytest.approx(0, abs=1e-5)
    assert null(scores, "stripe", "", 2) == pytest.approx(0, abs=1e-9)


def test_half_the_weight_in_a_stripe_counts_half() -> None:
    n = 40
    pattern = 0.5 * torch.eye(n) + 0.5 * torch.eye(n)[3].repeat(n, 1) + 1e-8
    tokens = text_tokens([list(range(n))])
    scores = scored(whole_call(pattern[None, None], tokens), tokens, measures="stripe")
    assert value(scores, "stripe") == pytest.approx(0.5, abs=0.03)


def test_generated_tokens_are_left_out() -> None:
    tokens = text_tokens([list(range(7))])
    call = replace(random_call(tokens), step=1)
    assert not scored(call, tokens, measures=["stripe", "block"]).columns


def test_tiles_change_nothing() -> None:
    tokens = image_tokens((5, 7), images=2)
    call = random_call(tokens, causal=False)
    measures = ["stripe", "block"]
    whole = scored(call, tokens, measures=measures)
    assert furthest(whole, scored(call, tokens, measures=measures, rows=4))[0] < 1e-6


def planted(kind: str, grid: tuple[int, int], causal: bool, seed: int) -> Tensor:
    """``[query key]`` of one kind with a fifth of noise on top; rows sum to one."""
    draw = torch.Generator().manual_seed(seed)
    n = grid[0] * grid[1]
    place = torch.arange(n)
    made = torch.zeros(n, n)
    if kind == "diagonal":
        made[place, place] = 1
    elif kind == "previous":
        made[place, (place - 1).clamp_min(0)] = 1
    elif kind == "stripe":
        made[:, torch.randperm(n // 4, generator=draw)[: 1 + seed % 3]] = 1
    elif kind == "block":
        groups = 3 + seed % 3
        moved = torch.randint(-n // 12, n // 12, (groups - 1,), generator=draw)
        edges = torch.arange(1, groups) * n // groups + moved
        group = (place[:, None] >= edges).sum(1)
        made = (group[:, None] == group).float()
    elif kind == "uniform":
        made[:] = 1
    elif kind == "row_band":
        for step in (-grid[1],) if causal else (-grid[1], grid[1]):
            there = (place + step >= 0) & (place + step < n)
            made[place[there], place[there] + step] = 1
    else:
        made = torch.rand(n, n, generator=draw).pow(8)
    made = made.tril() if causal else made
    made = made / made.sum(-1, keepdim=True).clamp_min(1e-9)
    noise = torch.rand(n, n, generator=draw).pow(3) + 1e-6
    noise = noise.tril() if causal else noise
    mixed = 0.8 * made + 0.2 * noise / noise.sum(-1, keepdim=True)
    return mixed / mixed.sum(-1, keepdim=True)


def features(
    kind: str, grid: tuple[int, int], causal: bool, seeds: range
) -> tuple[list[Tensor], BatchScores]:
    n = grid[0] * grid[1]
    tokens = text_tokens([list(range(n))]) if causal else image_tokens(grid, cls=False)
    patterns = torch.stack([planted(kind, grid, causal, seed) for seed in seeds])[None]
    call = whole_call(patterns, tokens)
    call.mask = AttentionMask(n, n, causal=causal)
    names = FEATURES["language" if causal else "vision"]
    scores = scored(call, tokens, measures=sorted({name for name, _ in names}))
    rows = [
        torch.tensor([value(scores, *name, head) for name in names]).nan_to_num(0.0)
        for head in range(len(seeds))
    ]
    return rows, scores


@pytest.mark.parametrize("causal", [False, True])
def test_seven_planted_kinds_are_nearest_to_their_own(causal: bool) -> None:
    """Leave-one-resolution-out: each pattern is nearest to the mean of its kind elsewhere."""
    grids = ((6, 7), (8, 8), (11, 9))
    scale = torch.ones(len(FEATURES["language" if causal else "vision"]))
    if causal:
        scale[-1] = 0.0  # the offset in tokens grows with the image
    points = {
        (kind, grid): torch.stack(features(kind, grid, causal, range(6))[0]) * scale
        for kind in KINDS
        for grid in grids
    }
    wrong = []
    for (kind, grid), rows in points.items():
        means = torch.stack([
            torch.cat([points[k, g] for g in grids if g != grid]).mean(0) for k in KINDS
        ])  # fmt: skip
        nearest = torch.cdist(rows, means).argmin(1)
        wrong += [(kind, grid, KINDS[i]) for i in nearest.tolist() if KINDS[i] != kind]
    assert not wrong


@pytest.mark.parametrize("causal", [False, True])
def test_which_value_each_kind_takes(causal: bool) -> None:
    """The feature that names a kind is large for it alone."""
    previous = ("previous_token", "") if causal else ("row_band", "left")
    marks = {("self_attention", ""): "diagonal", previous: "previous", ("stripe", ""): "stripe"}
    if not causal:
        marks |= {("row_band", "up"): "row_band", ("row_band", "down"): "row_band"}
    found = {kind: features(kind, (8, 8), causal, range(4))[1] for kind in KINDS}
    for (name, variant), owner in marks.items():
        values = {
            kind: [value(found[kind], name, variant, head) for head in range(4)] for kind in KINDS
        }
        least = min(values.pop(owner))
        most = max(max(part) for part in values.values())
        assert least > most + 0.15, (name, variant, least, values)
    for kind, scores in found.items():
        block = min(value(scores, "block", "", head) for head in range(4))
        edges = min(value(scores, "block", "edges", head) for head in range(4))
        assert (block > 0.25 and edges > 0.25) == (kind == "block"), (kind, block, edges)
        entropy = min(value(scores, "entropy_normalised", "", head) for head in range(4))
        assert (entropy > 0.96) == (kind == "uniform"), (kind, entropy)
    if causal:
        scores = found["row_band"]
        assert value(scores, "best_offset", "tokens_back") == 8
        assert value(scores, "best_offset", "tokens") > 0.6
