"""Head-specific visual modulation: some heads look at the image more, in proportion.

The first version of *Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large
Vision-Language Model* (2025, arXiv 2501.12206) speaks of "head-specific modulation"; neither its
later text nor its code has a formula. This one is ours. For the query whose next token is written,
in head h with gain g, image keys V:

    a_j <- g a_j  for j in V,   then the row is divided so that it keeps its sum

which is adding ``log g`` to the image keys' scores: the image's share m of the row becomes
``g m / (1 + (g - 1) m)``, in its old proportions. Unless heads are named, those half of a layer's
heads are chosen, anew for each row, that have the largest share on the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from analysis.vision.prompt_lookup import AtImageKeys, WritingRows
from analysis.vision.seeing import reading_tower, refuse_imageless
from probes.depth import writing_heads
from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from probes.heads import Head, Site

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass
class ModulationEdit:
    """The rows of the heads of one `Modulation`."""

    method: Modulation
    heads: list[Head]
    table: Mapping[Head, float]
    stage: Literal["pattern"] = "pattern"
    _image: AtImageKeys | None = None
    _gains: dict[Site, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = WritingRows()
        # With gains of at least 1 a row's new sum can be told from the image's share.
        self._grows = min((self.method.gain, *self.table.values())) >= 1

    @property
    def label(self) -> str:
        return self.method.label

    def before(self, batch: Batch, generated: int) -> None:
        """Refuse what has no image."""
        tower = self.heads[0].tower
        refuse_imageless(batch, tower, self.label)
        count = int(batch.tokens[tower].has_role("image").sum())
        self._image = AtImageKeys(torch.ones(count))

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        rows = self._rows.at(place)
        if rows is not None and not bool(rows.any()):
            return values
        assert self._image is not None
        image = self._image.at(place)  # [batch key]
        mass = values @ image[:, None, :, None]  # [batch head row 1]
        more = self._more(place, mass)
        if rows is not None:
            more = more * rows[:, None, :, None]
        factors = 1 + more * image[:, None, None]
        total = values.sum(-1, keepdim=True)
        if self._grows and rows is None:  # a token that is fed back reads at least itself
            return values * factors * (total / torch.addcmul(total, more, mass))
        # A gain of 0 leaves nothing of a row that reads the image alone: it stays as it is, and
        # so does padding, which reads nothing.
        scaled = values * factors
        left = scaled.sum(-1, keepdim=True)
        return torch.where(left > 0, scaled * (total / left.clamp_min(1e-30)), values)

    def _more(self, place: EditPlace, mass: Tensor) -> Tensor:
        """Each gain less 1, broadcastable to ``mass [batch head row 1]``."""
        if place.site not in self._gains:
            heads = [Head(place.site.tower, place.site.layer, head) for head in place.heads]
            gains = [self.table.get(head, self.method.gain) - 1 for head in heads]
            self._gains[place.site] = torch.tensor(gains, device=mass.device)[:, None, None]
        if self.method.heads is not None or self.table:
            return self._gains[place.site]
        count = max(1, round(self.method.share * mass.shape[1]))
        most = mass.topk(count, dim=1, sorted=False).indices
        return torch.zeros_like(mass).scatter_(1, most, self.method.gain - 1)


@dataclass(frozen=True)
class Modulation:
    """See the top of this file; made by `modulation`."""

    gain: float
    share: float
    heads: str | tuple[str, ...] | None
    gains: Mapping[str | Head, float] | None
    depth: tuple[float, float]

    @property
    def label(self) -> str:
        if self.gains is not None:
            return f"modulation({len(self.gains)} gains)"
        return f"modulation(gain={self.gain:g})"

    def on(self, subject: Subject) -> Prepared:
        """The edit."""
        reading_tower(subject, "modulation")
        table = {Head.parse(str(head)): gain for head, gain in (self.gains or {}).items()}
        named = [str(head) for head in table] if table else self.heads
        heads = writing_heads(subject, named, self.depth)
        for site in dict.fromkeys(head.site for head in heads):
            if subject.layout.site(site).rule == "heads":
                raise ValueError(
                    f"modulation compares the heads of one attention call, and {site} makes "
                    "several. Leave the layer out with `heads`."
                )
        edit = ModulationEdit(self, heads, table)
        return Prepared(edits=(edit,), before=edit.before)


def modulation(
    gain: float = 2.0,
    share: float = 0.5,
    heads: str | tuple[str, ...] | None = None,
    gains: Mapping[str | Head, float] | None = None,
    depth: tuple[float, float] = (0.0, 1.0),
) -> Modulation:
    """Multiply the attention of some heads to the image, and let rows keep their sum.

    Args:
        gain: 1 changes nothing, 2 doubles the odds of the image, 0 hides it.
        share: of the heads of a layer that are chosen, the ones that look at the image most; of no
            effect where heads are named.
        heads: such as ``language.L3H5``, all with the same gain.
        gains: gain by head, such as ``{"language.L3H5": 3.0}``: these heads and no others.
        depth: layers by relative depth.

    >>> modulation(1.5).label
    'modulation(gain=1.5)'
    """
    if gains is not None and (heads is not None or not gains):
        raise ValueError(
            "modulation must be given `heads` or a table of `gains` that names some, got "
            f"{'both' if gains else 'an empty table'}."
        )
    for value in (gain, *(gains or {}).values()):
        if value < 0:
            raise ValueError(f"A gain of modulation must be at least 0, got {value:g}.")
    if not 0 < share <= 1:
        raise ValueError(f"`share` of modulation must lie between 0 and 1, got {share:g}.")
    return Modulation(gain, share, heads, gains, depth)
