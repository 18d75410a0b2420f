"""The arithmetic of VHD, by hand and against loops."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from analysis.vision.divergence import (
    activation,
    cosine_divergence,
    divergence,
    outliers,
    relative_divergence,
    token_divergence,
    vision_aware,
    without_outliers,
)


def test_by_hand():
    seen = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    unseen = torch.tensor([[0.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
    assert divergence(seen, unseen).tolist() == [5.0, 3.0, 1.0]
    assert activation(unseen).tolist() == [0.0, 1.0, 2.0]
    assert relative_divergence(seen, unseen).tolist() == [1.0, 1.5, 1.0]
    cosine = cosine_divergence(seen, unseen)
    assert math.isnan(cosine[0]) and cosine[1] == 2.0
    assert cosine[2] == pytest.approx(1 - math.sqrt(0.5))
    assert math.isnan(relative_divergence(unseen, seen)[0])


def test_the_reversed_roles_give_other_values():
    seen, unseen = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0]])
    assert relative_divergence(seen, unseen) != relative_divergence(unseen, seen)
    assert activation(unseen) == 1.0  # squared, and without the image
    assert activation(2 * unseen) == 4.0


def test_an_outlier_must_exceed_both_limits_of_its_layer():
    vhd = torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0])
    loud = torch.tensor([1.0, 1.0, 1.0, 9.0, 1.0])
    assert outliers(vhd, loud).tolist() == [False] * 3 + [True, False]
    assert without_outliers(vhd, loud).tolist() == [1.0, 1.0, 1.0, 0.0, 1.0]
    elsewhere = torch.tensor([9.0, 1.0, 1.0, 1.0, 1.0])
    assert not outliers(vhd, elsewhere).any() and not outliers(elsewhere, loud).any()
    # 9 lies above mean + std of this layer, and 5 of the next; the limits are of one layer each.
    layers = torch.tensor([[1.0, 2.0, 9.0], [1.0, 5.0, 2.0]])
    assert outliers(layers, layers).tolist() == [[False, False, True], [False, True, False]]


def test_the_standard_deviation_is_that_of_a_sample():
    # Mean 1.55; the largest is 1.65 above it: more than 1.55 (population), less than 1.79 (sample).
    values = torch.tensor([0.0, 0.0, 3.0, 3.2])
    above = 3.2 - statistics.mean(values.tolist())
    assert statistics.pstdev(values.tolist()) < above < statistics.stdev(values.tolist())
    assert not outliers(values, values).any()


def test_layers_of_one_or_two_heads_have_no_outliers():
    for heads in (1, 2):
        values = torch.arange(1.0, heads + 1)
        assert not outliers(values, values).any()


@pytest.mark.parametrize(
    ("vhd", "chosen"),
    [
        ([1.0, 4.0, 2.0, 3.0], [False, True, False, True]),
        ([5.0, 1.0, 3.0], [True, False, False]),
        ([2.0, 2.0, 1.0, 3.0], [False, False, False, True]),
        ([2.0, 2.0, 2.0, 1.0], [False, False, False, False]),
        ([1.0, 1.0, 1.0], [False, False, False]),
        ([0.0, 0.0, 0.0, 3.0, 2.0], [False, False, False, True, True]),
        ([7.0], [False]),
    ],
)
def test_heads_strictly_above_the_median_of_their_layer(vhd, chosen):
    ours = vision_aware(torch.tensor(vhd))
    assert ours.tolist() == chosen
    assert ours.tolist() == [value > statistics.median(vhd) for value in vhd]


def test_each_layer_has_its_own_median():
    vhd = torch.tensor([[1.0, 2.0, 3.0], [30.0, 20.0, 10.0]])
    assert vision_aware(vhd).tolist() == [[False, False, True], [True, False, False]]


def test_t_vhd_adds_up_the_largest_of_every_layer():
    layers = [torch.tensor([[1.0, 5.0, 3.0]]), torch.tensor([[2.0, 0.5, 7.0, 4.0, 1.0]])]
    assert token_divergence(layers, 1).tolist() == [5.0 + 7.0]
    assert token_divergence(layers, 2).tolist() == [5.0 + 3.0 + 7.0 + 4.0]
    assert token_divergence(layers, 4).tolist() == [9.0 + 7.0 + 4.0 + 2.0 + 1.0]
    assert token_divergence(layers, 99).tolist() == [9.0 + 14.5]
    assert token_divergence(layers).tolist() == [5.0 + 7.0]
    eight = torch.arange(8.0)[None]
    assert token_divergence([eight, eight]).tolist() == [2 * (7.0 + 6.0)]
    with pytest.raises(ValueError, match=r"^`k` must be at least 1, got 0\.$"):
        token_divergence(layers, 0)
    with pytest.raises(ValueError, match="at least one layer"):
        token_divergence([])


def test_half_precision_is_compared_in_float32():
    seen = torch.tensor([[100.0, 1.0]], dtype=torch.bfloat16)
    unseen = torch.tensor([[99.5, 1.5]], dtype=torch.bfloat16)
    expected = math.hypot(float(seen[0, 0] - unseen[0, 0]), -0.5)
    assert divergence(seen, unseen).dtype == torch.float32
    assert float(divergence(seen, unseen)[0]) == pytest.approx(expected)
    assert float(activation(seen)[0]) == 10_001.0  # bfloat16 would say 9984


def test_everything_against_loops():
    torch.manual_seed(3)
    seen, unseen = torch.randn(5, 7, 3), torch.randn(5, 7, 3)
    vhd, loud = divergence(seen, unseen), activation(unseen)
    flagged, chosen = outliers(vhd, loud), vision_aware(without_outliers(vhd, loud))
    for read in range(5):
        by_head, by_size = [], []
        for head in range(7):
            pairs = list(zip(seen[read, head].tolist(), unseen[read, head].tolist(), strict=True))
            by_head.append(math.sqrt(sum((a - b) ** 2 for a, b in pairs)))
            by_size.append(sum(b * b for _, b in pairs))
            size = math.sqrt(sum(a * a for a, _ in pairs))
            dot = sum(a * b for a, b in pairs)
            cosine = 1 - dot / (size * math.sqrt(by_size[-1]))
            assert float(vhd[read, head]) == pytest.approx(by_head[-1], rel=1e-5)
            relative = float(relative_divergence(seen, unseen)[read, head])
            assert relative == pytest.approx(by_head[-1] / size, rel=1e-5)
            found = float(cosine_divergence(seen, unseen)[read, head])
            assert found == pytest.approx(cosine, abs=1e-5)
        limits = [statistics.mean(v) + statistics.stdev(v) for v in (by_head, by_size)]
        out = [a > limits[0] and b > limits[1] for a, b in zip(by_head, by_size, strict=True)]
        assert flagged[read].tolist() == out
        kept = [0.0 if o else v for o, v in zip(out, by_head, strict=True)]
        assert chosen[read].tolist() == [v > statistics.median(kept) for v in kept]
        total = sum(sorted(by_head)[-3:])
        assert float(token_divergence([vhd], 3)[read]) == pytest.approx(total, rel=1e-5)
