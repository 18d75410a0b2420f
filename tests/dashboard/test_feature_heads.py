"""Bars of a feature's heads."""

import math
from types import SimpleNamespace

from dashboard.figures import feature_heads


def feature(**changes):
    found = {
        "site": "vision.L3",
        "latent": 7,
        "rows": 1000,
        "firings": 11,
        "decoder_shares": (0.5, 0.2, 0.3),
        "firing_shares": (0.1, 0.65, 0.25),
    }
    return SimpleNamespace(**{**found, **changes})


def test_bars_are_the_shares():
    figure = feature_heads(feature())
    writes, fires = figure.data
    assert (writes.name, list(writes.x), list(writes.y)) == ("writes", [0, 1, 2], [0.5, 0.2, 0.3])
    assert (fires.name, list(fires.y)) == ("makes it fire", [0.1, 0.65, 0.25])
    assert writes.marker.color != fires.marker.color
    assert fires.customdata[1] == "<b>vision.L3H1</b><br>makes it fire 0.650"
    assert figure.layout.title.text == "Latent 7 of vision.L3 by head"
    assert figure.layout.title.subtitle.text == "fires at 11 of 1,000 positions"
    assert figure.layout.shapes[0].y0 == 1 / 3
    assert figure.layout.yaxis.range[0] == 0 and 0.65 < figure.layout.yaxis.range[1] <= 1


def test_what_is_not_known_has_no_bar_and_is_said():
    figure = feature_heads(feature(firings=0, firing_shares=(math.nan,) * 3))
    assert list(figure.data[1].y) == [None] * 3
    assert figure.layout.title.subtitle.text.endswith("makes it fire: not known")
    assert list(figure.data[0].y) == [0.5, 0.2, 0.3]
