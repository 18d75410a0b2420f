"""Rings of three metrics, neighbours, spans and offsets on patch grids, against plain loops."""

from __future__ import annotations

from dataclasses import replace
from math import hypot, sqrt

import pytest
import torch
from synthetic_calls import (
    as_dict,
    furthest,
    image_tokens,
    null,
    random_call,
    scored,
    value,
    whole_call,
)
from torch import Tensor

from analysis.scores import BatchScores
from probes.attention_call import AttentionCall
from probes.tokens.map import ROLES, TowerTokens, blank_tokens

METRICS = ("chebyshev", "manhattan", "euclidean")
NAMES = [
    f"hop_{kind}{suffix}"
    for suffix in ("", "_manhattan", "_euclidean")
    for kind in ("mass", "disc", "density", "lift")
]
MEASURES = [*NAMES, "row_band", "best_offset", "attention_span", "attention_distance_patches",
            "mean_hop", "local_share"]  # fmt: skip


def ring(metric: str, down: int, across: int) -> int:
    down, across = abs(down), abs(across)
    far = {"chebyshev": max(down, across), "manhattan": down + across}
    return far.get(metric, int(hypot(down, across) + 0.5))


def loops(
    patterns: list[Tensor], tokens: list[TowerTokens], causal: bool = False
) -> dict[tuple[str, str], float]:
    """The measures of one head over the sequences of one example, pair by pair."""
    found: dict[tuple[str, str], float] = {}
    mass = {metric: {} for metric in METRICS}
    even = {metric: {} for metric in METRICS}
    density = {metric: {} for metric in METRICS}
    offsets: dict[tuple[int, int], float] = {}
    pairs: dict[tuple[int, int], int] = {}
    count, distance = 0, 0.0
    for pattern, one in zip(patterns, tokens, strict=True):
        at = [i for i in range(len(one)) if one.row[i] >= 0]
        for q in at:
            keys = [
                k for k in at
                if (one.image[k], one.tile[k]) == (one.image[q], one.tile[q])
                and (not causal or k <= q)
            ]  # fmt: skip
            total = sum(float(pattern[q, k]) for k in keys)
            if total == 0:
                continue
            count += 1
            rings: dict[str, dict[int, list[float]]] = {metric: {} for metric in METRICS}
            for k in keys:
                weight = float(pattern[q, k]) / total
                step = int(one.row[k] - one.row[q]), int(one.column[k] - one.column[q])
                offsets[step] = offsets.get(step, 0.0) + weight
                pairs[step] = pairs.get(step, 0) + 1
                distance += weight * hypot(*step)
                for metric in METRICS:
                    hop = ring(metric, *step)
                    rings[metric].setdefault(hop, []).append(weight)
                    even[metric][hop] = even[metric].get(hop, 0.0) + 1 / len(keys)
            for metric in METRICS:
                for hop, weights in rings[metric].items():
                    mass[metric][hop] = mass[metric].get(hop, 0.0) + sum(weights)
                    density[metric].setdefault(hop, []).append(sum(weights) / len(weights))
    for metric in METRICS:
        suffix = "" if metric == "chebyshev" else f"_{metric}"
        for hop in range(4):
            if hop in density[metric]:
                each = density[metric][hop]
                found[f"hop_density{suffix}", f"k={hop}"] = sum(each) / len(each)
                found[f"hop_mass{suffix}", f"k={hop}"] = mass[metric][hop] / count
                found[f"hop_lift{suffix}", f"k={hop}"] = mass[metric][hop] / even[metric][hop]
                within = sum(w for other, w in mass[metric].items() if other <= hop)
                found[f"hop_disc{suffix}", f"k={hop}"] = within / count
    steps = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
    for name, step in steps.items():
        if step in pairs:
            found["row_band", name] = offsets[step] / pairs[step]
    best = max(offsets, key=lambda step: offsets[step])
    found["best_offset", "patches"] = offsets[best] / count
    found["best_offset", "rows_down"], found["best_offset", "columns_right"] = best
    found["attention_distance_patches", ""] = distance / count
    running, total = 0.0, sum(offsets.values())
    for step in sorted(offsets, key=lambda step: hypot(*step)):
        running += offsets[step]
        if running >= 0.95 * total:
            found["attention_span", "patches"] = hypot(*step)
            break
    return found


def check(scores: BatchScores, expected: dict[tuple[str, str], float], head: int) -> None:
    for (name, variant), number in expected.items():
        found = value(scores, name, variant, head)
        assert found == pytest.approx(number, abs=2e-6), (name, variant, head)


def joined(*parts: TowerTokens) -> TowerTokens:
    """Sequences of several maps as one example's sequences, one after the other in one row."""
    columns = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("role", "ids", "image", "tile", "row", "column", "box")
    }
    lengths = torch.tensor([0, *(len(part) for part in parts)])
    example = torch.zeros(int(lengths.sum()), dtype=torch.long)
    return TowerTokens(tower=parts[0].tower, starts=lengths.cumsum(0), example=example, **columns)


def within_text(grid: tuple[int, int], before: int, after: int) -> TowerTokens:
    """A language tower that holds an image between words."""
    image = image_tokens(grid, cls=False, tower="language")
    tokens = blank_tokens("language", [before + len(image) + after], [0], "text")
    changed = {}
    for name in ("role", "row", "column", "image", "tile"):
        column = getattr(tokens, name).clone()
        column[before : before + len(image)] = getattr(image, name)
        changed[name] = column
    return replace(tokens, **changed)


@pytest.mark.parametrize("grid", [(3, 5), (5, 2), (1, 7)])
@pytest.mark.parametrize("rows", [4, 64])
def test_every_metric_equals_plain_loops(grid: tuple[int, int], rows: int) -> None:
    tokens = image_tokens(grid)
    call = random_call(tokens, causal=False, heads=2)
    scores = scored(call, tokens, measures=MEASURES, rows=rows)
    for head in range(2):
        check(scores, loops([call.pattern()[0, head]], [tokens]), head)


@pytest.mark.parametrize("rows", [4, 64])
def test_causal_patches_between_words(rows: int) -> None:
    tokens = within_text((3, 5), 4, 2)
    call = random_call(tokens, heads=4, kv_heads=2)
    scores = scored(call, tokens, measures=MEASURES, rows=rows)
    for head in range(4):
        check(scores, loops([call.pattern()[0, head]], [tokens], causal=True), head)
    assert value(scores, "row_band", "up") > 0
    # What the mask forbids has no pair, so nothing is measured there.
    bands = {c.variant for c in scores.columns if c.measure == "row_band"}
    assert bands == {"up", "left"}


def test_patches_in_another_order_and_with_gaps() -> None:
    """As where patches are read in groups of 2 x 2, or where some were removed."""
    tokens = image_tokens((4, 6), cls=True)
    order = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(24, generator=seeded(3))])
    for chosen in (order, torch.cat([order[:9], order[12:]]), torch.arange(25)[::1][:21]):
        columns = {
            name: getattr(tokens, name)[chosen]
            for name in ("role", "ids", "image", "tile", "row", "column", "box")
        }
        count = len(chosen)
        mixed = TowerTokens(
            tower="vision", starts=torch.tensor([0, count]),
            example=torch.zeros(count, dtype=torch.long), **columns,
        )  # fmt: skip
        call = random_call(mixed, causal=False, heads=2)
        scores = scored(call, mixed, measures=MEASURES, rows=7)
        for head in range(2):
            check(scores, loops([call.pattern()[0, head]], [mixed]), head)


def test_several_tiles_of_different_shapes_make_one_example() -> None:
    small, large = image_tokens((2, 3), cls=False), image_tokens((4, 3), cls=False)
    large = replace(large, tile=large.tile + 1)
    tokens = replace(joined(small, large), starts=torch.tensor([0, 18]))
    call = random_call(tokens, causal=False)
    scores = scored(call, tokens, measures=MEASURES, rows=5)
    by_tile = ("best_offset", "attention_span")  # means over tiles, not over queries
    for head in range(3):
        pattern = call.pattern()[0, head]
        expected = loops([pattern], [tokens])
        check(scores, {n: v for n, v in expected.items() if n[0] not in by_tile}, head)
        parts = [
            loops([pattern[part, part]], [of])
            for part, of in ((slice(0, 6), small), (slice(6, 18), large))
        ]
        check(scores, {n: (v + parts[1][n]) / 2 for n, v in parts[0].items() if n[0] in by_tile},
              head)  # fmt: skip


def test_registers_do_not_count_and_a_blind_query_is_left_out() -> None:
    """A query all of whose weight lies on the register says nothing of patches."""
    tokens = image_tokens((2, 2))
    role = torch.cat([tokens.role[:1], torch.tensor([ROLES.index("register")]), tokens.role[1:]])
    grown = blank_tokens("vision", [6], [0], "image")
    far = torch.tensor([-1, -1])
    grown = replace(
        grown, role=role, row=torch.cat([far, tokens.row[1:]]),
        column=torch.cat([far, tokens.column[1:]]), image=torch.cat([far, tokens.image[1:]]),
        tile=torch.cat([far, tokens.tile[1:]]),
    )  # fmt: skip
    pattern = torch.softmax(torch.randn(1, 2, 6, 6, generator=seeded(5)), -1)
    pattern[0, 1, 3] = torch.eye(6)[1]
    scores = scored(whole_call(pattern, grown), grown, measures=MEASURES)
    for head in range(2):
        expected = loops([pattern[0, head]], [grown])
        # What an even head puts at each hop is taken over all queries, for every head.
        kept = {name: v for name, v in expected.items() if head == 0 or "lift" not in name[0]}
        check(scores, kept, head)


def test_one_row_up_by_hand() -> None:
    """Three rows of two: the two upper rows have nothing above them but themselves."""
    tokens = image_tokens((3, 2), cls=False)
    up = torch.tensor([[0.7, 0.3, 0, 0, 0, 0], [0.2, 0.8, 0, 0, 0, 0], [0.9, 0, 0.1, 0, 0, 0],
                       [0, 0.5, 0.2, 0.3, 0, 0], [0, 0, 1.0, 0, 0, 0],
                       [0.1, 0, 0, 0.6, 0.1, 0.2]])  # fmt: skip
    # A weight of exactly 0 would count as forbidden.
    scores = scored(whole_call(up[None, None] + 1e-9, tokens), tokens, measures=MEASURES)
    assert value(scores, "row_band", "up") == pytest.approx((0.9 + 0.5 + 1.0 + 0.6) / 4, abs=1e-6)
    assert value(scores, "row_band", "left") == pytest.approx((0.2 + 0.2 + 0.1) / 3)
    assert value(scores, "row_band", "right") == pytest.approx(0.3 / 3)
    assert value(scores, "row_band", "down") == pytest.approx(0, abs=1e-6)
    assert value(scores, "best_offset", "patches") == pytest.approx(3.0 / 6)
    assert value(scores, "best_offset", "rows_down") == -1
    assert value(scores, "best_offset", "columns_right") == 0
    # Within one patch lie 5.9 of 6: 0.98; the pair (5, 0) is sqrt(5) away.
    assert value(scores, "attention_span", "patches") == 1
    assert null(scores, "row_band", "up") == pytest.approx(1 / 6)
    assert null(scores, "best_offset", "patches") == pytest.approx(1 / 6)
    assert value(scores, "hop_disc_manhattan", "k=1") == pytest.approx(5.9 / 6)
    # Both ends of the diagonal of a 3 x 2 grid: of 36 pairs, 2 are sqrt(5) away, 34 are held.
    assert null(scores, "attention_span", "patches") == pytest.approx(sqrt(5))


def test_wrong_formulas_differ() -> None:
    tokens = image_tokens((3, 5))
    call = random_call(tokens, causal=False)
    scores = scored(call, tokens, measures=MEASURES)
    p = call.pattern()[0, 0, 1:, 1:].double()
    normal = p / p.sum(-1, keepdim=True)
    row, column = torch.arange(15) // 5, torch.arange(15) % 5
    above = (row[:, None] - row == 1) & (column[:, None] == column)
    wrong = {
        ("row_band", "up"): {
            "not renormalised": (p * above).sum() / 10,
            "over all queries": (normal * above).sum() / 15,
            "transposed": (normal * above.T).sum() / 10,
        },
        ("hop_density_manhattan", "k=2"): {
            "total over total": (normal * (distance(row, column) == 2)).sum()
            / (distance(row, column) == 2).sum(),
        },
        ("hop_mass_euclidean", "k=2"): {
            "rounded down": (
                normal * (torch.hypot(*apart(row, column)).floor() == 2)
            ).sum() / 15,
        },
    }  # fmt: skip
    for (name, variant), formulas in wrong.items():
        for what, other in formulas.items():
            assert abs(value(scores, name, variant) - float(other)) > 3e-5, (name, what)


def test_batches_and_tiles_change_nothing() -> None:
    tokens = image_tokens((4, 5), images=3)
    call = random_call(tokens, causal=False)
    whole = scored(call, tokens, measures=MEASURES)
    assert furthest(whole, scored(call, tokens, measures=MEASURES, rows=3))[0] < 1e-5
    single = []
    for place in range(3):
        one = image_tokens((4, 5))
        index = torch.arange(21)[None]
        alone: AttentionCall = replace(
            call, query=call.query[place : place + 1], key=call.key[place : place + 1],
            value=call.value[place : place + 1], z=call.z[place : place + 1],
            query_index=index, key_index=index,
        )  # fmt: skip
        single.append(replace_ids(scored(alone, one, measures=MEASURES), str(place)))
    assert furthest(whole, BatchScores.merge(single))[0] < 1e-5


def test_images_of_two_sizes_in_one_batch_or_in_two() -> None:
    """Hops that a small grid does not have count as 0 in it, whatever else is in its batch."""
    small, large = image_tokens((2, 2), cls=False), image_tokens((4, 5), cls=False)
    together = joined(small, large)
    index = torch.arange(24)[None]
    blocks = torch.block_diag(torch.ones(4, 4), torch.ones(20, 20)).bool()
    split = replace(together, example=torch.tensor([0] * 4 + [1] * 20))
    base = random_call(replace(split, starts=torch.tensor([0, 24])), causal=False)
    call = replace(base, mask=replace(base.mask, tensor=blocks), query_index=index, key_index=index)
    whole = scored(call, split, measures=MEASURES)
    parts = []
    for number, (part, of) in enumerate(((slice(0, 4), small), (slice(4, 24), large))):
        pattern = call.pattern()[:, :, part, part]
        parts.append(
            replace_ids(scored(whole_call(pattern, of), of, measures=MEASURES), str(number))
        )
    merged = BatchScores.merge(parts)
    assert furthest(whole, merged)[0] < 1e-5
    curves = [one.curves["vision", 0, "hop_mass_manhattan"] for one in (whole, merged)]
    assert torch.allclose(curves[0].value, curves[1].value, atol=1e-6)
    assert torch.allclose(curves[0].null, curves[1].null, atol=1e-6)
    assert torch.allclose(curves[1].value.sum(-1), torch.ones(3).double(), atol=1e-6)


def test_where_they_are_not_measured() -> None:
    """Windows in the batch axis, another tower, text alone: a reason and no column."""
    call = random_call(image_tokens((2, 3)), causal=False)
    for tokens, key_tower, said in (
        (None, "", "positions of vision are not known"),
        ([image_tokens((2, 3)), image_tokens((2, 3), tower="other")], "other", "reads another"),
        (blank_tokens("vision", [7], [0], "image"), "", "on a grid"),
    ):
        placed = replace(call, key_tower=key_tower)
        if tokens is None:
            placed = replace(placed, query_index=None, key_index=None)
        scores = scored(placed, tokens, measures=["row_band", "best_offset", "attention_span"])
        assert not scores.columns
        for measure in ("row_band", "best_offset", "attention_span"):
            assert said in scores.reasons["vision", measure]
            assert measure in scores.reasons["vision", measure] or tokens is None


def test_other_metrics_have_to_be_named() -> None:
    tokens = image_tokens((2, 3))
    columns = as_dict(scored(random_call(tokens, causal=False), tokens))
    measured = {name for _, _, _, name, _ in columns}
    assert {"hop_mass", "hop_disc", "row_band", "best_offset", "attention_span"} <= measured
    assert not {name for name in measured if name.endswith(("manhattan", "euclidean"))}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def apart(row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
    return tuple((part[:, None] - part).abs().double() for part in (row, column))


def distance(row: Tensor, column: Tensor) -> Tensor:
    down, across = apart(row, column)
    return down + across


def replace_ids(scores: BatchScores, name: str) -> BatchScores:
    return replace(scores, examples=(name,))
