"""Whether data reach every site whose rows are asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from probes.heads import Site
from probes.inputs import Batch, Example
from sae.activations.places import PlacedChunk


def kinds_of(given: Iterable[Example | Batch]) -> set[Any]:
    """What decides which towers inputs reach: what they hold, not what it says."""
    return {
        frozenset(item.tensors)
        if isinstance(item, Batch)
        else (bool(item.pictures), bool(item.prompt))
        for item in given
    }


class Reach:
    """What one pass over some data has met so far."""

    def __init__(self, sites: Sequence[Site], kinds: set[Any]) -> None:
        """Nothing was met yet.

        Args:
            kinds: of all inputs, as `kinds_of` tells them.
        """
        self._sites, self._kinds = sites, kinds
        self._rows = dict.fromkeys(map(str, sites), 0)
        self._heard: set[Site] = set()
        self._met: set[Any] = set()

    def meet(self, given: Iterable[Example | Batch], heard: set[Site], part: PlacedChunk) -> None:
        """Count a forward: its inputs, the sites that spoke in it, the rows that it gave."""
        self._met |= kinds_of(given)
        self._heard |= heard
        for name, rows in part.rows.items():
            self._rows[name] += rows.shape[0]

    def refuse_unheard(self) -> None:
        """Nothing, if all sites spoke or inputs of another kind are still to come.

        Raises:
            ValueError: a site that no input reaches.
        """
        if self._met == self._kinds:
            self._refuse_silent()

    def refuse_nothing(
        self, ids: Collection[str], skipped: Sequence[tuple[str, str]], roles: Sequence[str] | None
    ) -> None:
        """Nothing, if the whole pass gave rows of every site.

        Args:
            ids: of all examples.
            skipped: those that could not be prepared, and why.
            roles: that positions had to have.

        Raises:
            ValueError: no input was run, a site was not reached, or none of its positions counts.
        """
        if not self._met:
            name, reason = skipped[0]
            raise ValueError(
                f"At least one of the {len(ids)} examples must be prepared, none was; "
                f"{name!r}: {reason}"
            )
        self._refuse_silent()
        empty = [name for name, count in self._rows.items() if not count]
        if empty:
            wanted = ", ".join(roles or ())
            raise ValueError(
                f"Some position of {empty[0]} must have a role among {wanted}, none has. Choose "
                "other `roles`, or leave the site out."
            )

    def _refuse_silent(self) -> None:
        missing = [str(site) for site in self._sites if site not in self._heard]
        if missing:
            raise ValueError(
                f"Every site must be reached by some example, {', '.join(missing)} "
                f"{'is' if len(missing) == 1 else 'are'} not. Give data that reaches it (an image "
                "for a vision tower), or leave the site out."
            )
