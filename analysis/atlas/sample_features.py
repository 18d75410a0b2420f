"""What streaming measures say of each sampled pair of an example and a head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from analysis.scores import BatchScores, Column

if TYPE_CHECKING:
    import pandas as pd


def sample_features(scores: BatchScores, pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Values and nulls of every measure on the pairs whose example is among the scores.

    The value of a pair is ``numerator / denominator`` of the head's column on that one example,
    all of its tiles and windows together; NaN where the measure does not concern the example.

    Args:
        scores: of a batch, or of several merged.
        pairs: a line per pair: ``tower layer head example``, such as `Sampling.frame`.

    Returns:
        Values and nulls, float64, a column per ``"measure"`` or ``"measure[variant]"`` in the order
        in which the scores have them; the index is that of the lines of ``pairs``.
    """
    import pandas as pd

    rows = {example: row for row, example in enumerate(scores.examples)}
    mine = pairs[pairs["example"].isin(list(rows))]
    names = list(dict.fromkeys(map(feature_name, scores.columns)))
    table, heads = _columns(scores.columns, names)
    lines = zip(mine["tower"], mine["layer"], mine["head"], strict=True)
    head = np.array([heads.get((t, int(la), int(h)), -1) for t, la, h in lines], dtype=np.int64)
    example = np.array([rows[name] for name in mine["example"]], dtype=np.int64)
    column = table[head]  # the last line of the table is for heads without any column
    found = (
        _ratio(part, whole, example, column)
        for part, whole in (
            (scores.numerator, scores.denominator),
            (scores.null_numerator, scores.null_denominator),
        )
    )
    values, nulls = (pd.DataFrame(array, index=mine.index, columns=names) for array in found)
    return values, nulls


def feature_name(column: Column) -> str:
    """``measure``, or ``measure[variant]`` where there is a variant."""
    return f"{column.measure}[{column.variant}]" if column.variant else column.measure


def _columns(
    columns: tuple[Column, ...], names: list[str]
) -> tuple[NDArray[np.int64], dict[tuple[str, int, int], int]]:
    """``[head feature]``: which column, -1 for none; and the line of each head."""
    heads = {key: n for n, key in enumerate(dict.fromkeys(map(_head_of, columns)))}
    place = {name: number for number, name in enumerate(names)}
    table = np.full((len(heads) + 1, len(names)), -1, dtype=np.int64)
    for number, column in enumerate(columns):
        table[heads[_head_of(column)], place[feature_name(column)]] = number
    return table, heads


def _head_of(column: Column) -> tuple[str, int, int]:
    return column.tower, column.layer, column.head


def _ratio(
    numerator: Tensor, denominator: Tensor, example: NDArray, column: NDArray
) -> NDArray[np.float64]:
    if not column.size:
        return np.zeros(column.shape)
    part, whole = (
        tensor.double().cpu().numpy()[example[:, None], column]
        for tensor in (numerator, denominator)
    )
    there = (column >= 0) & (whole != 0)
    return np.where(there, part / np.where(there, whole, 1.0), np.nan)
