"""Hallucinated against true object words: by hand, and against loops over pairs and resamples."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.statistics import poisson_weights
from analysis.vision.token_table import comparison

TRUE, WRONG = "true_object", "hallucinated_object"
COLUMNS = ["example", "token", "group", "kind", "mention", "t_vhd"]


def _table(*rows):
    return pd.DataFrame(rows, columns=COLUMNS)


def _way(found, name, measure="t_vhd"):
    (line,) = found[(found["compared"] == name) & (found["measure"] == measure)].to_dict("records")
    return line


def test_by_hand():
    tokens = _table(
        ("a", 0, "other", "", -1, 50.0),
        ("a", 1, TRUE, "dog", 0, 8.0),
        ("a", 2, TRUE, "dog", 0, 12.0),  # one mention of two tokens: 10
        ("a", 3, WRONG, "cat", 1, 4.0),
        ("b", 1, TRUE, "cat", 0, 3.0),
        ("b", 3, TRUE, "dog", 1, 4.0),
        ("c", 1, WRONG, "cow", 0, 7.0),
    )
    found = comparison(tokens, replicates=20)
    every = _way(found, "mentions")
    assert (every["hallucinated"], every["true"]) == (5.5, pytest.approx(17 / 3))
    assert every["difference"] == pytest.approx(5.5 - 17 / 3)
    # 4 against 10, 3, 4: lower, higher, a tie; 7 against them: lower, higher, higher.
    assert every["lower"] == pytest.approx((1 + 0 + 0.5 + 1 + 0 + 0) / 6)
    assert (every["n_hallucinated"], every["n_true"], every["texts"]) == (2, 3, 3)
    text = _way(found, "mentions of one text")
    assert (text["hallucinated"], text["true"], text["lower"], text["texts"]) == (4.0, 10.0, 1.0, 1)
    assert np.isnan(text["difference_low"]), "one text has no interval"
    kind = _way(found, "mentions of one kind")
    assert (kind["hallucinated"], kind["true"], kind["lower"]) == (4.0, 3.0, 0.0)
    place = _way(found, "mentions at one place")
    # At place 1: 7 against 10 and 3. At place 3: 4 against 4.
    assert (place["hallucinated"], place["true"]) == (5.5, (6.5 + 4) / 2)
    assert place["lower"] == (0.5 + 0.5) / 2
    texts = _way(found, "texts")
    assert texts["hallucinated"] == pytest.approx(((50 + 8 + 12 + 4) / 4 + 7) / 2)
    assert texts["true"] == 3.5 and texts["n_hallucinated"] == 2


def test_ways_in_which_nothing_can_be_compared_are_left_out():
    only_true = _table(("a", 0, TRUE, "dog", 0, 1.0), ("b", 0, TRUE, "cat", 0, 2.0))
    assert comparison(only_true).empty
    assert comparison(_table(("a", 0, "other", "", -1, 1.0))).empty
    assert comparison(pd.DataFrame()).empty
    apart = _table(("a", 0, TRUE, "dog", 0, 1.0), ("b", 1, WRONG, "cat", 0, 2.0))
    assert set(comparison(apart)["compared"]) == {"mentions", "texts"}


def test_intervals_and_pairs_against_loops():
    draw = np.random.default_rng(3)
    rows = []
    for text in range(9):
        for number in range(int(draw.integers(1, 7))):
            wrong = draw.random() < 0.4
            value = float(draw.integers(0, 6)) - 2 * wrong
            kind = "dog" if draw.random() < 0.5 else "cat"
            rows.append((f"t{text}", number, WRONG if wrong else TRUE, kind, number, value))
    tokens = _table(*rows)
    tokens["t_vhd_top1"] = -tokens["t_vhd"]
    found = comparison(tokens, replicates=30, seed=5)
    alike = {
        "mentions": lambda a, b: True,
        "mentions of one text": lambda a, b: a[0] == b[0],
        "mentions of one kind": lambda a, b: a[3] == b[3],
        "mentions at one place": lambda a, b: a[1] == b[1],
    }
    for way, fits in alike.items():
        line = _way(found, way)
        paired = [r for r in rows if any(fits(r, o) and o[2] != r[2] for o in rows)]
        names = {row[0] for row in paired}
        assert line["texts"] == len(names)
        draws = [dict.fromkeys(names, 1)]
        weights = {name: poisson_weights(name, 30, 5) for name in names}
        draws += [{name: int(weights[name][d]) for name in names} for d in range(30)]
        values = []
        for weight in draws:
            low = high = lower = total = 0.0
            for one in paired:
                if one[2] != WRONG or not weight[one[0]]:
                    continue
                against = [r for r in paired if r[2] == TRUE and fits(one, r)]
                against = [r for r in against for _ in range(weight[r[0]])]
                if not against:
                    continue
                size = weight[one[0]]
                total += size
                low += size * one[5]
                high += size * sum(r[5] for r in against) / len(against)
                wins = sum((one[5] < r[5]) + 0.5 * (one[5] == r[5]) for r in against)
                lower += size * wins / len(against)
            if total:
                values.append((low / total, high / total, (low - high) / total, lower / total))
        table = np.array(values)
        for number, name in enumerate(("hallucinated", "true", "difference", "lower")):
            assert line[name] == pytest.approx(table[0, number])
        for number, name in ((2, "difference"), (3, "lower")):
            low, high = np.quantile(table[1:, number], [0.025, 0.975])
            assert (line[f"{name}_low"], line[f"{name}_high"]) == pytest.approx((low, high))
        assert _way(found, way, "t_vhd_top1")["difference"] == pytest.approx(-line["difference"])


def test_swapped_groups_turn_the_sign():
    tokens = _table(
        ("a", 0, TRUE, "dog", 0, 9.0), ("a", 1, WRONG, "dog", 1, 2.0), ("b", 0, TRUE, "dog", 0, 5.0)
    )
    swapped = tokens.replace({"group": {TRUE: WRONG, WRONG: TRUE}})
    one, other = (_way(comparison(t), "mentions") for t in (tokens, swapped))
    assert one["difference"] == -5.0 == -other["difference"]
    assert one["lower"] == 1.0 and other["lower"] == 0.0


def test_texts_of_which_nothing_is_known_are_not_taken_for_true_ones():
    tokens = _table(
        ("a", 0, WRONG, "dog", 0, 4.0),
        ("b", 0, TRUE, "dog", 0, 6.0),
        ("c", 0, "", "", -1, 90.0),  # an example without objects
    )
    texts = _way(comparison(tokens, replicates=5), "texts")
    assert (texts["hallucinated"], texts["true"], texts["n_true"]) == (4.0, 6.0, 1)
