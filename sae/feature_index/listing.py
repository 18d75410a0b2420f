"""The list of an index, narrowed and in an order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sae.feature_index.reading import FeatureIndex

if TYPE_CHECKING:
    import pandas as pd

ORDERS = {
    "density": ("density", False),
    "strongest": ("largest", False),
    "share of its head": ("top_share", False),
    "rarest": ("density", True),
    "number": ("latent", True),
    "never fires": ("firings", True),
}
"""Name of an order -> column, and whether it ascends."""


def listed(
    index: FeatureIndex, order: str = "density", head: int | None = None, text: str = ""
) -> pd.DataFrame:
    """Lines of `FeatureIndex.features`; latents that never fire come last, but where asked for.

    Args:
        order: of `ORDERS`; a tie goes to the lower number.
        head: only features of which it has the largest share of the decoder row.
        text: only those with it in their strongest example or the words they speak for (upper and
            lower case alike), or whose number it is.
    """
    column, ascending = ORDERS[order]
    found = index.features
    if order == "never fires":
        found = found[found["firings"] == 0]
    if head is not None:
        found = found[found["top_head"] == head]
    wanted = text.strip().casefold()
    if wanted:
        said = (found["example"] + "\n" + found["words"]).str.casefold()
        found = found[
            said.str.contains(wanted, regex=False) | (found["latent"].astype(str) == wanted)
        ]
    dead = (found["firings"] == 0).rename("dead")
    keys = found.assign(dead=dead).sort_values(
        ["dead", column, "latent"], ascending=[True, ascending, True], kind="stable"
    )
    return keys.drop(columns="dead")
