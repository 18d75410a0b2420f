"""At which positions a head output is exchanged: everywhere, behind the answer, or by role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.patches.pairs import Pairs
from analysis.importance.replacements import roles_of
from probes.heads import Site
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    from probes.replay import RecordedForward

ALL, ANSWER = "all", "answer"


class Positions:
    """A choice of positions: ``all``, ``answer`` (the one that is read), or names of roles.

    >>> Positions(["text", "image"]).variant
    'at=text+image'
    """

    def __init__(self, at: str | Sequence[str] = ALL) -> None:
        self.names = tuple([at] if isinstance(at, str) else at)
        known = (ALL, ANSWER, *ROLES)
        unknown = [name for name in self.names if name not in known]
        if unknown or not self.names:
            raise ValueError(
                f"`at` must be one of {', '.join(known)} (or several roles), got "
                f"{', '.join(map(repr, unknown)) or 'nothing'}."
            )
        if len(self.names) > 1 and {ALL, ANSWER} & set(self.names):
            raise ValueError(
                f"`at` must be {ALL!r}, {ANSWER!r} or roles, got {' and '.join(self.names)}."
            )

    @property
    def variant(self) -> str:
        """How columns name the choice; empty for all positions."""
        return "" if self.names == (ALL,) else f"at={'+'.join(self.names)}"

    def mask(self, pairs: Pairs, base: RecordedForward, site: Site) -> Tensor | str | None:
        """Bool ``[batch query]``, None for everywhere, or why there are none in this tower."""
        if self.names == (ALL,):
            return None
        z = base.z[site]
        if self.names == (ANSWER,):
            if site.tower != pairs.tower or z.shape[0] != pairs.size:
                where = f"is one of {pairs.tower}" if pairs.tower else "is not one of a sequence"
                return f"The position that the answer is read at {where}, not of {site.tower}."
            return torch.arange(z.shape[1])[None] == pairs.position[:, None]
        roles = roles_of(base.batch, site, z)
        if roles is None:
            return f"What each position of {site.tower} is, is not known in its attention calls."
        chosen = torch.isin(roles, torch.tensor([ROLES.index(name) for name in self.names]))
        if not bool(chosen.any()):
            return f"No position of {site.tower} has the role {' or '.join(self.names)}."
        return chosen


def exchanged(own: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
    """``own [batch query ...]`` with ``other`` at the positions of the mask."""
    if mask is None:
        return other
    wide = mask.to(own.device).reshape(*mask.shape, *[1] * (own.ndim - 2))
    return torch.where(wide, other, own)
