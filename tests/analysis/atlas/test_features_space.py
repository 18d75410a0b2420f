"""What counts in the space of patterns, in which form, and what size alone does is taken out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.atlas.features_space import choose_columns, make_space
from analysis.atlas.sizes import size_effect


def table(**columns: list[float]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def heads(queries: list[int], head: list[int]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "tower": "vision", "layer": 0, "head": head, "view": "patches", "queries": queries,
            "keys": queries, "causal": False,
        }
    )  # fmt: skip


def test_shares_count_as_they_are_and_other_units_by_their_ratio() -> None:
    features = table(share=[0.1, 0.9, 0.5], hops=[1.0, 4.0, 2.0])
    nulls = table(share=[0.1, 0.2, 0.5], hops=[2.0, 2.0, 2.0])
    columns = choose_columns(features, nulls)
    assert columns.forms == ("share", "ratio")
    made = columns.apply(features, nulls)
    np.testing.assert_allclose(made[:, 0], [0, 0.7, 0])
    logs = np.log([0.5, 2.0, 1.0])
    np.testing.assert_allclose(made[:, 1], logs / logs.std() * 0.25)


def test_what_tells_nothing_is_left_out_with_a_sentence() -> None:
    features = table(
        good=[0.1, 0.9, 0.5, 0.3], twin=[0.1, 0.9, 0.5, 0.3], constant=[0.4] * 4,
        absent=[np.nan] * 4, offset=[-3.0, 2.0, 0.0, 5.0],
    )  # fmt: skip
    nulls = features * 0
    columns = choose_columns(features, nulls)
    assert columns.names == ("good",)
    assert columns.left_out["twin"].startswith("It says the same as good")
    assert columns.left_out["constant"] == "It is the same on all samples."
    assert columns.left_out["absent"] == "It is not measured on any sample."
    assert "neither a share nor" in columns.left_out["offset"]


def test_not_measured_counts_as_uniform_attention_and_is_told() -> None:
    features = table(a=[0.9, np.nan, 0.5], b=[0.2, 0.3, 0.7])
    nulls = table(a=[0.2, np.nan, 0.2], b=[0.2, 0.2, 0.2])
    columns = choose_columns(features, nulls)
    assert columns.partly == {"a": pytest.approx(1 / 3)}
    np.testing.assert_allclose(columns.apply(features, nulls)[:, 0], [0.7, 0, 0.3])
    with pytest.raises(ValueError, match="must have the column 'b'"):
        columns.apply(features[["a"]], nulls)


def test_the_effect_of_size_is_told_from_that_of_the_head() -> None:
    # Head 1 has 10 more, size 25 has 2 more than size 9; head 1 is seen at size 25 more often.
    queries, head = [9, 9, 25, 9, 25, 25, 25], [0, 0, 0, 1, 1, 1, 1]
    values = np.array([[10.0 * h + 2.0 * (q == 25)] for q, h in zip(queries, head, strict=True)])
    effect = size_effect(values, heads(queries, head))
    rest = values - effect
    assert np.ptp(rest[:3]) < 1e-9 and np.ptp(rest[3:]) < 1e-9
    assert rest[3, 0] - rest[0, 0] == pytest.approx(10.0)
    # Means of the sizes alone, without regard to heads, would take part of the head away.
    assert abs(effect.mean()) < 1e-9


def test_where_each_head_has_one_size_nothing_is_taken_out() -> None:
    values = np.arange(6.0)[:, None]
    assert not size_effect(values, heads([9, 9, 9, 25, 25, 25], [0, 0, 0, 1, 1, 1])).any()
    assert not size_effect(values, heads([9] * 6, [0, 1] * 3)).any()


def test_features_and_latents_spread_as_asked() -> None:
    dice = np.random.default_rng(0)
    features, latents = dice.normal(size=(53, 3)) * 7, dice.normal(size=(53, 5)) * 0.01
    samples = heads([9] * 53, [0] * 53)
    both = make_space(features, latents, samples, "both", latent_weight=0.5)
    assert both.var(0).sum() == pytest.approx(1.25, rel=0.01)
    assert (np.diff(both.var(0)) <= 1e-12).all()
    assert make_space(features, None, samples, "features").var(0).sum() == pytest.approx(
        1, rel=0.01
    )
    constant = make_space(np.ones((53, 3)), None, samples, "features")
    assert constant.shape == (53, 1) and not constant.any()
    with pytest.raises(ValueError, match="needs `latents`, got none"):
        make_space(features, None, samples, "latent")
