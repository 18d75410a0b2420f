"""Where a latent is read: a row and a position, and the query of a call that computes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Int
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.layout import SiteLayout

if TYPE_CHECKING:
    from probes.inputs import Batch

Destination = tuple[int, int]
"""Row of the tower's token map (example of a language model, image of a vision tower), and the
position within it, padding included; a negative position counts from the row's end."""


def unknown_positions(site: Site, lost: Sequence[int]) -> str:
    """Why nothing is told of destinations that no call had."""
    return (
        f"Position {lost[0]} of tower {site.tower!r} must be a query of {site}, none of its calls "
        "says so: what its queries are is not known. Choose a site of another tower."
    )


def flat_destinations(
    batch: Batch, site: Site, destinations: Destination | Sequence[Destination]
) -> list[int]:
    """Flat positions in the token map, each once, in the order given.

    Raises:
        ValueError: there is no such row or position, or it is padding.
    """
    pairs = cast(Sequence[Destination], [destinations] if _is_pair(destinations) else destinations)
    if site.tower not in batch.tokens:
        raise ValueError(
            f"The token map must cover tower {site.tower!r}, it covers "
            f"{', '.join(batch.tokens.towers) or 'none'}. Prepare the input with `subject.prepare`."
        )
    tokens, flat = batch.tokens[site.tower], []
    for row, position in ((index(row), index(position)) for row, position in pairs):
        if not 0 <= row < tokens.rows:
            raise ValueError(
                f"The row of a destination must be between 0 and {tokens.rows - 1}, got {row}. "
                "Give pairs (row, position)."
            )
        length = int(tokens.lengths[row])
        if not -length <= position < length:
            raise ValueError(
                f"The position of a destination must be between 0 and {length - 1}, got "
                f"{position}. Give pairs (row, position)."
            )
        flat.append(int(tokens.starts[row]) + position % length)
        if bool(tokens.has_role("pad")[flat[-1]]):
            raise ValueError(
                f"A destination must not be padding, position {position} of row {row} is. "
                "Positions count padding; negative ones count from the end."
            )
    return list(dict.fromkeys(flat))


def places_in(call: AttentionCall, wanted: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Batch row, query and flat position of those of ``wanted`` that this call computes."""
    if call.query_index is None:
        return
    queries = call.query_index.cpu()
    for flat in wanted:
        where = (queries == flat).nonzero()
        if len(where):
            yield int(where[0, 0]), int(where[0, 1]), flat


def key_positions(
    call: AttentionCall, row: int, place: SiteLayout
) -> tuple[str, Int[Tensor, "source"]]:
    """The tower of a call's keys and their flat positions in its token map, -1 where not known."""
    unknown = place.cross and not place.key_tower
    if call.key_index is None or unknown:
        return place.key_tower or call.site.tower, torch.full((call.keys,), -1)
    return call.key_tower or call.site.tower, call.key_index[row].cpu()


def _is_pair(destinations: Destination | Sequence[Destination]) -> bool:
    # By what it is not: numbers of numpy and torch are whole numbers too.
    return len(destinations) == 2 and not any(isinstance(one, Sequence) for one in destinations)
