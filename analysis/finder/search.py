"""Look for heads: those that fulfil a query, ranked, with what the query names of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from analysis.finder.columns import PLACE, Columns, Quantity, lines_of
from analysis.finder.grammar import parsed, quantity
from analysis.finder.words import QueryError
from analysis.table_form import NUMBERS, listed

if TYPE_CHECKING:
    import pandas as pd

    from analysis.head_table import HeadTable


@dataclass(frozen=True)
class Found:
    """Heads that fulfil a query, ranked.

    Attributes:
        frame: ``tower layer head``, then a column per quantity that the query names, by its label.
        quantities: what these columns are.
        ranked_by: label of the one the heads are ranked by, ``layer`` or ``head``.
        asked: how many heads the table has.
        undecided: for how many of them the condition cannot be told, since something in it was
            not measured there; they are not in the frame.
    """

    frame: pd.DataFrame
    quantities: tuple[Quantity, ...]
    ranked_by: str
    asked: int
    undecided: int
    _table: HeadTable = field(repr=False)

    @property
    def names(self) -> list[str]:
        """Heads as ``language.L3H5``, in order."""
        places = zip(*(self.frame[name] for name in PLACE), strict=True)
        return [f"{tower}.L{layer}H{head}" for tower, layer, head in places]

    def lines(self, label: str) -> pd.DataFrame:
        """Value, interval, n and null of one of the quantities, a line per found head.

        Raises:
            ValueError: no quantity has that label.
        """
        chosen = next((one for one in self.quantities if one.label == label), None)
        if chosen is None:
            known = listed(one.label for one in self.quantities)
            raise ValueError(f"`label` must be one of {known}, got {label!r}.")
        lines = lines_of(self._table, chosen.measure, chosen.variant, chosen.inputs)
        places = self.frame.set_index(PLACE).index
        return lines.set_index(PLACE).reindex(places)[list(NUMBERS)].reset_index()

    def __len__(self) -> int:
        return len(self.frame)


def find(heads: HeadTable, query: str, by: str | None = None, ascending: bool = False) -> Found:
    """Heads of a table that fulfil a written condition; see `HeadTable.find`.

    Raises:
        QueryError: the query cannot be understood, or names what is not in the table.
    """
    asked = parsed(query)
    ranked = quantity(by) if asked.by is None and by is not None else asked.by
    table = Columns(heads)
    if asked.condition is None and ranked is None:
        raise QueryError("A query must hold a condition, such as `entropy > 2`, got nothing.", 0)
    count = len(table.places)
    holds, fails = np.ones(count, bool), np.zeros(count, bool)
    if asked.condition is not None:
        holds, fails = table.truth(asked.condition)
    if ranked is None:
        label = next(iter(table.read), "layer")
        values = table.read[label][1] if table.read else table.number("layer")
        if not table.read:
            ascending = True
    else:
        label, values = table.side(ranked)
        ascending = asked.ascending if asked.by is not None else ascending
    frame = table.places.copy()
    for name, (_, column) in table.read.items():
        frame[name] = column
    # Stable, so that ties stand in the table's order; NaN comes last either way.
    order = np.argsort(values if ascending else -values, kind="stable")
    frame = frame.iloc[order[holds[order]]].reset_index(drop=True)
    quantities = tuple(one for one, _ in table.read.values())
    return Found(frame, quantities, label, count, int((~holds & ~fails).sum()), heads)
