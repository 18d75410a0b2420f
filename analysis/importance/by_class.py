"""Effects per class and per example: what the mean over all examples hides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from analysis.scores import BatchScores
from analysis.tally import Tally

if TYPE_CHECKING:
    import pandas as pd

CLASS_COLUMNS = "class tower layer head measure variant value ci_low ci_high n".split()
_FEWEST = 2


def class_table(
    scores: Callable[[], Iterable[BatchScores]],
    classes: Mapping[str, str],
    measures: Collection[str],
    *,
    replicates: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """The same measures taken over the examples of each class alone.

    Args:
        scores: gives the scores of all batches or shards anew.
        classes: example id -> name of its class; examples without one are left out.
        measures: which of the measured columns.

    Returns:
        Columns ``class tower layer head measure variant value ci_low ci_high n``; classes with
        fewer than two examples are left out.
    """
    import pandas as pd

    tallies: dict[str, Tally] = {}
    for part in scores():
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(part.examples):
            if name in classes:
                rows.setdefault(classes[name], []).append(row)
        for name, mine in rows.items():
            tally = tallies.setdefault(name, Tally(replicates=replicates, seed=seed))
            tally.add(part.only(measures, mine))
    frames = []
    for name in sorted(tallies):
        if tallies[name].examples >= _FEWEST:
            frame = tallies[name].heads().frame
            frame.insert(0, "class", name)
            frames.append(frame[CLASS_COLUMNS])
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=CLASS_COLUMNS)


def example_table(
    scores: Callable[[], Iterable[BatchScores]], measures: Collection[str]
) -> pd.DataFrame:
    """The effect of every head on every example: one line per example, one column per head.

    Columns are named ``measure variant tower.L3H5``; values are means over the example's reads.
    """
    import pandas as pd

    frames = []
    for part in scores():
        mine = part.only(measures)
        values = (mine.numerator / mine.denominator).float().numpy()
        names = [f"{c.measure} {c.variant} {c.tower}.L{c.layer}H{c.head}" for c in mine.columns]
        frames.append(pd.DataFrame(values, columns=names, index=list(mine.examples)))
    if not frames:
        return pd.DataFrame()
    return pd.concat(frames).rename_axis("example").reset_index()
