"""Which positions of one example are at a place where sinks were found."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_PLACE = ["position", "role", "token", "row", "column"]
_SAID = ["kind", "share", "score", "received", "received_null"]


def marked_tokens(tokens: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The positions of one example in one tower, with what was found of their places.

    A place is the number of a position in its sequence (padding left out) with its role, token,
    patch row and column, as `analysis.sinks.places` tells them: another word at the same position
    is another place. What is said of a place is over all examples, not of this one.

    Args:
        tokens: of the kept example, as `analysis.kept_patterns.tokens_of` gives them.
        found: lines of table ``sink_tokens``, of the same tower and of one layer; of a place that
            stands there twice (two kinds), the first counts.

    Returns:
        The real positions in their order: the columns of ``tokens``, and ``kind`` (empty where
        nothing was found), ``share`` of the examples (0 there), ``score``, ``received`` and
        ``received_null`` (NaN there).
    """
    real = tokens[tokens["role"] != "pad"].copy()
    real["flat"] = real["position"]
    # Padding may stand on the left, and positions count from the first real one.
    real["position"] = real.groupby("sequence", sort=False).cumcount()
    real["token"] = real["text"].astype(str)
    known = found[[*_PLACE, *_SAID]].drop_duplicates(_PLACE)
    known = known.assign(token=known["token"].astype(str))
    both = real.merge(known, on=_PLACE, how="left")
    both["share"] = both["share"].fillna(0.0)
    both["kind"] = both["kind"].fillna("").astype(str)
    return both.drop(columns=["token", "position"]).rename(columns={"flat": "position"})
