"""A second-order estimate of ablation effects on cross entropy, for all heads at once.

A model that has learned its data sits where the gradient of its loss is next to nothing: what a
head is worth there is curvature, and first-order attribution patching ranks heads by what is left
over. Along the way of one head's output from z to z' (share a of the way gone) the loss rises by

    f(a) + (1 - 2 a) c,    f(a) = Δ · gradient at a,    c = 1/2 Δ^T J^T (diag p - p p^T) J Δ

to second order, with Δ = z - z' and c the Gauss-Newton curvature of the output alone (J: from z to
logits; Schraudolph, 2002). c of all heads comes from one backward: with random signs s and
``w = sqrt(p) s - p sum(sqrt(p) s)`` the expectation of ``(Δ · gradient of logits · w)^2`` is 2 c
(Hutchinson, 1989). Its noise falls with the number of examples: each draws its own signs.

The estimate is the mean of the two that are had at the intact model (a = 0) and where all heads
have gone `STEP` of their way together, both with the curvature of the second place. That is still
no exact effect: heads move together there, and what is beyond second order stays out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.estimates.node_sums import z_sums
from analysis.importance.estimates.objectives import BatchObjectives, kept_settings
from analysis.importance.readings import Reading
from probes.edits.apply import edit
from probes.edits.edit import EditPlace
from probes.edits.function import edit_z
from probes.gradients import ZGradients, gradients_of
from probes.heads import Site
from probes.z_forward import differentiating, z_forward

if TYPE_CHECKING:
    from analysis.importance.effects import Effect
    from probes.inputs import Batch
    from probes.subject import Subject

STEP = 0.15
"""Share of the way to their replacements at which all heads are looked at a second time."""
SKETCHES = 2
"""Backward passes that the curvature is averaged over."""


def second_order(
    subject: Subject,
    batch: Batch,
    changes: Mapping[Site, Tensor],
    intact: ZGradients,
    objectives: BatchObjectives,
    effect: Effect,
    *,
    seed: int = 0,
) -> dict[Site, Tensor]:
    """Float64 ``[example head]`` by site: what cross entropy loses without each head, estimated.

    One forward and three backward passes, whatever the number of heads.

    Args:
        changes: ``[batch query head value_width]``, z minus what replaces it.
        intact: gradients of the objective at the intact model.
        objectives: of the intact model; the same reads and targets are used.
        effect: cross entropy.
        seed: of the signs, which belong to an example: batching changes nothing.
    """
    way = _Way(changes)
    with edit(subject, edit_z(list(changes), way.part_gone)):
        # With calls, as the changes were taken: the layout of z at a call may be another.
        settings = kept_settings(objectives.positions)
        forward = z_forward(subject, batch, sites=list(changes), calls=True, settings=settings)
    there = replace(objectives, output=forward.output)
    with differentiating():
        value = there.value(effect)
        logits = there.reading.of(forward.output, there.positions)
        ids = [example.id for example in batch.examples]
        sketches = [
            curvature_sketch(there.reading, logits, ids, SKETCHES * seed + number)
            for number in range(SKETCHES)
        ]
    gone = gradients_of(forward, value, last=False)
    bent = [gradients_of(forward, sketch, last=sketch is sketches[-1]) for sketch in sketches]
    estimates = {}
    for site, change in changes.items():
        first = (z_sums(batch, site, intact, change) + z_sums(batch, site, gone, change)) / 2
        squares = [z_sums(batch, site, side, change) ** 2 for side in bent]
        curvature = torch.stack(squares).mean(0) / 2
        estimates[site] = first + (1 - STEP) * curvature
    return estimates


def curvature_sketch(reading: Reading, logits: Tensor, ids: list[str], seed: int) -> Tensor:
    """Float64 ``[example]``: an objective whose squared derivative along Δ is twice the curvature.

    Args:
        logits: ``[read choice]``, with their graph.
        ids: of the examples.
    """
    signs = torch.empty(logits.shape)
    for row, name in enumerate(ids):
        mine = (reading.example == row).nonzero()[:, 0]
        draw = torch.Generator().manual_seed(_number(name, seed))
        shape = (len(mine), logits.shape[1])
        drawn = torch.randint(0, 2, shape, generator=draw, dtype=torch.int8)
        signs[mine] = drawn.mul_(2).sub_(1).float()
    p = torch.softmax(logits.detach(), -1)
    spread = p.sqrt() * signs.to(p.device)
    weights = spread - p * spread.sum(-1, keepdim=True)
    return reading.per_example((logits * weights).sum(-1))


@dataclass
class _Way:
    """Moves each site's z part of its way; calls that are parts of a site come in order."""

    changes: Mapping[Site, Tensor]
    _gone: dict[Site, tuple[int, int]] = field(default_factory=dict)

    def part_gone(self, z: Tensor, place: EditPlace) -> Tensor:
        change = self.changes[place.site]
        query, head = self._gone.get(place.site, (0, 0))
        part = change[:, query : query + z.shape[1], head : head + z.shape[2]]
        head = (head + z.shape[2]) % change.shape[2]
        if head == 0:
            query = (query + z.shape[1]) % change.shape[1]
        self._gone[place.site] = query, head
        return z - STEP * part.to(z.dtype)


def _number(example_id: str, seed: int) -> int:
    text = f"{seed}\0{example_id}\0signs".encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=7).digest(), "little")
