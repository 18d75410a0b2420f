"""What a replacement is, and what most of them do not need."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from analysis.importance.score_sheet import reached
from probes.alignment import flat_positions
from probes.heads import Site

if TYPE_CHECKING:
    from analysis.importance.targets import Data
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.replay import RecordedForward
    from probes.subject import Subject


class Replacement(Protocol):
    """Gives the values that stand in for a head's.

    Attributes:
        name: as the user writes it, and as the variant of a measure says it.
        draws: how many times a study asks for it and averages.
        joint: whether values do not depend on what earlier layers do, so that heads of several
            layers can be replaced together.
        pass_name: what `begin` takes from its pass over the data; empty if it makes none.
    """

    @property
    def name(self) -> str: ...
    @property
    def draws(self) -> int: ...
    @property
    def joint(self) -> bool: ...
    @property
    def pass_name(self) -> str: ...

    def begin(self, subject: Subject, data: Data) -> None:
        """Pass over the data, where something of it is needed."""
        ...

    def on_call(self, call: AttentionCall) -> None:
        """Hear an attention call of the intact run, before `values` is asked for."""
        ...

    def start(self, subject: Subject, batch: Batch) -> None:
        """A batch is about to be recorded."""
        ...

    def touches(self, site: Site) -> bool:
        """Whether there is anything to replace at a layer, in the batch that was recorded."""
        ...

    def reached(self, batch: Batch, site: Site) -> Tensor:
        """Bool ``[example]``: in which examples of it there is; others count for nothing."""
        ...

    def values(self, recorded: RecordedForward, site: Site, draw: int = 0) -> Tensor:
        """``z'``, broadcastable to ``[batch query head value_width]``.

        All layers are asked for in one draw before the next: what a draw takes is held for one
        draw at a time.
        """
        ...


class Plain:
    """What most replacements do not need."""

    draws = 1
    joint = True
    listens = False
    pass_name = ""

    def begin(self, subject: Subject, data: Data) -> None:
        return

    def on_call(self, call: AttentionCall) -> None:
        return

    def touches(self, site: Site) -> bool:
        return True

    def start(self, subject: Subject, batch: Batch) -> None:
        return

    def reached(self, batch: Batch, site: Site) -> Tensor:
        return reached(batch, site.tower)


def mean_changes(
    replacement: Replacement, found: Any, sites: Iterable[Site]
) -> Iterator[tuple[Site, Tensor]]:
    """Float32 ``[batch query head value_width]`` by site: z minus the mean of what replaces it.

    Enough wherever what is asked is linear in the change. Sites come one by one, unless there are
    several draws, which take a sum for every site.

    Args:
        found: anything that has ``batch`` and ``z`` by site; a replacement asks for nothing else.
    """
    if replacement.draws == 1:
        for site in sites:
            yield site, found.z[site].float() - replacement.values(found, site).float()
        return
    total: dict[Site, Tensor] = {}
    for draw in range(replacement.draws):
        for site in sites:
            part = replacement.values(found, site, draw).float() / replacement.draws
            total[site] = total[site].add_(part) if site in total else part
    for site in list(total):
        yield site, found.z[site].float() - total.pop(site)


def roles_of(batch: Batch, site: Site, z: Tensor) -> Tensor | None:
    """Long ``[batch query]``: the role of each position of z, None where it is not known."""
    index = positions_of(batch, site, z)
    return None if index is None else batch.tokens[site.tower].role[index]


def positions_of(batch: Batch, site: Site, z: Tensor) -> Tensor | None:
    """Long ``[batch query]``: the flat position in the token map of each position of z."""
    if site.tower not in batch.tokens:
        return None
    tokens = batch.tokens[site.tower]
    return flat_positions(tokens, z.shape[0], z.shape[1], packed=True)
