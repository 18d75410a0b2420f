"""Pages that hold all that they need."""

import re

import pytest

from dashboard.figures import feature_on_picture, feature_on_text
from dashboard.standalone import standalone_page
from tests.seen_firings import by_hand

EVIL = "</script><script>alert(1)</script>"


def test_plotly_is_inside_once_and_nothing_is_fetched():
    view = by_hand()
    page = standalone_page(
        "a <b>", [(feature_on_picture(view), "one"), (feature_on_text(view), "&")]
    )
    assert "<title>a &lt;b&gt;</title>" in page and "<p>&amp;</p>" in page
    assert page.count("Plotly.newPlot(") == 2
    assert 4e6 < len(page) < 7e6
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=", page)


def test_text_from_data_cannot_run():
    view = by_hand(("a", EVIL, "b"), id=EVIL, objects=(EVIL,), boxes=((1, 2, 3, 4),))
    figures = [(feature_on_picture(view), EVIL), (feature_on_text(view), EVIL)]
    page = standalone_page(EVIL, figures)
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page
    for figure, _ in figures:
        assert "<script" not in str(figure.to_dict())


def test_a_page_of_nothing_is_refused():
    with pytest.raises(ValueError, match="`figures` must hold at least one figure"):
        standalone_page("x", [])
