"""Which examples reach a site, and what its rows are on average."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.heads import Site
from sae.activations.site_forward import heard_rows
from sae.activations.token_rows import wanted_positions

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

Place = tuple[Site, tuple[str, ...] | None]
"""A site, and the roles of the positions that count; None: all but padding."""


def examples_at(batch: Batch, place: Place) -> Bool[Tensor, " example"]:
    """Which examples of a batch have a position at a site that counts."""
    site, roles = place
    found = torch.zeros(batch.size, dtype=torch.bool)
    if site.tower in batch.tokens:
        tokens = batch.tokens[site.tower]
        found[tokens.example[wanted_positions(tokens, roles)]] = True
    return found


def mean_rows(
    subject: Subject, batches: Iterable[Batch], places: Sequence[Place]
) -> dict[Place, Float[Tensor, " width"]]:
    """Float64 mean of the rows of each place, over all batches; one forward each.

    Raises:
        ValueError: no example reaches one of them.
        TapError: it is not known which positions a site has.
    """
    sums: dict[Place, Tensor] = {}
    counts = dict.fromkeys(places, 0)
    for batch in batches:
        for roles in dict.fromkeys(roles for _, roles in places):
            mine = [place for place in places if place[1] == roles]
            mine = [place for place in mine if bool(examples_at(batch, place).any())]
            if not mine:
                continue
            heard = heard_rows(subject, batch, [site for site, _ in mine], roles)
            for place in mine:
                rows = heard.rows(place[0])
                if rows is None:
                    continue
                total = rows.cpu().double().sum(0)
                sums[place] = sums[place] + total if place in sums else total
                counts[place] += rows.shape[0]
    for place in places:
        if not counts[place]:
            wanted = "" if place[1] is None else f" at positions of {', '.join(place[1])}"
            raise ValueError(
                f"Some example must reach {place[0]}{wanted}, none does. Give data that does (an "
                "image for a vision tower), or choose other `roles`."
            )
    return {place: sums[place] / counts[place] for place in places}
