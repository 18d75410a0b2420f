"""Rows of head outputs at chosen positions of the token map, gathered while a forward runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probes.alignment import CallsInOrder
from probes.heads import Site
from probes.tap import TapError
from probes.tokens.map import ROLES, TokenMap, TowerTokens

Index = Int[Tensor, " row"]


def check_roles(roles: Sequence[str] | None) -> tuple[str, ...] | None:
    """The roles as a tuple; None stands for all but padding.

    Raises:
        ValueError: a name that is no role, none at all, or padding, whose rows mean nothing.
    """
    if roles is None:
        return None
    named = (roles,) if isinstance(roles, str) else tuple(roles)
    known = [role for role in ROLES if role != "pad"]
    unknown = [name for name in named if name not in known]
    if unknown or not named:
        raise ValueError(
            f"`roles` must be some of {', '.join(known)}, got {unknown[0] if unknown else 'none'}. "
            "Leave it out for all positions but padding."
        )
    return named


def wanted_positions(
    tokens: TowerTokens, roles: tuple[str, ...] | None
) -> Bool[Tensor, " position"]:
    """Which flat positions of a tower are taken."""
    return ~tokens.has_role("pad") if roles is None else tokens.has_role(*roles)


class TokenRows:
    """The rows of some sites in one forward; `hear` is a listener for `probes.tap.Attached`.

    Only rows that are wanted are kept, as copies, on the device and in the dtype of the model, in
    the order of the token map.
    """

    def __init__(
        self, tokens: TokenMap, sites: Iterable[Site], roles: tuple[str, ...] | None = None
    ) -> None:
        self._sites = list(sites)
        self._tokens = tokens
        towers = {site.tower for site in self._sites if site.tower in tokens}
        self._wanted = {name: wanted_positions(tokens[name], roles) for name in towers}
        self._calls = {site: CallsInOrder(self._map_of(site)) for site in self._sites}
        self._rows: dict[Site, list[Tensor]] = defaultdict(list)
        self._flat: dict[Site, list[Tensor]] = defaultdict(list)
        self._chosen: dict[tuple[str, int, int, int], tuple[Index, Index]] = {}

    @property
    def complete(self) -> bool:
        """Whether every position of every site was heard: what the forward does yet adds none."""
        return all(calls.complete for calls in self._calls.values())

    @property
    def heard(self) -> set[Site]:
        """Sites that this forward reached."""
        return set(self._rows)

    def hear(self, site: Site, z: Float[Tensor, "batch query head width"], step: int) -> None:
        """Take the rows of a call.

        Raises:
            TapError: it is not known which positions of the input the call has.
        """
        calls = self._calls[site]
        key = (site.tower, calls.seen, z.shape[0], z.shape[1])
        index = calls.next(z.shape[0], z.shape[1])
        if index is None:
            raise self._unknown(site, tuple(z.shape[:2]))
        if key not in self._chosen:
            taken = self._wanted[site.tower][index.flatten()].nonzero()[:, 0]
            self._chosen[key] = index.flatten()[taken], taken.to(z.device)
        flat, taken = self._chosen[key]
        rows = z.detach().reshape(-1, z.shape[2] * z.shape[3])
        self._rows[site].append(rows.index_select(0, taken.to(z.device)))
        self._flat[site].append(flat)

    def rows(self, site: Site) -> Float[Tensor, "row width"] | None:
        """What was heard of a site; None where the forward did not reach it.

        Raises:
            TapError: less of the input was heard than the token map says there is.
        """
        if site not in self._rows:
            return None
        if not self._calls[site].complete:
            raise self._unknown(site, (1, self._calls[site].seen))
        parts = self._rows[site]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def flat(self, site: Site) -> Index:
        """Flat position in the token map of each row of a site."""
        parts = self._flat.get(site, [torch.empty(0, dtype=torch.long)])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _map_of(self, site: Site) -> TowerTokens | None:
        return self._tokens.towers.get(site.tower)

    def _unknown(self, site: Site, shape: tuple[int, ...]) -> TapError:
        tokens = self._map_of(site)
        known = "no positions" if tokens is None else f"{tokens.rows} rows of {len(tokens)}"
        return TapError(
            f"It must be known which positions of the input {site} has, but its head outputs are "
            f"{list(shape)} and the token map has {known} for {site.tower!r}. Choose a site of "
            "another tower."
        )
