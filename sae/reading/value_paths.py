"""A forward in which every value vector still hangs on the residual stream it was read from.

The residual path is followed as `probes.direct` does it (norms frozen at their scales, blocks cut
off), and one step further: from the stream through a layer's norm and value map to its values. So
what a head brings from a source is a linear function of what was added to the stream there, and a
gradient along that path splits it, exactly.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.direct.linear_functions import product
from probes.direct.path_watch import PathWatch
from probes.direct.residual_path import Part, PathError, Place
from probes.edits.edit import EditPlace, EditReport
from probes.heads import Site
from probes.listening import attach
from probes.replay import logits_unread
from probes.tap import Attached
from sae.reading.latent_reading import wide_dtype

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

_Z_TOLERANCE = 1e-3
_MIXED = "The positions of {} cannot be told apart. Run one example at a time."


@dataclass(frozen=True)
class HeadPieces:
    """What heads of one layer added at one position, and what of it is read.

    Attributes:
        call: the call that computed it, with its row and query; None where a layer makes a call
            for each group of heads.
        z: what the heads gave out there.
        gradient: how what is read moves with z: ``(z * gradient).sum(-1)`` is each head's score.
        bias: score of the output projection's bias.
    """

    site: Site
    call: AttentionCall | None
    row: int
    query: int
    z: Float[Tensor, "head head_width"]
    gradient: Float[Tensor, "head head_width"]
    bias: float

    @property
    def position(self) -> int:
        """Flat position in the token map, -1 where it is not known."""
        index = None if self.call is None else self.call.query_index
        return -1 if index is None else int(index[self.row, self.query])


@dataclass
class Split:
    """A number read off the stream, as a sum: of heads, and of all other parts by what they are.

    Attributes:
        size: ``sum |value * direction|`` over the head width: what rounding is a share of, since
            the number itself may be what is left of large terms.
    """

    heads: list[HeadPieces] = field(default_factory=list)
    others: dict[Part, float] = field(default_factory=dict)
    size: float = 0.0


class ValuePaths:
    """Runs a batch once; afterwards `split` says what any value is made of.

    Attributes:
        calls: the calls of each site, their values on the residual path where it is linear.
    """

    def __init__(self, subject: Subject, batch: Batch) -> None:
        self.subject, self.batch = subject, batch
        self.calls: dict[Site, list[AttentionCall]] = defaultdict(list)
        self._watch = PathWatch(subject, self._arrived)
        self._watch.mode.reads = self._reads
        self._gradients: dict[Site, Tensor] = {}
        self._sums: dict[Part, float] = defaultdict(float)
        anatomy = subject.layout.anatomy
        self._by_block: dict[tuple[str, int], list[Site]] = defaultdict(list)
        for place in subject.layout.sites:
            block = anatomy.blocks.get(place.site)
            path = place.path if block is None else block.path
            self._by_block[path, place.site.layer].append(place.site)
        self._path_of = {site: block.path for site, block in anatomy.blocks.items()}
        self._run()

    def split(self, call: AttentionCall, row: int, key: int, head: int, direction: Tensor) -> Split:
        """``value[key] . direction`` of one head as a sum over what was added to the stream.

        Args:
            direction: float ``[head_width]``.

        Raises:
            PathError: the value is not linear in a residual stream that can be followed.
        """
        value = call.value[row, head // (call.heads // call.kv_heads), key]
        if not value.requires_grad:
            raise PathError(self._off_path(call.site))
        self._gradients, self._sums = {}, defaultdict(float)
        with torch.inference_mode(False), torch.enable_grad():
            terms = value.to(direction.dtype) * direction.to(value.device)
            read = terms.sum()
        anchors = list(self._watch.mode.anchors.values())
        torch.autograd.grad(read, anchors, retain_graph=True, allow_unused=True)
        found = Split(others=dict(self._sums), size=float(terms.detach().abs().sum()))
        for site, gradient in self._gradients.items():
            found.heads += self._head_pieces(site, gradient)
        return found

    def _run(self) -> None:
        sites = {place.site: list(range(place.heads)) for place in self.subject.layout.sites}
        watched = _Watched(list(sites), self.calls)
        edits = ((watched, sites, EditReport(watched.label, ())),)
        settings = logits_unread(self.subject, self.batch)
        # A listener of calls makes the tap stand at calls, where values are.
        attached = Attached(frozenset(sites), on_call=lambda call: None, edits=edits)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            attach(self.subject, attached),
            # The path's mode is entered last: it sees functions before the tap's mode does.
            self._watch.watching(),
        ):
            self.subject.forward(self.batch, **settings)

    def _reads(self, place: Place) -> bool:
        """Whether the attention of the running block is still to come.

        What follows it reads the stream for other ends (an MLP), and is cut as always.
        """
        assert place.block is not None
        path = self._path_of.get(place.block, place.path)
        sites = self._by_block.get((path, place.block.layer), [])
        # Windows share one value map, which has run before the first of them.
        return any(not self.calls[site] for site in sites)

    def _arrived(self, part: Part, gradient: Tensor, values: Tensor) -> None:
        if part.kind == "heads":
            assert part.site is not None
            known = self._gradients.get(part.site)
            self._gradients[part.site] = gradient if known is None else known + gradient
            return
        self._sums[part] += float(product(gradient, values).to(wide_dtype(gradient.device)).sum())

    def _head_pieces(self, site: Site, gradient: Tensor) -> list[HeadPieces]:
        written, wide = self._watch.written[site], wide_dtype(gradient.device)
        examples = self.batch.size
        rows = written.arranged(gradient, examples).flatten(0, 1)
        at = rows.abs().amax(-1).nonzero()[:, 0]
        z = written.arranged(written.z, examples).flatten(0, 1)[at].to(wide)
        moved = self._through_output(site, rows[at]).to(wide)
        bias = torch.zeros(len(at))
        if written.bias is not None:
            bias = rows[at].to(wide) @ written.bias.to(wide)
        pieces = []
        for number, row in enumerate(at.tolist()):
            call, batch, query = self._place(site, row)
            if call is not None:
                self._refuse_other_row(call, batch, query, z[number])
            score = float(bias[number])
            pieces.append(HeadPieces(site, call, batch, query, z[number], moved[number], score))
        return pieces

    def _place(self, site: Site, row: int) -> tuple[AttentionCall | None, int, int]:
        """The call, its batch row and query that a row of an output projection's input is."""
        if self.subject.layout.site(site).rule == "heads":
            return None, -1, -1
        for call in self.calls[site]:
            if row < call.batch * call.queries:
                return call, row // call.queries, row % call.queries
            row -= call.batch * call.queries
        raise PathError(_MIXED.format(site))

    @staticmethod
    def _refuse_other_row(call: AttentionCall, batch: int, query: int, z: Tensor) -> None:
        own = call.z[batch, :, query].to(z.dtype)
        apart = float((own - z).abs().max())
        if not apart <= _Z_TOLERANCE * max(float(own.abs().max()), 1e-12):
            raise PathError(_MIXED.format(call.site))

    def _through_output(
        self, site: Site, gradient: Float[Tensor, "row model_width"]
    ) -> Float[Tensor, "row head head_width"]:
        """What an output projection's input contributes to along a direction of its output."""
        anatomy = self.subject.layout.anatomy
        projection, shape = anatomy.projections[site], anatomy.shapes[site]
        if projection.weight is None:
            matrix = projection.matrix(*shape).flatten(0, 1)
            return (gradient.to(matrix.dtype) @ matrix.T).unflatten(-1, shape)
        # Float32 at least, and no copy where it is that already: this is done for every link.
        dtype = torch.promote_types(projection.weight.dtype, torch.float32)
        weight = projection.weight.detach().to(dtype)
        found = gradient.to(dtype) @ (weight.T if projection.transposed else weight)
        return found.unflatten(-1, shape)

    def _off_path(self, site: Site) -> str:
        known = self.subject.layout.anatomy.missing
        why = [known[part] for part in (f"{site} residual stream",) if part in known]
        return " ".join(
            [
                f"The values of {site} must be a linear map of a residual stream behind a norm, "
                "and were not seen to be.",
                *why,
                "Attribute latents there directly, without recursion.",
            ]
        )


@dataclass
class _Watched:
    """An edit that keeps calls and cuts z from the graph: a head's write is a part of its own."""

    heads: list[Site]
    calls: dict[Site, list[AttentionCall]]
    label: str = "value paths"
    stage: Literal["z"] = "z"

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        if place.call is not None:
            # Some models go on to add to the very tensor that they were given.
            own = values.detach().clone().transpose(1, 2)
            self.calls[place.site].append(replace(place.call, z=own))
        return values.detach()
