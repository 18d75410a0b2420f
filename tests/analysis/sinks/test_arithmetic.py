"""phi, massive activations, artefacts, places and ratios, by hand and by slow loops."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from synthetic_calls import image_tokens, random_call, text_tokens

from analysis.sinks.artefacts import artefacts, bimodality, in_last_third, normal_share
from analysis.sinks.massive import largest_entries, normal_ratio
from analysis.sinks.phi import default_tau, phi, tau_for
from analysis.sinks.places import Place, Places, behind_image, sequence_rank
from analysis.sinks.ratios import NOTHING, Ratios
from analysis.sinks.received import received
from probes.tokens.map import ROLES


def test_phi_by_hand() -> None:
    x = torch.tensor([[3.0, 0.0, 0.0, -4.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert phi(x, [0]).tolist() == pytest.approx([1.2, 1, 0], abs=1e-4)
    assert phi(x, [0, 3]).tolist() == pytest.approx([1.6, 1, 0], abs=1e-4)
    assert phi(x, []).tolist() == [0, 0, 0]
    assert phi(x.half() * 1e4, [3])[0] == pytest.approx(1.6, abs=1e-3)  # squares overflow in half


def test_tau_is_the_same_share_of_energy_in_narrow_models() -> None:
    assert default_tau(4096) == default_tau(8192) == 20
    assert default_tau(136) ** 2 / 136 == pytest.approx(20**2 / 4096)
    assert tau_for(136, None) == default_tau(136) and tau_for(4096, 31.0) == 31
    with pytest.raises(ValueError, match=r"between 0 and 11.66, .* 136 wide, got 20. .* for 3.64,"):
        tau_for(136, 20.0)


def test_the_largest_entries_by_hand() -> None:
    x = torch.tensor([[1.0, -2.0, 3.0], [-5.0, 400.0, 2.0], [1.0, 1.0, -4.0]])
    found = largest_entries(x, top=2)  # sizes 1 1 1 2 2 3 4 5 400: median 2, deviations from it
    assert found.value.tolist() == [400, -5]
    assert found.position.tolist() == [1, 1] and found.dimension.tolist() == [1, 0]
    assert (found.median, found.deviation, found.entries) == (2, 1, 9)
    assert found.ratio.tolist() == [200, 2.5]
    assert found.robust_z.tolist() == pytest.approx([398 / 1.4826, 3 / 1.4826])
    assert found.published.tolist() == [False, False]
    assert largest_entries(torch.tensor([[2000.0, 1.0, 2.0]])).published.tolist()[0]
    zero = largest_entries(torch.tensor([[0.0, 0.0, 7.0]]))
    assert math.isnan(zero.ratio[0]) and math.isnan(zero.robust_z[0])
    with pytest.raises(ValueError, match="must be finite, got NaN"):
        largest_entries(torch.tensor([[1.0, math.nan]]))


def test_the_null_of_the_ratio_is_that_of_normal_entries() -> None:
    draw = np.random.default_rng(3)
    sizes = np.abs(draw.normal(size=(2000, 301)))
    ratio = np.median(sizes.max(1)) / np.median(sizes)
    assert normal_ratio(301) == pytest.approx(ratio, rel=0.02)


def test_artefacts_by_hand_and_their_null() -> None:
    norms = torch.tensor([10.0, 11.0, 12.0, 13.0, 14.0, 19.0, 21.0])  # median 13, MAD 2
    assert artefacts(norms).tolist() == [False] * 7
    assert artefacts(norms, 3.5).tolist() == [False] * 6 + [True]
    assert not artefacts(torch.tensor([1.0, 1.0, 1.0, 9.0])).any()  # MAD 0: nothing can be told
    normal = np.random.default_rng(0).normal(size=2_000_001)
    above = normal > np.median(normal) + 3 * np.median(np.abs(normal - np.median(normal)))
    assert normal_share(3) == pytest.approx(float(above.mean()), rel=0.02)
    assert [in_last_third(depth, 12) for depth in (7, 8, 12)] == [False, True, True]
    assert [in_last_third(depth, 4) for depth in (2, 3)] == [False, True]


def test_bimodality_against_scipy() -> None:
    draw = np.random.default_rng(1)
    for sample in (draw.normal(size=997), draw.exponential(size=311), [1, 1, 2, 9, 9.5]):
        expected = (stats.skew(sample) ** 2 + 1) / stats.kurtosis(sample, fisher=False)
        found = bimodality(torch.tensor(np.asarray(sample, dtype=float)))
        assert found == pytest.approx(float(expected))
    assert bimodality(torch.tensor([1.0, 1.0, 9.0, 9.0])) == pytest.approx(1)
    assert math.isnan(bimodality(torch.tensor([2.0] * 9)))


@pytest.mark.parametrize("causal", [True, False])
def test_what_keys_receive_equals_loops(causal: bool) -> None:
    tokens = text_tokens([[1, 2, 3, 4, 5], [1, 2, 3]], side="left")
    call = random_call(tokens, heads=4, kv_heads=2, causal=causal)
    real = (tokens.role != ROLES.index("pad")).view(2, 5)
    got = received(call, real)
    pattern = call.pattern()
    for row in range(2):
        keys = real[row].nonzero()[:, 0].tolist()
        for k in range(5):
            readers = [q for q in keys if k in keys and (not causal or q >= k)]
            assert got.readers[row, k] == len(readers)
            uniform = sum(
                1 / len([j for j in keys if not causal or j <= q]) for q in readers
            ) / max(len(readers), 1)
            assert float(got.null[row, k]) == pytest.approx(uniform, abs=1e-6)
            for head in range(4):
                mean = sum(float(pattern[row, head, q, k]) for q in readers) / max(len(readers), 1)
                assert float(got.mean[row, head, k]) == pytest.approx(mean, abs=1e-6)
    if causal:
        assert got.judged[0].tolist() == [True, True, True, False, False]


def test_places_are_told_alike_in_every_example() -> None:
    tokens = text_tokens([[5, 6, 7, 8], [5, 6]], side="left")
    tokens = replace(tokens, text=("<s>", "a", "b", "c", "<pad>", "<pad>", "<s>", "a"))
    assert sequence_rank(tokens).tolist() == [0, 1, 2, 3, -1, -1, 0, 1]
    places = Places(tokens)
    assert places.of(1) == places.of(7) == Place(1, "text", "a")
    assert places.of(-1) == places.of(None) == Places(None).of(3) == Place()
    patches = Places(image_tokens((2, 3), images=2))
    assert patches.of(7 + 5) == Place(5, "image", "", 1, 1)


def test_what_lies_behind_the_image() -> None:
    tokens = text_tokens([[1, 2, 3, 4, 5, 6], [1, 2, 3]], side="left")
    role = tokens.role.clone()
    role[[1, 3]] = ROLES.index("image")
    found = behind_image(replace(tokens, role=role))
    assert found.tolist() == [False] * 4 + [True] * 2 + [False] * 6  # the second row has no image


def test_ratios_count_examples_once_and_share_the_weights_of_the_head_table() -> None:
    from analysis.statistics import RatioSums

    ratios, draw = Ratios(seed=4), np.random.default_rng(0)
    values = draw.normal(size=(7, 2)) + 3
    for row in range(7):
        ratios.add("a", f"e{row}", values[row, 0] / 2)
        ratios.add("a", f"e{row}", values[row, 0] / 2, 0)
        if row:
            ratios.add("b", f"e{row}", values[row, 1], 2)
    sums = RatioSums.empty(2, seed=4)
    bottom = np.array([[1.0, 2.0 * (row > 0)] for row in range(7)])
    sums.add([f"e{row}" for row in range(7)], values * (bottom > 0), bottom)
    found = ratios.results(["b", "a", "c"])
    low, high = sums.interval()
    for column, key in enumerate("ab"):
        assert found[key].value == pytest.approx(sums.value[column])
        assert (found[key].low, found[key].high) == pytest.approx((low[column], high[column]))
    assert (found["a"].n, found["b"].n) == (7, 6)
    assert found["c"] == NOTHING and ratios.examples("b") == {f"e{row}" for row in range(1, 7)}
    assert found["a"].columns("x")["x_low"] == found["a"].low
