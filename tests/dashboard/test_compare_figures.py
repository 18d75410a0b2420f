"""Pictures of comparisons: shared scales, frames, texts; what is not in both is hatched."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.compare import Comparison, compare
from analysis.head_table import HeadTable
from dashboard.figures import comparison_maps, rank_agreement


@pytest.fixture
def found() -> Comparison:
    """2 layers x 3 heads without L1H2; L0H1 falls by 3."""

    def side(values: list[float]) -> HeadTable:
        places = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]
        frame = pd.DataFrame(
            [("text <b>", *place, v) for place, v in zip(places, values, strict=True)],
            columns=["tower", "layer", "head", "value"],
        )
        return HeadTable(
            frame.assign(
                measure="entropy", variant="", inputs="w", ci_low=frame["value"] - 0.1,
                ci_high=frame["value"] + 0.1, n=50, null_low=np.nan, null_high=np.nan, unit="nats",
            )
        )  # fmt: skip

    return compare(side([1, 5, 2, 3, 4]), side([1, 2, 2.05, 3.5, 4]))


def test_both_sides_share_a_scale_and_the_difference_is_centred(found: Comparison) -> None:
    figure = comparison_maps(found.heads, "be<fore", "after")
    left, right, difference = (one for one in figure.data if one.type == "heatmap")
    assert (left.zmin, left.zmax) == (right.zmin, right.zmax) == (0, 5)
    assert (difference.zmin, difference.zmax) == (-3, 3)
    assert difference.z[0][1] == -3 and np.isnan(difference.z[1][2])
    assert left.z[0][1] == 5 and right.z[0][1] == 2
    squares = figure.data[-1]
    framed = [n for n, w in zip(squares.customdata, squares.marker.line.width, strict=True) if w]
    assert framed == ["text <b>.L0H1", "text <b>.L1H0"]
    assert figure.layout.title.subtitle.text == "2 of 5 heads moved"
    assert squares.text[1].startswith(
        "<b>text &lt;b&gt;.L0H1</b><br>be&lt;fore 5.00<br>after 2.00<br>difference -3.0 ± 0.1 nats"
    )
    assert squares.text[5].endswith("not in both")
    assert figure.layout.annotations[0].text == "be&lt;fore"


def test_lines_of_several_measures_are_refused(found: Comparison) -> None:
    other = found.heads.assign(measure="other")
    with pytest.raises(ValueError, match="one measure, tower and variant, got 2"):
        comparison_maps(pd.concat([found.heads, other]))


def test_the_least_alike_measure_stands_on_top(found: Comparison) -> None:
    ranks = pd.concat(
        [found.ranks, found.ranks.assign(measure="worse", rank_correlation=0.1, ci_low=-0.5)]
    )
    figure = rank_agreement(ranks)
    assert list(figure.data[0].y) == ["entropy", "worse"]
    assert figure.data[0].error_x.arrayminus[1] == pytest.approx(0.6)
    assert list(rank_agreement(ranks, most=1).data[0].y) == ["worse"]
    with pytest.raises(ValueError, match="got none"):
        rank_agreement(ranks.assign(rank_correlation=np.nan))
