"""What a replacement is, and what most of them do not need."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

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
    """

    @property
    def name(self) -> str: ...
    @property
    def draws(self) -> int: ...
    @property
    def joint(self) -> bool: ...

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

    def values(self, recorded: RecordedForward, site: Site, draw: int = 0) -> Tensor:
        """``z'``, broadcastable to ``[batch query head value_width]``."""
        ...


class Plain:
    """What most replacements do not need."""

    draws = 1
    joint = True
    listens = False

    def begin(self, subject: Subject, data: Data) -> None:
        return

    def on_call(self, call: AttentionCall) -> None:
        return

    def touches(self, site: Site) -> bool:
        return True

    def start(self, subject: Subject, batch: Batch) -> None:
        return


def mean_change(replacement: Replacement, found: Any, site: Site) -> Tensor:
    """Float32 ``[batch query head value_width]``: z minus what replaces it, the mean over draws.

    Enough wherever what is asked is linear in the change.

    Args:
        found: anything that has ``batch`` and ``z`` by site; a replacement asks for nothing else.
    """
    z, draws = found.z[site], replacement.draws
    other = sum(replacement.values(found, site, draw).float() / draws for draw in range(draws))
    return z.float() - other


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
