"""The form of a head table: its columns, their types, and what its numbers must obey."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

KEY = ("tower", "layer", "head", "measure", "variant", "inputs")
NUMBERS = ("value", "ci_low", "ci_high", "n", "null_low", "null_high")
COLUMNS = (*KEY, *NUMBERS, "unit")
RANGES = {
    "share": (0.0, 1.0),
    "probability": (0.0, 1.0),
    "correlation": (-1.0, 1.0),
    "cosine": (-1.0, 1.0),
}
"""Units whose values have both a floor and a ceiling."""
_WHOLE = ("layer", "head", "n")
_ROUNDING = 1e-4


def listed(names: Iterable[object]) -> str:
    """Names for a sentence, the empty one in quotes."""
    return ", ".join(repr(str(name)) if not name else str(name) for name in names)


def tidy(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns in order, with their types; a copy.

    Raises:
        ValueError: columns are missing or unknown.
    """
    missing = [name for name in COLUMNS if name not in frame]
    unknown = [str(name) for name in frame if name not in COLUMNS]
    if missing or unknown:
        raise ValueError(
            f"A head table must have the columns {' '.join(COLUMNS)}; "
            + "; ".join(
                f"{word} {' '.join(names)}"
                for word, names in (("missing", missing), ("unknown", unknown))
                if names
            )
            + "."
        )
    frame = frame[list(COLUMNS)].reset_index(drop=True)
    kinds = {name: "int64" if name in _WHOLE else "float64" for name in ("layer", "head", *NUMBERS)}
    return frame.astype({**kinds, **dict.fromkeys(set(COLUMNS) - set(kinds), "str")})


def check(frame: pd.DataFrame) -> None:
    """Nothing, if each line stands once, with one unit per variant and numbers in range."""
    twice = frame.duplicated(list(KEY))
    if twice.any():
        line = " ".join(f"{name}={frame[name][twice.idxmax()]}" for name in KEY)
        raise ValueError(f"A head table must hold each line once, got twice: {line}.")
    if (frame[list(_WHOLE)] < 0).any(axis=None):
        raise ValueError("Columns layer, head and n of a head table must not be negative.")
    units = frame.groupby(["measure", "variant"], sort=False)["unit"].unique()
    for (measure, _), names in units.items():
        if len(names) > 1 or not names[0]:
            raise ValueError(
                f"Measure {measure!r} must have one unit, got {listed(names)}. "
                "Give what has another unit another name or variant."
            )
    for low, high in (("ci_low", "ci_high"), ("null_low", "null_high")):
        if (frame[low] > frame[high]).any():
            raise ValueError(f"{low} must not lie above {high}.")
    for number in ("value", "ci_low", "ci_high", "null_low", "null_high"):
        _check_range(frame, number)


def _check_range(frame: pd.DataFrame, number: str) -> None:
    values = frame[number].to_numpy(float)
    wrong = np.isinf(values)
    for unit, (low, high) in RANGES.items():
        outside = (values < low - _ROUNDING) | (values > high + _ROUNDING)
        wrong |= (frame["unit"] == unit).to_numpy() & outside
    if wrong.any():
        line = frame.iloc[int(wrong.argmax())]
        raise ValueError(
            f"{number} of {line['measure']} at {line['tower']}.L{line['layer']}H{line['head']} "
            f"must be finite and in the range of its unit ({line['unit']}), got {line[number]}."
        )
