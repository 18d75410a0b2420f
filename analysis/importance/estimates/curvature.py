"""How the softmax of the output bends an ablation's effect on cross entropy, for all heads at once.

A model that has learned its data sits where the gradient of its loss is next to nothing: what a
head is worth there is curvature, and first-order attribution patching ranks heads by what is left
over. Along the way of one head's output from z to z' the loss rises, to second order, by

    Δ · gradient + c,    c = 1/2 Δ^T J^T (diag p - p p^T) J Δ

with Δ = z - z', p the model's probabilities, and c the Gauss-Newton curvature of the output alone
(J: from z to logits; Schraudolph, 2002), never negative. c of all heads comes from one backward:
with random signs s and ``w = A s`` for any A with ``A A^T = diag p - p p^T`` the expectation of
``(Δ · gradient of logits · w)^2`` is 2 c (Hutchinson, 1989). We take ``A = (diag r - p r^T) H``,
with r the roots of p and H the reflection of r to minus the axis of the likeliest choice. The other
factor is 0 along r: so that choice's sign is no noise, and two likely choices leave none at all.
What noise there is falls with the number of examples, each of which draws its own signs: over n
examples of one kind the mean of c is off by at most about ``sqrt(2 / (SKETCHES n))`` of itself, one
standard deviation.

The gradient is that of the intact model, c is taken where all heads have gone `STEP` of their way
together: where p is sharp, the curvature at the start says little of the way. That is a choice, not
part of the expansion; it ranks better on most of the bundled models, and no worse on the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding

from analysis.importance.estimates.node_sums import z_sums
from analysis.importance.estimates.objectives import BatchObjectives, kept_settings
from analysis.importance.log_probability import blocks_of_rows
from analysis.importance.readings import Reading
from probes.edits.apply import edit
from probes.edits.edit import EditPlace
from probes.edits.function import edit_z
from probes.gradients import gradients_of
from probes.heads import Site
from probes.z_forward import differentiating, z_forward

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

STEP = 0.15
"""Share of the way to their replacements at which curvature is taken."""
SKETCHES = 1
"""Backward passes that the curvature is averaged over."""
_SIGNS = 2.0 * (torch.arange(256)[:, None] >> torch.arange(8) & 1) - 1
"""Float ``[byte bit]``: a sign for every bit of every byte."""


def output_curvature(
    subject: Subject,
    batch: Batch,
    changes: Mapping[Site, Tensor],
    objectives: BatchObjectives,
    *,
    seed: int = 0,
) -> dict[Site, Tensor]:
    """Float64 ``[example head]`` by site: the curvature c of each head, never negative.

    One forward and `SKETCHES` backward passes, whatever the number of heads.

    Args:
        changes: ``[batch query head value_width]``, z minus what replaces it.
        objectives: of the intact model; the same reads are used.
        seed: of the signs, which belong to an example: batching changes nothing.
    """
    way = _Way(changes)
    with edit(subject, edit_z(list(changes), way.part_gone)):
        # With calls, as the changes were taken: the layout of z at a call may be another.
        settings = kept_settings(objectives.positions)
        forward = z_forward(subject, batch, sites=list(changes), calls=True, settings=settings)
    ids = [example.id for example in batch.examples]
    with differentiating():
        logits = objectives.reading.of(forward.output, objectives.positions)
    total: dict[Site, Tensor] = {}
    for number in range(SKETCHES):
        with differentiating():
            sketch = curvature_sketch(objectives.reading, logits, ids, SKETCHES * seed + number)
        side = gradients_of(forward, sketch, last=number == SKETCHES - 1)
        for site, change in changes.items():
            part = z_sums(batch, site, side, change) ** 2 / (2 * SKETCHES)
            total[site] = total[site] + part if site in total else part
    return total


def curvature_sketch(reading: Reading, logits: Tensor, ids: list[str], seed: int) -> Tensor:
    """Float64 ``[example]``: an objective whose squared derivative along Δ is twice the curvature.

    It is there to be differentiated; its own value says nothing and is 0.

    Args:
        logits: ``[read choice]``, with their graph.
        ids: of the examples.
    """
    bits = torch.empty(logits.shape[0], -(-logits.shape[1] // 8), dtype=torch.uint8)
    for row, name in enumerate(ids):
        mine = (reading.example == row).nonzero()[:, 0]
        draw = torch.Generator().manual_seed(_number(name, seed))
        shape = (len(mine), bits.shape[1])
        bits[mine] = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    read: Any = _Sketch.apply(logits, bits.to(logits.device))
    return reading.per_example(read)


class _Sketch(torch.autograd.Function):
    """Zeros ``[read]`` whose gradient is w, made block by block of rows.

    Nothing as large as the logits is drawn or kept but the gradient itself: a sign is a bit.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, bits: Tensor) -> Tensor:
        ctx.save_for_backward(logits, bits)
        return logits.new_zeros(logits.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor, None]:
        logits, bits = ctx.saved_tensors
        signs = _SIGNS.to(logits.device, logits.dtype)
        weights = torch.empty_like(logits)
        for rows in blocks_of_rows(logits):
            p = torch.softmax(logits[rows], -1)
            drawn = embedding(bits[rows].int(), signs).flatten(1)[:, : p.shape[1]]
            largest, top = p.max(-1, keepdim=True)
            of_top, root = drawn.gather(1, top), largest.sqrt()
            spread = p.sqrt().mul_(drawn)
            turned = (spread.sum(-1, keepdim=True) + of_top) / (1 + root)
            made = torch.sub(spread, p.mul_(turned - of_top), out=weights[rows])
            made.scatter_add_(1, top, -turned * root).mul_(given[rows, None])
        return weights, None


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
