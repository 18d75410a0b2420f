"""The control of an edit: random heads, changed by as much as the edit would have changed its own.

A method that scales or redirects heads also changes the size of what attention writes. Whether it
helps *because of the heads it chose* is told by this control: at the same layers and queries, as
many random heads are scaled so that z moves by the same length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.attention_call import AttentionCall, Tile, TileEdit
from probes.edits.at_call import BoundEdit, edit_call, edit_hooked_z
from probes.edits.edit import Edit, EditReport
from probes.edits.method import Method, Prepared
from probes.heads import Site
from probes.moment import Moment

if TYPE_CHECKING:
    from probes.subject import Subject


_ROUNDING, _HALF_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-5}, 1e-2
"""Changes of a head up to so much of the largest z of its row are none."""


@dataclass
class MatchedRandom:
    """Carries the control out where the model computes.

    Attributes:
        seed: of the order in which heads are drawn, one order per layer.
        report: of the control; the edits' own reports are not shown.
    """

    seed: int
    report: EditReport
    _orders: dict[Site, Tensor] = field(default_factory=dict, repr=False)

    def at_call(
        self, call: AttentionCall, edits: Sequence[BoundEdit], first_head: int, others: bool
    ) -> bool:
        """Change the z of a call as the edits would have, but in random heads.

        Args:
            others: whether other edits have acted on this call.
        """
        if not any(call.site in chosen for _, chosen, _ in edits):
            return False
        before, earlier = call.z, (call.score_edits, call.pattern_edits)
        # What other edits touch has been counted.
        call.score_edits, call.pattern_edits = ([_uncounted(e) for e in part] for part in earlier)
        acted = _changed(call, edits, first_head) if others else edit_call(call, edits, first_head)
        after, call.z = call.z, before
        call.score_edits, call.pattern_edits = earlier
        if acted:
            new = self._matched(call.site, before.transpose(1, 2), after.transpose(1, 2))
            call.z = new.transpose(1, 2)
        return acted

    def at_projection(
        self,
        site: Site,
        z: Tensor,
        edits: Sequence[BoundEdit],
        moment: Moment,
        index: Tensor | None,
    ) -> Tensor:
        """The same for ``z [batch query head head_width]`` before its projection."""
        return self._matched(site, z, edit_hooked_z(site, z, edits, moment, index))

    def _matched(self, site: Site, z: Tensor, edited: Tensor) -> Tensor:
        change = (edited - z).float()
        per_head = torch.linalg.vector_norm(change, dim=-1)  # [batch query head]
        # Where an edit is made at the call, z is computed anew and moves by rounding in every head.
        size = torch.linalg.vector_norm(z.float(), dim=-1).amax(-1, keepdim=True)
        rounding = _ROUNDING.get(z.dtype, _HALF_ROUNDING)
        per_head = torch.where(per_head > rounding * size, per_head, 0.0)
        count = (per_head > 0).sum(-1, keepdim=True)
        chosen = self._order(site, z.shape[2]).to(z.device) < count  # [batch query head]
        mine = torch.where(chosen[..., None], z.float(), 0.0)
        length = torch.linalg.vector_norm(mine.flatten(-2), dim=-1)
        wanted = torch.linalg.vector_norm(per_head, dim=-1)
        # Heads are made larger where the edit made its own heads larger, else smaller.
        sign = torch.where((change * z.float()).sum((-1, -2)) < 0, -1.0, 1.0)
        factor = sign * wanted / length.clamp_min(1e-30)
        factor = torch.where(length > 0, factor, 0.0)
        new = torch.where(chosen[..., None], z + (factor[..., None, None] * mine).to(z.dtype), z)
        self.report.fired += 1
        self.report.touched += int((new != z).any(-1).sum())
        return new

    def _order(self, site: Site, heads: int) -> Tensor:
        """Long ``[head]``: the place of each head in the order in which heads are drawn."""
        if site not in self._orders:
            key = sum(ord(letter) << (5 * place % 40) for place, letter in enumerate(site.tower))
            dice = torch.Generator().manual_seed((self.seed << 20) ^ (site.layer << 8) ^ key)
            self._orders[site] = torch.randperm(heads, generator=dice)
        return self._orders[site]


def _changed(call: AttentionCall, edits: Sequence[BoundEdit], first_head: int) -> bool:
    """`edit_call` where other edits have left a z that patterns alone do not give."""
    rows = [bound for bound in edits if bound[0].stage != "z"]
    before, acted = call.z, False
    if rows:
        base = call.z = call.weighted_values().to(before.dtype)
        acted = edit_call(call, rows, first_head)
        call.z = (before.double() + (call.z.double() - base.double())).to(before.dtype)
    of_z = [bound for bound in edits if bound[0].stage == "z"]
    return edit_call(call, of_z, first_head) or acted


def _uncounted(edit: TileEdit) -> TileEdit:
    def apply(tile: Tile, values: Tensor) -> Tensor:
        counting, tile.call.counting = tile.call.counting, False
        try:
            return edit(tile, values)
        finally:
            tile.call.counting = counting

    return apply


@dataclass(frozen=True)
class MatchedControl:
    """A method, or edits, with random heads in the place of the chosen ones."""

    of: Edit | Method
    seed: int = 0

    @property
    def label(self) -> str:
        return f"random heads like {self.of.label} (seed={self.seed})"

    def on(self, subject: Subject) -> Prepared:
        """The method's own parts, carried out on random heads."""
        of = self.of
        prepared = of.on(subject) if isinstance(of, Method) else Prepared(edits=(of,))
        if not prepared.edits:
            raise ValueError(
                f"{of.label} must change heads to have a control of random heads, it changes "
                "none. Compare it with the plain model only."
            )
        prepared.control = MatchedRandom(self.seed, EditReport(self.label, ()))
        return prepared


def matched_random(of: Edit | Method, seed: int = 0) -> MatchedControl:
    """The norm-matched random-head control of an edit or method.

    At every call that the edit would change, as many heads as it would change, drawn at random
    for each layer, are scaled so that z moves by the same length ``[batch query]`` (all heads
    together) along their own direction. The edit itself is worked out but not carried out. An edit
    that makes its heads smaller gets a control that makes heads smaller, and turns them round where
    that takes more than there is of them.

    Args:
        seed: of the draw; take several, they differ.
    """
    return MatchedControl(of, seed)
