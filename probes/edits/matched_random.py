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

from probes.attention_call import AttentionCall
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

    def at_call(self, call: AttentionCall, edits: Sequence[BoundEdit], first_head: int) -> bool:
        """Change the z of a call as the edits would have, but in random heads."""
        scores, patterns, before = len(call.score_edits), len(call.pattern_edits), call.z
        if not edit_call(call, edits, first_head):
            return False
        after, call.z = call.z, before
        del call.score_edits[scores:], call.pattern_edits[patterns:]
        new = self._matched(call.site, before.transpose(1, 2), after.transpose(1, 2))
        call.z = new.transpose(1, 2)
        return True

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
        new = z + (factor[..., None, None] * mine).to(z.dtype)
        self.report.fired += 1
        self.report.touched += int((chosen & (wanted > 0)[..., None]).sum())
        return torch.where(chosen[..., None], new, z)

    def _order(self, site: Site, heads: int) -> Tensor:
        """Long ``[head]``: the place of each head in the order in which heads are drawn."""
        if site not in self._orders:
            key = sum(ord(letter) << (5 * place % 40) for place, letter in enumerate(site.tower))
            dice = torch.Generator().manual_seed((self.seed << 20) ^ (site.layer << 8) ^ key)
            self._orders[site] = torch.randperm(heads, generator=dice)
        return self._orders[site]


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
    together); their direction stays. The edit itself is worked out but not carried out. An edit
    that makes its heads smaller gets a control that makes heads smaller.

    Args:
        seed: of the draw; take several, they differ.
    """
    return MatchedControl(of, seed)
