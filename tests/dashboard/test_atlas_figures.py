"""Pictures of an atlas: each point, prototype and head says what the tables say."""

import numpy as np
import pandas as pd
import pytest

from analysis.head_table import HeadTable
from dashboard.figures import head_mix, pattern_map, prototypes
from dashboard.pattern_map import PointValues


@pytest.fixture
def points():
    """Five patterns of three heads in two clusters and in none."""
    lines = [
        ("language", 0, 1, "a", 0, "previous token", 0.0, 1.0),
        ("language", 0, 1, "b", 0, "previous token", 0.1, 1.1),
        ("language", 2, 0, "a", 1, "stripe", 5.0, 2.0),
        ("language", 1, 3, "a", 1, "stripe", 5.1, 2.1),
        ("language", 1, 3, "c", -1, "mixed", 9.0, 9.0),
    ]
    columns = ["tower", "layer", "head", "example", "cluster", "name", "x", "y"]
    return pd.DataFrame(lines, columns=columns)


CLUSTERS = pd.DataFrame(
    [(0, "previous token", 0.4), (1, "stripe", 0.4), (-1, "mixed", 0.2)],
    columns=["cluster", "name", "share"],
)


def test_clusters_are_traces_with_their_number_and_size(points):
    figure = pattern_map(points)
    assert [trace.name for trace in figure.data] == [
        "none · mixed (1)",
        "0 · previous token (2)",
        "1 · stripe (2)",
    ]
    assert list(figure.data[2].x) == [5.0, 5.1]
    assert "language.L2H0" in figure.data[2].text[0] and "stripe" in figure.data[2].text[0]
    assert len({trace.marker.color for trace in figure.data}) == 3
    assert "5 patterns of 3 heads" in figure.layout.title.subtitle.text


def test_one_head_is_lit_and_the_others_fade(points):
    figure = pattern_map(points, head="language.L1H3")
    others, *lit = figure.data
    assert len(others.x) == 3 and others.hoverinfo == "skip"
    assert sorted(x for trace in lit for x in trace.x) == [5.1, 9.0]


def test_a_map_is_that_of_one_tower(points):
    other = points.assign(tower="vision", x=points["x"] + 100)
    both = pd.concat([points, other])
    (trace,) = pattern_map(both, "vision", colour="layer").data
    assert list(trace.marker.color) == [0, 0, 2, 1, 1]
    assert min(trace.x) == 100
    with pytest.raises(ValueError, match="`tower` must be one of language, vision, got None"):
        pattern_map(both)


def test_unknown_colours_and_heads_are_sentences(points):
    with pytest.raises(ValueError, match="cluster, layer, got 'head'"):
        pattern_map(points, colour="head")
    with pytest.raises(ValueError, match="'language.L0H0' must be a head of this map"):
        pattern_map(points, head="language.L0H0")


def test_prototypes_show_the_medoids_in_order():
    medoids = np.stack([np.eye(8), np.full((8, 8), 1 / 8), np.eye(8)[::-1]]).astype(np.float32)
    figure = prototypes(CLUSTERS, medoids, columns=2)
    assert [np.array_equal(t.z, m) for t, m in zip(figure.data, medoids, strict=True)] == [True] * 3
    titles = [note.text for note in figure.layout.annotations]
    assert titles == ["0 · previous token · 40 %", "1 · stripe · 40 %", "none · mixed · 20 %"]
    assert figure.layout.yaxis.autorange == "reversed"  # the first query is on top


def test_heads_have_the_colour_of_their_commonest_cluster():
    mix = pd.DataFrame(
        [("language", 0, 1, 0, 1.0, "steady"), ("language", 2, 0, 1, 0.6, "content-dependent")],
        columns=["tower", "layer", "head", "most", "most_share", "verdict"],
    )
    shares = pd.DataFrame(
        [
            ("language", 0, 1, 0, "previous token", 1.0),
            ("language", 2, 0, 0, "previous token", 0.4),
            ("language", 2, 0, 1, "stripe", 0.6),
        ],
        columns=["tower", "layer", "head", "cluster", "name", "share"],
    )
    first, second = head_mix(mix, shares, "language").data
    assert (first.name, list(first.x), list(first.y)) == ("0 · previous token", [1], [0])
    assert (second.name, list(second.x), list(second.y)) == ("1 · stripe", [0], [2])
    assert first.marker.opacity[0] == 1 and second.marker.opacity[0] == pytest.approx(0.66)
    assert "1 · stripe 60 %" in second.text[0] and "0 · previous token 40 %" in second.text[0]
    assert first.marker.color != second.marker.color
    with pytest.raises(ValueError, match="`tower` must be one of language, got 'vision'"):
        head_mix(mix, shares, "vision")


def test_points_carry_numbers_instead_of_texts_where_texts_would_be_too_much(points):
    points = points.assign(sample=[10, 11, 12, 13, 14])
    figure = pattern_map(points, said=False)
    assert all(trace.text is None for trace in figure.data)
    assert figure.data[2].customdata.tolist() == [[12, 2, 0], [13, 1, 3]]
    assert "1 · stripe" in figure.data[2].hovertemplate
    many = pd.concat([points] * 4000, ignore_index=True)
    assert len(pattern_map(many, said=False).to_json()) < 650_000  # 20,000 points


def test_points_take_the_colours_of_a_measure_and_grey_where_it_is_missing(points):
    grid = {(0, 1): 0.25, (2, 0): 0.75, (1, 3): np.nan}
    table = HeadTable(
        pd.DataFrame(
            [
                ("language", layer, head, "sink_rate", "", "x", value, 1, "share")
                for (layer, head), value in grid.items()
            ],
            columns=[
                "tower",
                "layer",
                "head",
                "measure",
                "variant",
                "inputs",
                "value",
                "n",
                "unit",
            ],
        ).assign(ci_low=np.nan, ci_high=np.nan, null_low=np.nan, null_high=np.nan)
    )
    values = PointValues.of_heads(points, table, "sink_rate")
    missing, known = pattern_map(points, colour=values).data
    assert (missing.name, list(missing.x)) == ("not measured", [np.float32(5.1), 9.0])
    assert known.marker.color.tolist() == [0.25, 0.25, 0.75]
    assert (known.marker.cmin, known.marker.cmax) == (0, 1)


def test_one_cluster_is_lit_and_texts_of_data_are_escaped(points):
    named = points.assign(name="<a href='x'>", example="<b>&")
    others, lit = pattern_map(named, cluster=1).data
    assert len(others.x) == 3 and len(lit.x) == 2
    assert lit.name == "1 · &lt;a href=&#x27;x&#x27;&gt; (2)"
    assert lit.text[0].endswith("&lt;b&gt;&amp;")
    with pytest.raises(ValueError, match="`cluster` must be one of -1, 0, 1, got 7"):
        pattern_map(points, cluster=7)
