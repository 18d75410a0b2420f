"""Where a head looks while it predicts a word: kept patterns joined with kept words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from analysis.kept_patterns.head_pattern import HeadPattern

_PLACE = ["image", "tile", "row", "column", "left", "top", "right", "bottom"]


def word_patches(
    pattern: HeadPattern, tokens: pd.DataFrame, query_first: int, query_last: int
) -> pd.DataFrame:
    """The weight on every patch, mean over the positions that predict a word.

    Args:
        tokens: of the tower that the head reads, `analysis.kept_patterns.tokens_of`.
        query_first, query_last: as `KeptWords` holds them.

    Returns:
        A line per patch: its place, and ``weight``, 0 to 1; together they are the head's weight on
        the image. Where only the strongest keys are kept, the others have 0.

    Raises:
        ValueError: the word has no such position here, or nobody knows what the head's keys are.
    """
    if query_first < 0:
        raise ValueError("`query_first` must be a position of the kept example, got -1.")
    if not pattern.named_keys or len(tokens) != pattern.keys:
        raise ValueError(
            f"The head's {pattern.keys} keys must be positions of {pattern.key_tower}, of which "
            f"{len(tokens)} are known. Choose a head that reads its own text."
        )
    rows = [pattern.row(query) for query in range(query_first, query_last + 1)]
    patches = (tokens["role"] == "image").to_numpy() & (tokens["row"] >= 0).to_numpy()
    return tokens.loc[patches, _PLACE].assign(weight=np.mean(rows, axis=0)[patches])
