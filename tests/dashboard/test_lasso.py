"""A lasso: what is inside, and back from the address as it was drawn."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from dashboard.lasso import MOST_CORNERS, Lasso, heads_inside

L_SHAPE = Lasso((((0, 0), (4, 0), (4, 1), (1, 1), (1, 3), (0, 3)),))


def test_points_in_an_outline_that_is_not_convex() -> None:
    x = np.array([0.5, 3.0, 3.0, 0.5, -1.0, 5.0])
    y = np.array([2.5, 0.5, 2.0, 3.5, 0.5, 0.5])
    assert L_SHAPE.holds(x, y).tolist() == [True, True, False, False, False, False]
    both = Lasso((*L_SHAPE.outlines, ((2.5, 1.5), (3.5, 1.5), (3.5, 2.5), (2.5, 2.5))))
    assert both.holds(x, y).tolist() == [True, True, True, False, False, False]


def test_a_selection_is_read_back_from_its_text() -> None:
    selection = {
        "lasso": [{"x": [0.0, 1.5, 1.0], "y": [0.0, 0.25, 2.0]}],
        "box": [{"x": [5.0, 6.0], "y": [7.0, 9.0]}],
    }
    drawn = Lasso.of_selection(selection)
    assert Lasso.read(str(drawn)) == drawn
    assert drawn.holds(np.array([5.5, 1.0]), np.array([8.0, 0.5])).tolist() == [True, True]
    around = np.linspace(0, 2 * np.pi, 1000)
    circle = {"lasso": [{"x": np.cos(around).tolist(), "y": np.sin(around).tolist()}]}
    (outline,) = Lasso.of_selection(circle).outlines
    assert len(outline) == MOST_CORNERS


@pytest.mark.parametrize("text", ["", "1,2", "1,2;3,4", "a,b;c,d;e,f", "1,2;3,inf;5,6", "1;2;3"])
def test_text_that_is_no_lasso_is_empty(text: str) -> None:
    assert not Lasso.read(text) and not Lasso.read(text).shapes()


def test_heads_are_counted_most_first() -> None:
    points = pd.DataFrame(
        {"tower": "language", "layer": [0, 0, 0, 1, 1, 2], "head": [3, 3, 3, 0, 0, 5]}
    )
    found = heads_inside(points, np.array([True, True, False, True, True, False]))
    assert found[["layer", "head", "inside", "of"]].to_numpy().tolist() == [
        [1, 0, 2, 2],
        [0, 3, 2, 3],
    ]
    assert found["share"].tolist() == [1.0, pytest.approx(2 / 3)]
