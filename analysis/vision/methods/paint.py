"""PAINT: image tokens that the vision tower marks are made louder in the decoder's scores.

*Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model*
(2025, arXiv 2501.12206), as its code has it. From the vision tower, with ``c`` the attention of the
CLS token summed over heads, per image or tile:

    local    the quarter of the patches with the largest c of the first layer
    summary  the patches whose c of the last layer but one exceeds Q3 + 1.5 (Q3 - Q1)
    local   <- local without summary

and in the decoder, every head, layers 2 to 31 of 32, for the query whose next token is written:

    e <- e + alpha |e| on local keys,   e <- e + beta |e| on summary keys,   then the softmax

Where a position of the language model stands for several patches, it has the mean of their ``c``. A
vision tower without a CLS token gives the mean over its queries instead.

What the released code has and this has not: a third, "spatial" choice that ranks the row sums of a
softmax, which are all 1, off by one position; and an option that divides by the text-only
distribution. What this shares with it: ``|e|`` depends on the scale of a model's scores, so one
``alpha`` does not mean the same in two models, and from about .8 on LLaVA-1.5 collapses. The
head-specific part that the first version of the text speaks of is in neither: see `modulation`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from analysis.vision.patch_statistics import Need, PatchStatistics
from analysis.vision.prompt_lookup import AtImageKeys, WritingRows
from analysis.vision.seeing import VISION, reading_tower, refuse_imageless, seeing_tower
from probes.depth import writing_heads
from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from probes.heads import Head
from probes.tokens.correspondence import Correspondence, correspondence, owners

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

DEPTH = (2 / 32, 1.0)
_LEAST_SCORE = -1e6
"""Below all scores of models, far above those of forbidden pairs."""


@dataclass(frozen=True)
class Streams:
    """The two choices of image positions, bool ``[position]``; they share none."""

    local: Tensor
    summary: Tensor


def streams(first: Tensor, late: Tensor, owner: Tensor, share: float) -> Streams:
    """PAINT's local and summary tokens.

    Args:
        first, late: ``[position]``: attention of the CLS token in the first layer and in the last
            but one; NaN for positions that stand for no patch, which are never chosen.
        owner: long ``[position]``: which image or tile a position belongs to.
        share: of an image's positions that are local, before those of the summary are taken out.
    """
    local = torch.zeros(len(owner), dtype=torch.bool)
    summary = local.clone()
    placed = ~first.isnan()
    for group in owner[placed].unique().tolist():
        mine = ((owner == group) & placed).nonzero()[:, 0]
        count = int(share * len(mine) + 1e-9)  # .29 of 100 are 29
        best = first[mine].argsort(descending=True, stable=True)[:count]
        local[mine[best]] = True
        q1, q3 = torch.quantile(late[mine].double(), torch.tensor([0.25, 0.75]).double()).tolist()
        summary[mine] = late[mine] > q3 + 1.5 * (q3 - q1)
    return Streams(local & ~summary, summary)


@dataclass
class PaintEdit:
    """The scores of the heads of one `Paint`."""

    method: Paint
    heads: list[Head]
    statistics: PatchStatistics
    first: Need
    late: Need
    stage: Literal["scores"] = "scores"
    chosen: Streams | None = None
    """What was chosen for the batch that runs."""
    _places: Correspondence | None = None
    _owner: Tensor | None = None
    _gains: AtImageKeys | None = None

    def __post_init__(self) -> None:
        self._rows = WritingRows()

    @property
    def label(self) -> str:
        return self.method.label

    def before(self, batch: Batch, generated: int) -> None:
        """Refuse what has no image, and match positions with patches."""
        tower = self.heads[0].tower
        refuse_imageless(batch, tower, self.label)
        self._places = correspondence(batch.tokens, tower, VISION)
        self._owner = owners(batch.tokens[tower], self._places.position)
        self.statistics.forget()
        self.chosen = self._gains = None

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        assert place.call is not None
        if place.call.query is None:
            raise ValueError(
                f"{self.label} needs the scores of {place.site} themselves, and the model writes "
                "out its own softmax there. Load it with `attn_implementation='sdpa'`."
            )
        rows = self._rows.at(place)
        if rows is not None and not bool(rows.any()):
            return values
        gains = self._gains_of(place).at(place)[:, None, None]
        if rows is not None:
            gains = gains * rows[:, None, :, None]
        # A forbidden key is at -1e30, of which no part may be added to it.
        return torch.addcmul(values, gains, values.clamp_min(_LEAST_SCORE).abs())

    def _gains_of(self, place: EditPlace) -> AtImageKeys:
        if place.step and self._gains is not None:
            return self._gains
        self._gains = place.shared(("paint", id(self)), self._choose)
        return self._gains

    def _choose(self) -> AtImageKeys:
        assert self._owner is not None
        first, late = (
            self.statistics.at_positions(need, self._places).cpu()
            for need in (self.first, self.late)
        )
        self.chosen = streams(first, late, self._owner, self.method.share)
        gains = self.method.alpha * self.chosen.local.float()
        return AtImageKeys(gains + self.method.beta * self.chosen.summary.float())


@dataclass(frozen=True)
class Paint:
    """See the top of this file; made by `paint`."""

    alpha: float
    beta: float
    share: float
    heads: str | tuple[str, ...] | None
    depth: tuple[float, float]

    @property
    def label(self) -> str:
        return f"paint(alpha={self.alpha:g}, beta={self.beta:g})"

    def on(self, subject: Subject) -> Prepared:
        """The edit, and the listener that hears the vision tower."""
        reading_tower(subject, "paint")
        tower = seeing_tower(subject, "paint")
        if tower.depth < 2 or {0, tower.depth - 2} - set(tower.sites):
            raise ValueError(
                f"paint compares the first layer of the vision tower with the last but one, and "
                f"that of {subject.name!r} has {tower.depth} layers, of which "
                f"{len(tower.sites)} have softmax attention. Choose another model."
            )
        first, late = (Need(VISION, layer, "cls_attention") for layer in (0, tower.depth - 2))
        statistics = PatchStatistics(frozenset({first, late}))
        heads = writing_heads(subject, self.heads, self.depth)
        edit = PaintEdit(self, heads, statistics, first, late)
        return Prepared(edits=(edit,), listeners=statistics.listeners, before=edit.before)


def paint(
    alpha: float = 0.7,
    beta: float = 0.3,
    share: float = 0.25,
    heads: str | tuple[str, ...] | None = None,
    depth: tuple[float, float] = DEPTH,
) -> Paint:
    """Raise the scores of image tokens that the vision tower's CLS token attends to.

    Args:
        alpha: what is added to a local key's score, in units of its magnitude.
        beta: the same for summary keys; the text's best is .4, the code's default .3.
        share: of an image's positions that are local.
        heads: such as ``language.L3H5``; by default all of the layers in ``depth``.
        depth: layers by relative depth.

    >>> paint(beta=0.4).label
    'paint(alpha=0.7, beta=0.4)'
    """
    for name, value in (("alpha", alpha), ("beta", beta)):
        if value < 0:
            raise ValueError(f"`{name}` of paint must be at least 0, got {value:g}.")
    if not 0 < share <= 1:
        raise ValueError(f"`share` of paint must lie between 0 and 1, got {share:g}.")
    return Paint(alpha, beta, share, heads, depth)
