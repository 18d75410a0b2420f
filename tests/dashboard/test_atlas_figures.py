"""Pictures of an atlas: each point, prototype and head says what the tables say."""

import numpy as np
import pandas as pd
import pytest

from dashboard.figures import head_mix, pattern_map, prototypes


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
