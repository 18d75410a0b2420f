"""Texts of firings: each box says what attribution says, and together they say all of it."""

from itertools import pairwise

import pytest
import torch

from dashboard.figures import feature_on_text
from tests.seen_firings import by_hand, of_tiles, strongest


def boxes(figure):
    """Text, value and frame of each box."""
    bars = figure.data[0]
    return list(zip(bars.text, bars.marker.color, bars.marker.line.width, strict=True))


def test_by_hand():
    figure = feature_on_text(by_hand())
    assert boxes(figure) == [
        ("a", 0, 0),
        ("[6 patches]", 20.5, 0),
        ("sees", 7, 0),
        ("&lt;b&gt;cat&lt;/b&gt;", 8, 2.5),
    ]
    bars, numbers = figure.data
    assert (bars.marker.cmin, bars.marker.cmax) == (-20.5, 20.5)
    assert list(numbers.text) == ["", "20", "7.0", "8.0"]  # from a fifth of the largest
    assert bars.customdata[2] == "sees · text · position 7<br>brings 7.00"
    assert bars.customdata[1] == "6 patches<br>bring 20.5 together"
    assert "all boxes together 35.5" in figure.layout.title.subtitle.text
    assert "<b>&lt;b&gt;cat&lt;/b&gt;</b>" in figure.layout.title.subtitle.text


def test_one_head_alone():
    figure = feature_on_text(by_hand(), head=1)
    assert [value for _, value, _ in boxes(figure)] == [0, -0.5, 0, 0]
    assert figure.layout.title.text.endswith("through H1")


@pytest.mark.parametrize(
    ("model", "data", "latent"), [("repeat-lm", "repeats", 1012), ("shapes-llava", "scenes", 739)]
)
def test_all_boxes_of_a_model_add_up(model, data, latent):
    view = strongest(model, data, latent, 24)
    direct = view.attribution
    found = boxes(feature_on_text(view))
    together = sum(value for _, value, _ in found)
    assert together + direct.constant == pytest.approx(direct.pre_activation, abs=1e-4)
    tokens = direct.sources.map
    words = [box for box in found if not box[0].startswith("[")]
    places = [
        (source, flat)
        for source, flat in enumerate(direct.sources.index.tolist())
        if int(tokens.row[flat]) < 0 and tokens.text[flat] != "<pad>"
    ]
    assert len(words) == len(places)
    for (_, value, _), (source, _) in zip(words, places, strict=True):
        assert value == pytest.approx(float(direct.by_source[source]), abs=1e-12)


def test_a_long_text_is_cut_and_still_adds_up():
    words = tuple(f"w{number}" for number in range(400))
    joint = torch.full((1, 406), 0.001, dtype=torch.float64)
    joint[0, 50] = 3.0
    joint[0, 60] = -1.0
    view = by_hand(words, joint, destination=300)
    found = boxes(feature_on_text(view, reach=2))
    assert sum(value for _, value, _ in found) == pytest.approx(2 + 404 * 0.001)
    texts = [text for text, _, _ in found]
    assert "w44" in texts and "w54" in texts  # positions 50 and 60 behind six patches
    assert [text for text, _, frame in found if frame] == ["w294"]
    assert "w46" in texts and "w47" not in texts
    (after,) = [value for text, value, _ in found if text == "… 103 tokens …"]  # 303 to 405
    assert after == pytest.approx(0.103)


def test_lines_break_where_they_are_full_and_wide_signs_count_twice():
    words = tuple(f"word{number}" for number in range(60))
    joint = torch.zeros(1, 66, dtype=torch.float64)
    bars = feature_on_text(by_hand(words, joint)).data[0]
    for line in set(bars.y):
        mine = [
            (left, left + width)
            for left, width, y in zip(bars.base, bars.x, bars.y, strict=True)
            if y == line
        ]
        assert mine == sorted(mine) and mine[-1][1] <= 100
        assert all(one[1] < other[0] for one, other in pairwise(mine))
    wide = feature_on_text(by_hand(("a", "漢字", "ab"))).data[0]
    assert wide.x[2] == 5  # two signs of two columns, and one around them
    assert wide.x[3] == pytest.approx(3.55)  # "8.0" below, smaller, is wider than "ab"


def test_signs_that_cannot_be_seen_are_shown():
    figure = feature_on_text(by_hand(("\n", " ", "$a$")))
    assert [text for text, _, _ in boxes(figure)] == ["⏎", "[6 patches]", "␣", "&#36;a&#36;"]


def test_sources_of_unknown_place_have_a_box():
    view = by_hand()
    index = view.attribution.sources.index.clone()
    index[7] = -1
    object.__setattr__(view.attribution.sources, "index", index)
    found = boxes(feature_on_text(view))
    assert found[-1] == ("[elsewhere]", 7, 0)
    assert sum(value for _, value, _ in found) == 35.5


def test_patches_alone_are_no_text():
    with pytest.raises(ValueError, match="tower 'vision' have none. Draw it with `feature_on_pict"):
        feature_on_text(of_tiles("vision.L0"))
    with pytest.raises(ValueError, match="`reach` must not be negative, got -1"):
        feature_on_text(by_hand(), reach=-1)
