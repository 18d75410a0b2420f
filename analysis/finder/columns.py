"""What a query's names stand for in a table: columns over all heads, and where conditions hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from operator import eq, ge, gt, le, lt, ne
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.finder.grammar import (
    JOINING,
    PLACES,
    All,
    Any,
    Condition,
    InTower,
    Named,
    Not,
    Side,
)
from analysis.finder.words import QueryError
from analysis.table_form import listed

if TYPE_CHECKING:
    import pandas as pd

    from analysis.head_table import HeadTable

PLACE = ["tower", "layer", "head"]
_RELATIONS = {"<": lt, "<=": le, ">": gt, ">=": ge, "==": eq, "=": eq, "!=": ne}
_SUGGESTED = 3
_LISTED = 12
Truth = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""Where a condition holds, and where it does not hold; neither where something is not measured."""


@dataclass(frozen=True)
class Quantity:
    """A column of a result: which lines of the table it was read from.

    Attributes:
        label: as it can be written in a query again.
        inputs: None where there is only one kind.
        column: ``value``, or another number of the line.
    """

    label: str
    measure: str
    variant: str
    inputs: str | None
    column: str
    unit: str


class Columns:
    """Columns of a table by what a query calls them, read once each."""

    def __init__(self, heads: HeadTable) -> None:
        self._heads = heads
        self.places = heads.frame[PLACE].drop_duplicates().reset_index(drop=True)
        self._index = self.places.set_index(PLACE).index
        self.read: dict[str, tuple[Quantity, NDArray[np.float64]]] = {}

    def number(self, place: str) -> NDArray[np.float64]:
        return self.places[place].to_numpy(float)

    def side(self, side: Named) -> tuple[str, NDArray[np.float64]]:
        """Label and float ``[head]``."""
        if side.is_place:
            return side.name, self.number(side.name)
        known = self._chosen(side)
        if known.label not in self.read:
            lines = lines_of(self._heads, known.measure, known.variant, known.inputs)
            column = lines.set_index(PLACE)[known.column].reindex(self._index)
            self.read[known.label] = known, column.to_numpy(float)
        return known.label, self.read[known.label][1]

    def truth(self, condition: Condition) -> Truth:
        """Three-valued (Kleene): what hangs on a missing value neither holds nor fails."""
        if isinstance(condition, Not):
            holds, fails = self.truth(condition.inner)
            return fails, holds
        if isinstance(condition, (All, Any)):
            truths = [self.truth(part) for part in condition.parts]
            holds = np.stack([truth[0] for truth in truths])
            fails = np.stack([truth[1] for truth in truths])
            every, some = np.logical_and.reduce, np.logical_or.reduce
            if isinstance(condition, All):
                return every(holds), some(fails)
            return some(holds), every(fails)
        if isinstance(condition, InTower):
            return self._in_tower(condition)
        left, right = self._values(condition.left), self._values(condition.right)
        known = ~(np.isnan(left) | np.isnan(right))
        holds = _RELATIONS[condition.relation](left, right)
        return holds & known, ~holds & known

    def _values(self, side: Side) -> NDArray[np.float64]:
        return (
            np.full(len(self.places), side) if not isinstance(side, Named) else self.side(side)[1]
        )

    def _in_tower(self, condition: InTower) -> Truth:
        if condition.tower not in self._heads.towers:
            raise _no_such(
                "tower of this table", condition.tower, condition.place, self._heads.towers
            )
        inside = (self.places["tower"] == condition.tower).to_numpy()
        return (inside, ~inside) if condition.same else (~inside, inside)

    def _chosen(self, side: Named) -> Quantity:
        heads = self._heads
        if side.name not in heads.measures:
            names = [*heads.measures, "layer", "head", "tower"]
            raise _no_such("measure of this table", side.name, side.place, names)
        variant = _variant(side, heads.variants(side.name))
        lines = lines_of(heads, side.name, variant, side.inputs)
        there = list(dict.fromkeys(lines_of(heads, side.name, variant, None)["inputs"]))
        if side.inputs is not None and side.inputs not in there:
            raise _no_such(f"input of `{side.name}`", side.inputs, side.place, there)
        if lines.duplicated(PLACE).any():
            raise QueryError(
                f"`{side.name}` (character {side.place + 1}) was taken on several inputs. Say "
                f"which: {', '.join(f'{side.name}@{written(name)}' for name in there)}.",
                side.place,
            )
        label = label_of(side.name, variant, side.inputs)
        if side.column != "value":
            label += f".{side.column}"
        unit = "examples" if side.column == "n" else heads.unit(side.name, variant)
        return Quantity(label, side.name, variant, side.inputs, side.column, unit)


def _variant(side: Named, there: list[str]) -> str:
    """The one that is meant: plain or first where none is said, else the first that has all of
    its parts."""
    if side.variant is None:
        return "" if "" in there else there[0]
    if side.variant in there:
        return side.variant
    wanted = {part.strip() for part in side.variant.split(",")}
    fitting = [name for name in there if wanted <= set(name.split(","))]
    if not fitting:
        variants = [name for name in there if name]
        if not variants:
            raise QueryError(
                f"`{side.name}` (character {side.place + 1}) has no variants, got "
                f"`[{side.variant}]`. Leave it out.",
                side.place,
            )
        raise _no_such(f"variant of `{side.name}`", side.variant, side.place, variants)
    return fitting[0]


def lines_of(heads: HeadTable, measure: str, variant: str, inputs: str | None) -> pd.DataFrame:
    return heads.select(measure, variant=variant, inputs=inputs).frame


def _no_such(what: str, got: str, place: int, known: Iterable[str]) -> QueryError:
    names = list(known)
    containing = [name for name in names if got and got.lower() in name.lower()]
    near = dict.fromkeys([*containing, *get_close_matches(got, names, _SUGGESTED, 0.5)])
    advice = " or ".join(list(near)[:_SUGGESTED])
    return QueryError(
        f"`{got}` (character {place + 1}) is no {what}. "
        + (f"Did you mean {advice}?" if advice else f"Choose one of: {listed(names[:_LISTED])}")
        + ("" if advice else f" and {len(names) - _LISTED} more." if len(names) > _LISTED else "."),
        place,
    )


def label_of(measure: str, variant: str = "", inputs: str | None = None) -> str:
    """A measure as it is written in a query.

    >>> label_of("sink_rate", "k=1,eps=0.3"), label_of("T->V", inputs="two words")
    ('sink_rate[k=1,eps=0.3]', '`T->V`@`two words`')
    """
    label = written(measure) + (f"[{variant}]" if variant else "")
    return label + (f"@{written(inputs)}" if inputs is not None else "")


def written(name: str) -> str:
    """A name as it is written in a query: in backquotes where it has other signs."""
    reserved = {*JOINING, *PLACES, "tower"}
    return name if name.isidentifier() and name.lower() not in reserved else f"`{name}`"
