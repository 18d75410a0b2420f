"""Which heads measure alike: distances between heads over standardised measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from analysis.head_table import HeadTable
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

_LEAST_SPREAD = 1e-9
"""Of a measure over the heads of a tower, in its own unit, below which it tells nothing apart."""


def standardised(heads: HeadTable, tower: str) -> pd.DataFrame:
    """Every measure of a tower in standard deviations from the mean over its heads.

    A line per head (index ``layer head``), a column per measure and variant (``measure
    variant``). Columns that are the same for all heads, or known of fewer than two, are left out.
    Where a measure was taken on several inputs, their mean counts.

    Raises:
        ValueError: nothing was measured in the tower.
    """
    frame = heads.select(tower=tower).frame
    if frame.empty:
        raise ValueError(
            f"`tower` must be one of {', '.join(heads.towers)}, got {tower!r}. Choose one of these."
        )
    keys = ["layer", "head", "measure", "variant"]
    values = frame.groupby(keys, sort=False)["value"].mean().unstack(["measure", "variant"])
    spread = values.std(ddof=0)
    values = values.loc[:, (values.notna().sum() > 1) & (spread > _LEAST_SPREAD)]
    return (values - values.mean()) / values.std(ddof=0)


def similar_heads(z: pd.DataFrame, head: str | Head, most: int = 8) -> pd.DataFrame:
    """The heads of the same tower that measure most like one, nearest first.

    The distance is the root mean square over measures of the difference in standard deviations;
    variants of one measure count as one measure together, so that a measure with many parameters
    does not decide alone. Only what is known of both heads counts.

    Args:
        z: `standardised` of the head's tower.

    Returns:
        ``tower layer head distance measures apart apart_by``: how many measures both have, and
        the variant in which they differ most, by so many standard deviations (that head minus
        this one).

    Raises:
        ValueError: the head is not in the table.
    """
    import pandas as pd

    named = head if isinstance(head, Head) else Head.parse(head)
    if (named.layer, named.head) not in z.index:
        raise ValueError(f"{named} must be in the table. Choose a head that was measured.")
    away = (z - z.loc[(named.layer, named.head)]).drop(index=(named.layer, named.head))
    squared = (away**2).T.groupby(level="measure").mean().T
    known = squared.notna().sum(axis=1)
    away, squared, known = (part[known > 0] for part in (away, squared, known))
    distance = np.sqrt(squared.mean(axis=1)).sort_values(kind="stable").head(most)
    lines = []
    for layer, number in distance.index:
        # Looked for among what is finite: idxmax of a line that is all NaN is an error.
        line = away.loc[(layer, number)].dropna()
        measure, variant = line.abs().idxmax()
        lines.append(
            {
                "tower": named.tower,
                "layer": int(layer),
                "head": int(number),
                "distance": float(distance[(layer, number)]),
                "measures": int(known[(layer, number)]),
                "apart": f"{measure} ({variant})" if variant else str(measure),
                "apart_by": float(line[(measure, variant)]),
            }
        )
    columns = ["tower", "layer", "head", "distance", "measures", "apart", "apart_by"]
    return pd.DataFrame(lines, columns=columns)


def most_unusual(z: pd.DataFrame, head: str | Head) -> list[tuple[str, str]]:
    """Measures with their variants, that first in which a head is furthest from its tower's mean.

    Each measure stands once, with the variant that is furthest. Those that are the same for all
    heads, or not known of this one, are not in it.

    Args:
        z: `standardised` of the head's tower.
    """
    named = head if isinstance(head, Head) else Head.parse(head)
    if (named.layer, named.head) not in z.index:
        return []
    mine = z.loc[(named.layer, named.head)].dropna().abs().sort_values(ascending=False)
    found: dict[str, str] = {}
    for measure, variant in mine.index:
        found.setdefault(str(measure), str(variant))
    return list(found.items())
