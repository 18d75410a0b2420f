"""Take attention away from sinks and give it to the other keys in proportion.

Kang et al. (2025, arXiv 2503.03321) mask visual sinks to show that they carry nothing: their models
hardly notice, while as many random image tokens are missed. Here the weight of a row on the chosen
sinks S is multiplied by ``1 - amount`` and what that frees goes to the keys outside S, each in
proportion to its own weight. Rows keep their sum; a row that reads nothing but sinks stays as it
is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from analysis.vision.methods.sink_watch import SinkWatch, at_keys
from analysis.vision.seeing import refuse_imageless
from probes.depth import writing_heads
from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from probes.heads import Head

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

Which = Literal["text", "visual", "both"]
WHICH = ("text", "visual", "both")


@dataclass
class SinkRemovalEdit:
    """The rows of the layers of one `SinkRemoval`."""

    method: SinkRemoval
    heads: list[Head]
    watch: SinkWatch
    stage: Literal["pattern"] = "pattern"

    @property
    def label(self) -> str:
        return self.method.label

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        keys = self.watch.at(place)
        if keys is None:
            return values
        which, amount = self.method.which, self.method.amount
        marked = keys.text | keys.visual
        if which != "both":
            marked = keys.text if which == "text" else keys.visual
        sinks = at_keys(marked, place)[:, None, None]  # [batch 1 1 key]
        taken = torch.where(sinks, values, 0.0).sum(-1, keepdim=True)
        rest = torch.where(sinks, 0.0, values).sum(-1, keepdim=True)
        moved = torch.where(rest > 0, amount * taken, 0.0)
        left = torch.where(rest > 0, 1 - amount, 1.0)
        return values * torch.where(sinks, left, 1 + moved / rest.clamp_min(1e-30))

    def before(self, batch: Batch, generated: int) -> None:
        if self.method.which == "visual":
            refuse_imageless(batch, self.heads[0].tower, self.label)
        self.watch.before(batch, generated)


@dataclass(frozen=True)
class SinkRemoval:
    """See the top of this file; made by `sink_removal`."""

    which: Which
    amount: float
    tau: float | None
    dimensions: tuple[int, ...] | None
    heads: str | tuple[str, ...] | None
    depth: tuple[float, float]

    @property
    def label(self) -> str:
        return f"sink_removal({self.which}, amount={self.amount:g})"

    def on(self, subject: Subject) -> Prepared:
        """The edit, and the listener that finds the sinks."""
        heads = writing_heads(subject, self.heads, self.depth)
        if self.which == "visual" and subject.kind != "vision-language":
            raise ValueError(
                f"Visual sinks are image tokens, and {subject.name!r} ({subject.kind}) reads none. "
                "Choose which='text'."
            )
        sites = list(dict.fromkeys(head.site for head in heads))
        watch = SinkWatch(subject, sites, self.dimensions, self.tau)
        edit = SinkRemovalEdit(self, heads, watch)
        return Prepared(edits=(edit,), listeners=(watch.listener,), before=edit.before)


def sink_removal(
    which: Which = "both",
    amount: float = 1.0,
    tau: float | None = None,
    dimensions: tuple[int, ...] | None = None,
    heads: str | tuple[str, ...] | None = None,
    depth: tuple[float, float] = (0.0, 1.0),
) -> SinkRemoval:
    """Remove attention to sinks.

    Args:
        which: sinks among the positions of the image (``visual``), among all others (``text``), or
            both.
        amount: fraction of the weight on sinks that is taken away.
        tau: threshold of phi; 20, or as large a share of the token in models narrower than 4,096.
        dimensions: of the sinks; found on the first batch where not given.
        heads: such as ``language.L3H5``; by default all of the layers in ``depth``.
        depth: layers by relative depth.

    >>> sink_removal("visual").label
    'sink_removal(visual, amount=1)'
    """
    if which not in WHICH:
        raise ValueError(
            f"`which` of sink_removal must be one of {', '.join(WHICH)}, got {which!r}."
        )
    if not 0 <= amount <= 1:
        raise ValueError(f"`amount` of sink_removal must lie between 0 and 1, got {amount:g}.")
    return SinkRemoval(which, amount, tau, dimensions, heads, depth)
