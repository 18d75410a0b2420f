"""Which line of one table stands against which of another, and which stand alone, and why."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from analysis.head_table import HeadTable
from analysis.table_form import listed

if TYPE_CHECKING:
    import pandas as pd

Side = Literal["left", "right"]
Choice = str | tuple[str, str] | None
"""A name for both sides, or one for each; None: whatever both have."""
_JOIN = ["tower", "layer", "head", "measure", "variant"]
_ONE = ["measure", "tower", "variant"]


def of_side(choice: Choice, side: Side) -> str | None:
    """What a choice says about one side."""
    if choice is None or isinstance(choice, str):
        return choice
    return choice[0 if side == "left" else 1]


def aligned(
    left: HeadTable,
    right: HeadTable,
    measures: Collection[str] | None,
    towers: Choice,
    variants: Choice,
    inputs: Choice,
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """The lines of both tables beside each other, and what is left out, with the reason.

    Towers and variants are called as on the left; ``tower_right`` and ``variant_right`` as on the
    right. Numbers have the suffix ``_left`` or ``_right``.

    Raises:
        ValueError: a name is in neither table, or nothing can be compared.
    """
    left_out: list[dict[str, str]] = []
    sides = [
        _lines(left, "left", measures, towers, variants, inputs, left_out),
        _lines(right, "right", measures, towers, variants, inputs, left_out),
    ]
    for name, choice in (("tower", towers), ("variant", variants)):
        sides[1][f"{name}_right"] = sides[1][name]
        if isinstance(choice, tuple):
            sides[1][name] = choice[0]
    both = sides[0].merge(sides[1], on=_JOIN, how="inner", suffixes=("_left", "_right"))
    both = _same_unit(both, left_out)
    left_out += _alone(sides[0], both, "left") + _alone(sides[1], both, "right")
    if both.empty:
        why = f" ({left_out[0]['measure']}: {left_out[0]['reason']})" if left_out else ""
        raise ValueError(
            f"Both tables must have a measure of the same heads, these have none in common{why}. "
            f"Towers: {listed(left.towers)} against {listed(right.towers)}."
        )
    return both, left_out


def _lines(
    table: HeadTable,
    side: Side,
    measures: Collection[str] | None,
    towers: Choice,
    variants: Choice,
    inputs: Choice,
    left_out: list[dict[str, str]],
) -> pd.DataFrame:
    frame = table.frame
    for wanted in measures or ():
        if wanted not in table.measures:
            raise ValueError(
                f"`measures` must be in both tables, the {side} one has no {wanted!r}. "
                f"It has: {listed(table.measures)}."
            )
    if measures is not None:
        frame = frame[frame["measure"].isin(list(measures))]
    for column, choice in (("tower", towers), ("variant", variants)):
        name = of_side(choice, side)
        if name is not None:
            there = list(frame[column].unique())
            if name not in there:
                raise ValueError(
                    f"`{column}s` must be in both tables, the {side} one has no {name!r} there. "
                    f"It has: {listed(there)}."
                )
            frame = frame[frame[column] == name]
    chosen = of_side(inputs, side)
    several = frame.duplicated(_JOIN, keep=False)
    if chosen is not None:
        frame = frame[~several | (frame["inputs"] == chosen)]
        several = frame.duplicated(_JOIN, keep=False)
    for measure, lines in frame[several].groupby("measure", sort=False):
        there = listed(lines["inputs"].unique())
        why = f"the {side} table has it on several inputs ({there}); say which by `inputs`"
        left_out.append({"measure": str(measure), "tower": "", "variant": "", "reason": why})
    return frame[~several].copy()


def _same_unit(both: pd.DataFrame, left_out: list[dict[str, str]]) -> pd.DataFrame:
    other = both["unit_left"] != both["unit_right"]
    for (measure, tower, variant), lines in both[other].groupby(_ONE, sort=False):
        units = f"{lines['unit_left'].iloc[0]} against {lines['unit_right'].iloc[0]}"
        left_out.append(_record(measure, tower, variant, f"its units differ: {units}"))
    return both[~other].reset_index(drop=True)


def _alone(frame: pd.DataFrame, both: pd.DataFrame, where: Side) -> list[dict[str, str]]:
    """Measures of one side of which heads have no counterpart."""
    said = []
    matched = both.groupby(_ONE, sort=False).size()
    for (measure, tower, variant), lines in frame.groupby(_ONE, sort=False):
        paired = int(matched.get((measure, tower, variant), 0))
        if not paired:
            said.append(_record(measure, tower, variant, f"only the {where} table has it"))
        elif paired < len(lines):
            alone = len(lines) - paired
            why = f"{alone} heads are in the {where} table alone"
            said.append(_record(measure, tower, variant, why))
    return said


def _record(measure: Any, tower: Any, variant: Any, reason: str) -> dict[str, str]:
    names = {"measure": measure, "tower": tower, "variant": variant, "reason": reason}
    return {name: str(value) for name, value in names.items()}
