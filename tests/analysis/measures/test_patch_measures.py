"""Hops and distances on patch grids, by hand and by plain loops."""

from __future__ import annotations

from dataclasses import replace
from math import hypot

import pytest
import torch
from synthetic_calls import image_tokens, null, random_call, scored, value, whole_call
from torch import Tensor

from probes.tokens.map import ROLES, TowerTokens, blank_tokens

# CLS, then a grid of one row of three patches.
BY_HAND = [
    [0.70, 0.10, 0.10, 0.10],
    [0.20, 0.40, 0.30, 0.10],
    [0.50, 0.10, 0.25, 0.15],
    [0.00, 0.60, 0.20, 0.20],
]


def test_values_by_hand() -> None:
    tokens = image_tokens((1, 3))
    scores = scored(whole_call(torch.tensor(BY_HAND)[None, None], tokens), tokens)
    # Patch rows renormalised: (0.5 0.375 0.125), (0.2 0.5 0.3), (0.6 0.2 0.2).
    mass = [(0.5 + 0.5 + 0.2) / 3, (0.375 + 0.5 + 0.2) / 3, (0.125 + 0.0 + 0.6) / 3]
    for hop, expected in enumerate(mass):
        assert value(scores, "hop_mass", f"k={hop}") == pytest.approx(expected, abs=1e-6)
        expected_lift = expected / [3 / 9, 4 / 9, 2 / 9][hop]
        assert value(scores, "hop_lift", f"k={hop}") == pytest.approx(expected_lift, abs=1e-6)
    assert value(scores, "hop_density", "k=0") == pytest.approx(mass[0], abs=1e-6)
    assert value(scores, "hop_density", "k=1") == pytest.approx((0.375 + 0.25 + 0.2) / 3, abs=1e-6)
    # Only the two outer patches have a key two hops away.
    assert value(scores, "hop_density", "k=2") == pytest.approx((0.125 + 0.6) / 2, abs=1e-6)
    assert value(scores, "mean_hop") == pytest.approx(mass[1] + 2 * mass[2], abs=1e-6)
    assert value(scores, "local_share") == pytest.approx(mass[0] + mass[1], abs=1e-6)
    distance = mass[1] + 2 * mass[2]
    assert value(scores, "attention_distance_patches") == pytest.approx(distance, abs=1e-6)
    assert value(scores, "role_mass", "image->cls") == pytest.approx(0.7 / 3, abs=1e-6)
    assert value(scores, "role_mass", "cls->image") == pytest.approx(0.3, abs=1e-6)
    assert value(scores, "confidence", "no_sink") == pytest.approx(
        (0.1 + 0.4 + 0.25 + 0.6) / 4, abs=1e-6
    )


def test_the_null_has_the_pairs_of_a_grid() -> None:
    """Ordered pairs of a 14 x 14 grid at each Chebyshev hop, over all pairs."""
    pairs = [196, 1404, 2496, 3300, 3840, 4140, 4224, 4116, 3840, 3420, 2880, 2244, 1536, 780]
    tokens = image_tokens((14, 14))
    scores = scored(random_call(tokens, heads=2, causal=False), tokens, measures="hop_mass")
    curve = scores.curves["vision", 0, "hop_mass"]
    expected = torch.tensor(pairs, dtype=torch.float64) / 196**2
    torch.testing.assert_close(curve.null, expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(curve.value.sum(-1), torch.ones(2).double(), atol=1e-6, rtol=0)


def loops(pattern: Tensor, tokens: TowerTokens, causal: bool) -> dict[str, dict[int, float]]:
    """Mass, density and distance of one head and one sequence, by plain loops."""
    place = [
        (index, int(tokens.row[index]), int(tokens.column[index]))
        for index in range(pattern.shape[0])
        if tokens.row[index] >= 0
    ]
    mass: dict[int, float] = {}
    density: dict[int, list[float]] = {}
    distance, count = 0.0, 0
    for q, row, column in place:
        total = sum(float(pattern[q, k]) for k, _, _ in place)
        rings: dict[int, list[float]] = {}
        for k, other_row, other_column in place:
            if causal and k > q:
                continue
            hop = max(abs(row - other_row), abs(column - other_column))
            weight = float(pattern[q, k]) / total
            rings.setdefault(hop, []).append(weight)
            distance += weight * hypot(row - other_row, column - other_column)
        for hop, weights in rings.items():
            mass[hop] = mass.get(hop, 0.0) + sum(weights)
            density.setdefault(hop, []).append(sum(weights) / len(weights))
        count += 1
    return {
        "mass": {hop: total / count for hop, total in mass.items()},
        "density": {hop: sum(values) / len(values) for hop, values in density.items()},
        "distance": {0: distance / count},
    }


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rows", [4, 64])
def test_values_equal_plain_loops(causal: bool, rows: int) -> None:
    """Also in a causal language tower, where text stands before and after the patches."""
    image = image_tokens((3, 5), cls=False, tower="language")
    n = 4 + 15 + 2
    tokens = blank_tokens("language", [n], [0], "text")
    inside = slice(4, 19)
    columns = {name: getattr(tokens, name).clone() for name in
               ("role", "row", "column", "image", "tile")}  # fmt: skip
    for name, column in columns.items():
        column[inside] = getattr(image, name)
    tokens = replace(tokens, **columns)
    call = random_call(tokens, causal=causal)
    scores = scored(call, tokens, rows=rows)
    pattern = call.pattern()[0].double()
    for head in range(3):
        expected = loops(pattern[head], tokens, causal)
        for hop in range(4):
            found = value(scores, "hop_mass", f"k={hop}", head)
            assert found == pytest.approx(expected["mass"][hop], abs=1e-6)
            found = value(scores, "hop_density", f"k={hop}", head)
            assert found == pytest.approx(expected["density"][hop], abs=1e-6)
        found = value(scores, "attention_distance_patches", "", head)
        assert found == pytest.approx(expected["distance"][0], abs=1e-6)
        curve = scores.curves["language", 0, "hop_mass"].value[head]
        assert curve[4] == pytest.approx(expected["mass"][4], abs=1e-6)


def test_plausible_wrong_formulas_differ() -> None:
    tokens = image_tokens((3, 5))
    call = random_call(tokens, causal=False)
    scores = scored(call, tokens)
    p = call.pattern()[0, 0, 1:, 1:].double()
    row, column = torch.arange(15) // 5, torch.arange(15) % 5
    down = (row[:, None] - row).abs()
    across = (column[:, None] - column).abs()
    hop = torch.maximum(down, across)
    normal = p / p.sum(-1, keepdim=True)
    wrong = {
        ("hop_mass", "k=1"): {
            "not renormalised": (p * (hop == 1)).sum() / 15,
            "Manhattan": (normal * (down + across == 1)).sum() / 15,
            "disc": (normal * (hop <= 1)).sum() / 15,
            "total over total": (p * (hop == 1)).sum() / p.sum(),
        },
        ("hop_density", "k=1"): {"largest ring": (normal * (hop == 1)).sum() / 15 / 8},
        ("attention_distance_patches", ""): {
            "Chebyshev": (normal * hop).sum() / 15,
            "Manhattan": (normal * (down + across)).sum() / 15,
            "row by column swapped": (
                normal
                * torch.hypot(
                    (torch.arange(15) // 3)[:, None].double() - torch.arange(15) // 3,
                    (torch.arange(15) % 3)[:, None].double() - torch.arange(15) % 3,
                )
            ).sum()
            / 15,
        },
    }
    for (name, variant), formulas in wrong.items():
        for what, other in formulas.items():
            assert abs(value(scores, name, variant) - float(other)) > 1e-3, (name, what)


def test_tiles_of_an_image_are_grids_of_their_own() -> None:
    tokens = image_tokens((2, 4), cls=False)
    tile = torch.arange(8) // 4
    tokens = replace(tokens, tile=tile, row=torch.zeros(8, dtype=torch.long))
    call = random_call(tokens, causal=False)
    scores = scored(call, tokens)
    p = call.pattern()[0, 0].double()
    blocks = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)).double()
    normal = p * blocks / (p * blocks).sum(-1, keepdim=True)
    assert value(scores, "hop_mass", "k=0") == pytest.approx(
        float(normal.diagonal().mean()), abs=1e-6
    )
    assert null(scores, "hop_mass", "k=0") == pytest.approx(1 / 4, abs=1e-6)


def test_images_of_different_shapes_share_a_batch() -> None:
    """A packed row with a 2 x 3 and a 3 x 4 image: curves are as long as the larger needs."""
    small, large = image_tokens((2, 3), cls=False), image_tokens((3, 4), cls=False)
    columns = {
        name: torch.cat([getattr(small, name), getattr(large, name)])
        for name in ("role", "ids", "image", "tile", "row", "column", "box")
    }
    tokens = TowerTokens(
        tower="vision", starts=torch.tensor([0, 6, 18]),
        example=torch.tensor([0] * 6 + [1] * 12), **columns,
    )  # fmt: skip
    index = torch.arange(18)[None]
    blocks = torch.block_diag(torch.ones(6, 6), torch.ones(12, 12)).bool()
    base = random_call(replace(tokens, starts=torch.tensor([0, 18])), causal=False)
    call = replace(base, mask=replace(base.mask, tensor=blocks), query_index=index, key_index=index)
    scores = scored(call, tokens, rows=5)
    pattern = call.pattern()[0].double()
    for example, (part, of) in enumerate(((slice(0, 6), small), (slice(6, 18), large))):
        expected = loops(pattern[1, part, part], of, causal=False)
        for place, column in enumerate(scores.columns):
            if column.measure == "hop_mass" and column.head == 1:
                found = scores.numerator[example, place] / scores.denominator[example, place]
                hop = int(column.variant.removeprefix("k="))
                assert float(found) == pytest.approx(expected["mass"].get(hop, 0.0), abs=1e-6)
    assert scores.curves["vision", 0, "hop_mass"].value.shape == (3, 4)


def test_registers_are_left_out_of_patches_and_sinks() -> None:
    tokens = image_tokens((1, 2))
    role = torch.cat([tokens.role[:1], torch.tensor([ROLES.index("register")]), tokens.role[1:]])
    grown = blank_tokens("vision", [4], [0], "image")
    shift = torch.tensor([-1, -1, 0, 0])
    grown = replace(
        grown, role=role, row=shift, image=shift, tile=shift, column=torch.tensor([-1, -1, 0, 1])
    )
    pattern = torch.tensor([[0.1, 0.6, 0.2, 0.1]]).repeat(4, 1)[None, None]
    scores = scored(whole_call(pattern, grown), grown)
    assert value(scores, "hop_mass", "k=0") == pytest.approx((2 / 3 + 1 / 3) / 2, abs=1e-6)
    assert value(scores, "confidence", "no_sink") == pytest.approx(0.2, abs=1e-6)
    assert value(scores, "confidence", "all") == pytest.approx(0.6, abs=1e-6)
    assert value(scores, "role_mass", "image->register") == pytest.approx(0.6, abs=1e-6)
