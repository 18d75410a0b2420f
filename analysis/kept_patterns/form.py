"""What of a pattern is kept: all of it where it is short, else each query's strongest keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from probes.layout import Layout
    from probes.tokens.map import TokenMap, TowerTokens

FOLDER = "patterns"
"""In the run's ``examples/``: N.safetensors holds the patterns of example N."""
BUDGET_BYTES = 256 << 20
"""Of all kept patterns of a run together."""
STRONGEST = (None, 64, 32, 16, 8)
"""Keys per query that may be kept, the best first; None is all."""

_WHOLE_BYTES, _STRONGEST_BYTES = 2, 4
"""Per pair that is kept: a float16; a float16 and a 16-bit number of its key."""
_SHARES = 4
"""So many examples at least, if they can be had by keeping fewer keys of each."""


def is_whole(columns: int, strongest: int) -> bool:
    """Whether all pairs take no more room than the strongest keys and their numbers.

    >>> is_whole(128, 64), is_whole(129, 64)
    (True, False)
    """
    return columns * _WHOLE_BYTES <= strongest * _STRONGEST_BYTES


def size_bytes(layout: Layout, tokens: TokenMap, strongest: int | None) -> int:
    """What the patterns of one example take; towers without a token map are not counted."""
    total = 0
    for site in layout.sites:
        if site.site.tower not in tokens:
            continue
        mine = tokens[site.site.tower]
        read = tokens[site.key_tower if site.key_tower in tokens else site.site.tower]
        kept = min(strongest or _longest(read), _longest(read))
        whole = is_whole(len(read), kept)
        per_query = len(read) * _WHOLE_BYTES if whole else kept * _STRONGEST_BYTES
        total += site.heads * len(mine) * per_query
    return total


def strongest_that_fit(
    layout: Layout, tokens: TokenMap, room: int, examples: int
) -> tuple[int | None] | None:
    """How many keys of each query to keep of the next example: ``(number,)``, ``(None,)`` for all.

    An example gets its share of the room, a quarter of it at least, and all of it where even the
    fewest keys need more. None where they do not fit at all.

    Args:
        room: bytes that are left.
        examples: how many are still to come, with this one.
    """
    share = room // max(1, min(examples, _SHARES))
    for limit in (share, room):
        for strongest in STRONGEST if limit == share else STRONGEST[-1:]:
            if size_bytes(layout, tokens, strongest) <= limit:
                return (strongest,)
    return None


def _longest(tokens: TowerTokens) -> int:
    return int(tokens.lengths.max()) if tokens.rows else 0
