"""Gradients of an objective with respect to what heads give out; no weight gets a gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.z_forward import ZForward, differentiating, z_forward

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

Objective = Callable[[Any], Tensor]
"""Takes what the model returned; gives a float ``[example]``, each from its own rows alone."""


@dataclass
class ZGradients:
    """An objective and its gradient at the output of every head.

    Attributes:
        output: what the model returned.
        objective: ``[example]``, detached.
        z: ``[batch query head value_width]`` by site, after all edits, in the model's dtype.
        gradient: float32, the same shapes: ``d sum(objective) / d z``. Examples do not mix, so a
            row holds the gradient of its own example's objective.
        calls: the attention calls of each site, detached, if they were asked for.
        unused: sites that ran but from which no gradient path leads to the objective (a last
            vision layer that is not read, or a model that detaches): their gradient is 0.
    """

    output: Any
    objective: Tensor
    z: Mapping[Site, Tensor]
    gradient: Mapping[Site, Tensor]
    calls: Mapping[Site, list[AttentionCall]] = field(default_factory=dict)
    unused: frozenset[Site] = frozenset()

    def by_call(self, site: Site) -> Iterator[tuple[AttentionCall, Tensor]]:
        """Each call of a site and its part of the gradient, ``[batch head query value_width]``."""
        start = 0
        for call in self.calls[site]:
            part = self.gradient[site][:, start : start + call.queries]
            start += call.queries
            yield call, part.transpose(1, 2)


def z_gradients(
    subject: Subject,
    batch: Batch,
    objective: Objective,
    *,
    sites: Iterable[Site] | None = None,
    calls: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> ZGradients:
    """The gradient of an objective at every head's output, in one forward and one backward.

    The model runs in evaluation mode (no dropout), with whatever edits are in force. Gradients
    of weights are not computed and no ``.grad`` is touched; weights may be frozen.

    Args:
        objective: from the model's output to float ``[example]``.
        sites: only these; by default every site that the input reaches.
        calls: keep the attention calls too (queries, keys, values and masks, detached). With
            them ``d objective / d pattern`` is ``gradient @ value^T``, tile by tile.
        settings: for the model's forward.

    Raises:
        TapError: a site that was named is not reached, or runs without gradients; the objective
            does not depend on any head.
        ValueError: the objective is not one number per example, or gradient checkpointing is on.
    """
    forward = z_forward(subject, batch, sites=sites, calls=calls, settings=settings)
    with differentiating():
        values = objective(forward.output)
    return gradients_of(forward, values)


def gradients_of(
    forward: ZForward, objective: Tensor, *, without_block: int | None = None, last: bool = True
) -> ZGradients:
    """The gradients of one objective of a forward, as `ZForward.gradient` takes them."""
    found = forward.gradient(objective, without_block=without_block, last=last)
    filled = {
        site: torch.zeros_like(forward.z[site], dtype=torch.float32) if part is None else part
        for site, part in found.items()
    }
    unused = frozenset(site for site, part in found.items() if part is None)
    return ZGradients(forward.output, objective.detach(), forward.z, filled, forward.calls, unused)
