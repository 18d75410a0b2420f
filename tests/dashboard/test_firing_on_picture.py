"""Pictures of firings say, at each pixel, what attribution says of the patch there."""

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from dashboard.figure_look import in_dark
from dashboard.figures import feature_on_picture
from dashboard.patches_read import images_read
from tests.seen_firings import by_hand, of_tiles, picture, strongest


def cells(figure):
    return [trace for trace in figure.data if isinstance(trace, go.Heatmap)]


def value_at(figure, x, y, axis="x"):
    """What is drawn at a pixel of the picture, in one panel."""
    for trace in cells(figure):
        inside = trace.x[0] <= x < trace.x[-1] and trace.y[0] <= y < trace.y[-1]
        if (trace.xaxis or "x") == axis and inside:
            column = np.searchsorted(trace.x, x, "right") - 1
            row = np.searchsorted(trace.y, y, "right") - 1
            return trace.z[row][column]
    return None


def frames(figure):
    """Left, top, right and bottom of each frame that is drawn, with its colour and dashes."""
    found = []
    for trace in figure.data:
        if isinstance(trace, go.Scatter) and trace.line.color != "#ffffff":
            edges = (min(trace.x), min(trace.y), max(trace.x), max(trace.y))
            found.append((edges, trace.line.color, trace.line.dash, trace.xaxis))
    return found


def test_by_hand():
    figure = feature_on_picture(by_hand())
    (trace,) = cells(figure)
    assert np.array(trace.z).tolist() == [[1, 2, 3], [4, 5, 5.5]]
    assert list(trace.x) == [0, 10, 20, 30] and list(trace.y) == [0, 10, 20]
    assert (trace.zmin, trace.zmax) == (0, 5.5)
    assert trace.customdata[1][2] == "patch (1, 2)<br>brings 5.50"
    assert list(figure.layout.xaxis.range) == [0, 30]
    assert list(figure.layout.yaxis.range) == [20, 0]
    said = figure.layout.title.subtitle.text
    assert figure.layout.title.text == "Latent 5 of language.L1 at »&lt;b&gt;cat&lt;/b&gt;«"
    assert "pre-activation 35.8 = 0.250 + sources 35.5" in said  # 36 - 0.5
    assert "patches of this picture bring 20.5 · other sources 15" in said
    assert not frames(figure)


def test_one_head_alone_and_below_zero():
    figure = feature_on_picture(by_hand(), head=1)
    (trace,) = cells(figure)
    assert np.array(trace.z).tolist() == [[0, 0, 0], [0, 0, -0.5]]
    assert (trace.zmin, trace.zmax) == (0, 1)  # nothing is tinted
    assert figure.layout.title.text.endswith("through H1")
    assert "-0.500 (of it -0.50 by those below 0, not tinted)" in figure.layout.title.subtitle.text
    with pytest.raises(ValueError, match="`head` must be between 0 and 1, got 2"):
        feature_on_picture(by_hand(), head=2)


def test_the_destination_and_objects_are_framed():
    view = by_hand(destination=6, objects=("a <i>hat</i>",), boxes=((3, 1, 17, 12),))
    figure = feature_on_picture(view)
    assert [(edges, dash) for edges, _, dash, _ in frames(figure)] == [
        ((3, 1, 17, 12), "4px,3px"),
        ((20, 10, 30, 20), "solid"),
    ]
    assert figure.layout.title.text == "Latent 5 of language.L1 at patch (1, 2)"
    (name,) = figure.layout.annotations
    assert name.text == "a &lt;i&gt;hat&lt;/i&gt;"
    assert len(frames(feature_on_picture(view, boxes=()))) == 1
    given = feature_on_picture(view, boxes=[("x", (0, 5, 7, 11)), ("x", (0, 6, 7, 11))])
    assert len(frames(given)) == 3 and len(given.layout.annotations) == 2


def test_boxes_of_several_pictures_belong_to_none():
    view = by_hand(image=None, images=(picture(), picture(7, 5)), boxes=((3, 1, 17, 12),))
    figure = feature_on_picture(view)
    assert not frames(figure)
    assert "patches of image 1 of 2 bring 20.5" in figure.layout.title.subtitle.text
    with pytest.raises(ValueError, match="`image` must be one of 0, whose patches were read, got"):
        feature_on_picture(view, 1)


def test_the_picture_lies_below_grey_or_in_colours():
    figure = feature_on_picture(by_hand())
    grey, coloured = figure.layout.images
    assert (grey.visible, coloured.visible) == (True, False)
    assert (grey.sizex, grey.sizey, grey.layer) == (30, 20, "below")
    assert grey.source != coloured.source
    other = feature_on_picture(by_hand(), grey=False)
    assert [image.visible for image in other.layout.images] == [False, True]
    tint, colours = figure.layout.sliders
    assert tint.steps[1].args[0] == {"opacity": 0.25} and list(tint.steps[1].args[1]) == [0]
    assert (colours.active, other.layout.sliders[1].active) == (0, 1)
    shown = [
        (step.label, step.args[0]["images[0].visible"], step.args[0]["images[1].visible"])
        for step in colours.steps
    ]
    assert shown == [("grey", True, False), ("in colours", False, True)]


@pytest.mark.parametrize(
    ("model", "data", "latent"), [("shapes-llava", "scenes", 739), ("shapes-vit", "shapes", 5)]
)
def test_each_patch_of_a_model_has_its_attribution(model, data, latent):
    view = strongest(model, data, latent)
    direct, tokens = view.attribution, view.attribution.sources.map
    figure = feature_on_picture(view)
    seen = 0
    for source, flat in enumerate(direct.sources.index.tolist()):
        left, top, right, bottom = tokens.box[flat].tolist()
        if np.isfinite(left):
            drawn = value_at(figure, (left + right) / 2, (top + bottom) / 2)
            assert drawn == pytest.approx(float(direct.by_source[source]), abs=1e-12)
            seen += 1
    assert seen == sum(np.isfinite(trace.z).sum() for trace in cells(figure)) > 30
    if view.destination.patch is not None:
        assert frames(figure)[-1][0] == pytest.approx(view.destination.patch.box)


def test_tiles_lie_where_they_were_cut_from():
    """The thumbnail on the left, the tiles on the right, both in pixels of the original."""
    view = of_tiles("language.L0")
    direct, tokens = view.attribution, view.attribution.sources.map
    figure = feature_on_picture(view)
    assert [note.text for note in figure.layout.annotations] == [
        "the whole image",
        "enlarged, in tiles",
    ]
    seen = {"x": 0, "x2": 0}
    for source, flat in enumerate(direct.sources.index.tolist()):
        left, top, right, bottom = tokens.box[flat].tolist()
        if np.isfinite(left):
            axis = "x" if int(tokens.tile[flat]) == 0 else "x2"
            drawn = value_at(figure, (left + right) / 2, (top + bottom) / 2, axis)
            assert drawn == pytest.approx(float(direct.by_source[source]), abs=1e-12)
            seen[axis] += 1
    assert min(seen.values()) > 10
    assert len({(trace.zmin, trace.zmax) for trace in cells(figure)}) == 1
    assert max(trace.x[-1] for trace in cells(figure)) == 50
    assert max(trace.y[-1] for trace in cells(figure)) == 30


def test_a_tile_of_the_vision_tower():
    view = of_tiles("vision.L0")
    figure = feature_on_picture(view)
    tiles = view.attribution.sources.map.tile[view.attribution.sources.index]
    (number,) = {int(tile) for tile in tiles if int(tile) >= 0}
    assert f"tile {number}, " in figure.layout.title.text or number == 0
    assert frames(figure)[-1][0] == pytest.approx(view.destination.patch.box)


def test_dark_paper_keeps_the_tint():
    figure = feature_on_picture(by_hand(objects=("hat",), boxes=((3, 1, 17, 12),)))
    dark = in_dark(figure)
    assert dark.layout.paper_bgcolor != figure.layout.paper_bgcolor
    assert dark.data[0].colorscale == figure.data[0].colorscale
    assert frames(dark) == frames(figure) != []  # they lie on the picture, not on the paper


def test_without_patches_it_says_what_to_draw():
    view = strongest("repeat-lm", "repeats", 1012, 24)
    assert images_read(view) == []
    with pytest.raises(ValueError, match="has read none. Draw it with `feature_on_text`"):
        feature_on_picture(view)


def test_patches_that_were_not_read_are_empty():
    view = by_hand()
    index = view.attribution.sources.index
    object.__setattr__(view.attribution.sources, "index", torch.where(index == 4, -1, index))
    (trace,) = cells(feature_on_picture(view))
    assert np.isnan(trace.z[1][0]) and trace.customdata[1][0].endswith("not read")
    assert list(trace.x) == [0, 10, 20, 30]
