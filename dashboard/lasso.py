"""What is lassoed on a map: in the address as text, on the figure as an outline, points inside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dashboard.figure_look import ACCENT

if TYPE_CHECKING:
    import pandas as pd

Corners = tuple[tuple[float, float], ...]

MOST_CORNERS = 200
_MOST_OUTLINES = 8
_LONGEST = 16_000


@dataclass(frozen=True)
class Lasso:
    """Outlines on a map; a point in any of them is inside."""

    outlines: tuple[Corners, ...] = ()

    @classmethod
    def of_selection(cls, selection: Any) -> Lasso:
        """The lassos and boxes in the ``selection`` of a chart, as Streamlit gives it."""
        outlines = [
            tuple(zip(drawn["x"], drawn["y"], strict=False)) for drawn in selection.get("lasso", [])
        ]
        for box in selection.get("box", []):
            (left, right), (low, high) = box["x"], box["y"]
            outlines.append(((left, low), (right, low), (right, high), (left, high)))
        return cls(tuple(_thinned(outline) for outline in outlines[:_MOST_OUTLINES]))

    @classmethod
    def read(cls, text: str) -> Lasso:
        """What `str` of a lasso gave; text that is none is an empty lasso.

        >>> Lasso.read("0,0;1,0;1,1~5,5;6,5;6,6").outlines[1]
        ((5.0, 5.0), (6.0, 5.0), (6.0, 6.0))
        >>> Lasso.read("0,0;1,nan;1,1"), Lasso.read("elsewhere")
        (Lasso(outlines=()), Lasso(outlines=()))
        """
        outlines = []
        for part in text[:_LONGEST].split("~")[:_MOST_OUTLINES]:
            try:
                corners = [tuple(map(float, corner.split(","))) for corner in part.split(";")]
            except ValueError:
                return cls()
            fit = all(len(corner) == 2 and np.isfinite(corner).all() for corner in corners)
            if not fit or not 3 <= len(corners) <= MOST_CORNERS:
                return cls()
            outlines.append(tuple(corners))
        return cls(tuple(outlines))

    def __str__(self) -> str:
        return "~".join(
            ";".join(f"{x:.4g},{y:.4g}" for x, y in outline) for outline in self.outlines
        )

    def __bool__(self) -> bool:
        return bool(self.outlines)

    def holds(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
        """Bool ``[point]``: which points lie inside, by crossings to the right of each."""
        inside = np.zeros(len(x), bool)
        for outline in self.outlines:
            crossed = np.zeros(len(x), bool)
            for (x1, y1), (x2, y2) in zip(outline, (*outline[1:], outline[0]), strict=True):
                if y1 == y2:
                    continue
                beside = (y1 > y) != (y2 > y)
                crossed ^= beside & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
            inside |= crossed
        return inside

    def shapes(self) -> list[dict[str, Any]]:
        """As ``layout.selections`` of a figure."""
        return [
            {
                "type": "path",
                "path": "M" + "L".join(f"{x},{y}" for x, y in outline) + "Z",
                "xref": "x",
                "yref": "y",
                "line": {"color": ACCENT, "width": 1.5, "dash": "solid"},
            }
            for outline in self.outlines
        ]


def heads_inside(points: pd.DataFrame, inside: NDArray[np.bool_]) -> pd.DataFrame:
    """Heads with points inside, those with most first: ``tower layer head inside of share``.

    Args:
        points: a line per pattern: ``tower layer head``.
        inside: bool ``[point]``.
    """
    keys = ["tower", "layer", "head"]
    counts = points.assign(inside=inside).groupby(keys)["inside"].agg(["sum", "size"])
    counts = counts.rename(columns={"sum": "inside", "size": "of"}).reset_index()
    counts = counts[counts["inside"] > 0].assign(share=lambda lines: lines["inside"] / lines["of"])
    order = ["inside", "share", "layer", "head"]
    found = counts.sort_values(order, ascending=[False, False, True, True])
    return found.reset_index(drop=True)


def _thinned(outline: Any) -> Corners:
    corners = tuple((float(x), float(y)) for x, y in outline)
    if len(corners) <= MOST_CORNERS:
        return corners
    kept = np.linspace(0, len(corners) - 1, MOST_CORNERS).round().astype(int)
    return tuple(corners[place] for place in kept)
