"""One forward of a batch gives the rows of all sites that were asked for, and then stops."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.heads import Site
from probes.listening import attach, tap_of
from probes.replay import logits_unread
from probes.tap import Attached
from sae.activations.token_rows import TokenRows

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


class _AllHeard(Exception):
    """Raised inside a forward of which nothing more is needed."""


def heard_rows(
    subject: Subject, batch: Batch, sites: Sequence[Site], roles: tuple[str, ...] | None = None
) -> TokenRows:
    """Run a subject once and take the rows of these sites, after all edits.

    Where every position of every site was heard, the rest of the forward is left out: layers above
    the last site, and the logits. It runs to its end where others listen, where modules are
    moved between devices, or where a site is not reached by this batch; logits are then left out
    as far as the model allows it.

    Args:
        roles: which positions are taken; all but padding by default.

    Raises:
        TapError: it is not known which positions a site has.
    """
    settings = logits_unread(subject, batch)
    taken = TokenRows(batch.tokens, sites, roles)

    def hear(site: Site, z: Tensor, step: int) -> None:
        taken.hear(site, z, step)
        if may_stop and taken.complete:
            raise _AllHeard

    with attach(subject, Attached(frozenset(sites), on_z=hear)) as mine:
        may_stop = _undisturbed(subject, mine)
        with suppress(_AllHeard):
            subject.forward(batch, **settings)
    return taken


def joined_rows(subject: Subject, parts: Sequence[Tensor | None], width: int) -> Tensor:
    """Rows of several batches; none at all as an empty tensor of the subject's dtype."""
    found = [part for part in parts if part is not None]
    if not found:
        return torch.empty(0, width, dtype=subject.dtype, device=subject.device)
    return found[0] if len(found) == 1 else torch.cat(found)


def _undisturbed(subject: Subject, mine: Attached) -> bool:
    """Whether nobody but us needs the rest of the forward."""
    others = [attached for attached in tap_of(subject).attached if attached is not mine]
    # accelerate's hooks take weights off the device again when their module ends.
    moved = any(hasattr(module, "_hf_hook") for module in subject.model.modules())
    return not moved and all(attached.only_edits for attached in others)
