"""A head's pattern as a few bytes for the browser, and what its tokens are called there."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

    from analysis.kept_patterns import HeadPattern

MOST_PAIRS = 200_000
"""That are sent; of more, the strongest of each query."""
SINK_ROLES = ("bos", "cls", "register")
_LARGEST = 65535


def pattern_payload(pattern: HeadPattern, positions: int) -> dict[str, Any]:
    """What ``pattern_rows.js`` reads: the pairs row by row, as base64 of little-endian arrays.

    A weight is sent as a 16-bit number of its square root, which is within 1e-5 of the weight for
    weights of up to 0.1, and within 3e-5 for all.

    Args:
        positions: of the tower that the queries lie in.
    """
    rows, keys, weights = pattern.pairs()
    rows, keys, weights = _fewer(rows, keys, weights, len(pattern.queries))
    roots = np.rint(np.sqrt(weights.clip(0, 1)) * _LARGEST).astype("<u2")
    starts = np.searchsorted(rows, np.arange(len(pattern.queries) + 1)).astype("<u4")
    return {
        "queries": packed(pattern.queries.astype("<i4")),
        "starts": packed(starts),
        "keys": packed(keys.astype("<i4")),
        "weights": packed(roots),
        "count": pattern.keys,
        "positions": positions,
    }


def packed(array: NDArray[Any]) -> str:
    """Bytes of an array as base64."""
    return b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def token_names(tokens: pd.DataFrame, count: int) -> list[list[str]]:
    """``[text, role]`` of each position; numbers where a tower has no token map."""
    if len(tokens) != count:
        return [[f"#{number}", "text"] for number in range(count)]
    return [[_word(line), str(line.role)] for line in tokens.itertuples()]


def sink_positions(names: Sequence[Sequence[str]]) -> list[int]:
    """Positions whose weight would leave no colour to the others: BOS, CLS, registers."""
    return [place for place, (_, role) in enumerate(names) if role in SINK_ROLES]


def missing_of(pattern: HeadPattern) -> dict[str, float]:
    """What each query reads of keys that are not kept, where that is worth saying."""
    missing = pattern.missing()
    worth = np.flatnonzero(missing > 0.005)
    return {str(int(pattern.queries[row])): round(float(missing[row]), 3) for row in worth}


def _word(line: Any) -> str:
    if line.role != "image" or line.row < 0:
        return str(line.text) or f"<{line.role}>"
    picture = f" of image {line.image + 1}" if line.image > 0 else ""
    tile = f" of tile {line.tile}" if line.tile > 0 else ""
    return f"patch row {line.row}, column {line.column}{tile}{picture}"


def _fewer(
    rows: NDArray[np.int64], keys: NDArray[np.int64], weights: NDArray[np.float32], queries: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    if len(rows) <= MOST_PAIRS:
        return rows, keys, weights
    most = max(1, MOST_PAIRS // queries)
    order = np.lexsort((-weights, rows))
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    chosen = np.sort(order[rank < most])
    return rows[chosen], keys[chosen], weights[chosen]
