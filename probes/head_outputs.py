"""z of every attention layer that an input reaches, and nothing else of the forward."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.heads import Site
from probes.listening import attach
from probes.replay import logits_unread
from probes.tap import Attached

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass(frozen=True)
class HeadOutputs:
    """The head outputs of one forward.

    Attributes:
        z: ``[batch query head value_width]`` by site, in the model's dtype; layers that the input
            does not reach are not in it.
    """

    batch: Batch
    z: dict[Site, Tensor]


def head_outputs(
    subject: Subject, batch: Batch, *, device: torch.device | str | None = None
) -> HeadOutputs:
    """Run a subject once and keep what its heads give out, before the output projection.

    Args:
        device: where z is put layer by layer; by default it stays where it is.
    """
    parts: dict[Site, list[Tensor]] = defaultdict(list)

    def keep(site: Site, z: Tensor, step: int) -> None:
        parts[site].append(z.detach().to(z.device if device is None else device, copy=True))

    settings = logits_unread(subject, batch)
    sites = frozenset(site.site for site in subject.layout.sites)
    with attach(subject, Attached(sites, on_z=keep)):
        subject.forward(batch, **settings)
    joined = {s: p[0] if len(p) == 1 else torch.cat(p, dim=1) for s, p in parts.items()}
    return HeadOutputs(batch, joined)
