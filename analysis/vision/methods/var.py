"""VAR: weight on sinks goes to the rest of the image, in heads that look at the image.

Kang et al., *See What You Are Told: Visual Attention Sink in Large Multimodal Models* (ICLR 2025,
arXiv 2503.03321). With sinks S = {phi > tau} of a layer, image V and a query behind the image:

    a head is chosen where  sum of a over V >= mass  and  sum over V \\ S / sum over V >= rho
    budget = p * sum of a over S
    on S: a <- (1 - p) a;   on V \\ S: a <- a + budget * a / sum over V \\ S

Rows keep their sum. Heads are chosen anew for every row of every forward; sinks, of the text and of
the image, are found once, at the prompt. A layer without a visual sink is left alone.

Two traps of the released code: its ``p`` is the fraction that is *kept* (the shipped 0.6 is 0.4
here), and its ``rho`` bounds the share of *sinks* from above (``rho`` here is 1 minus that). It
also skips layers 0 and 1, and not the last one as the paper says: ``depth=(2/32, 1)`` with
``skip_last=False``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from analysis.sinks.places import behind_image
from analysis.vision.methods.sink_watch import SinkKeys, SinkWatch, at_keys
from analysis.vision.seeing import refuse_imageless
from probes.depth import sites_within, writing_tower
from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject
    from probes.tokens.map import TowerTokens


@dataclass
class VarEdit:
    """The rows of the layers of one `Var`."""

    method: Var
    heads: list[Site]
    watch: SinkWatch
    stage: Literal["pattern"] = "pattern"
    _weights: dict[Site, tuple[SinkKeys, Tensor]] = field(default_factory=dict)
    _behind: tuple[TowerTokens, Tensor] | None = None

    @property
    def label(self) -> str:
        return self.method.label

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        keys = self.watch.at(place)
        if keys is None or not keys.visual_any:
            return values
        weights = at_keys(self._features(place.site, keys), place)
        flat = values.flatten(1, 2)  # [batch head-row key]: a product with no copies of weights
        masses = (flat @ weights).view(*values.shape[:3], 3)
        plain, sinks, visual = masses.unbind(-1)
        seen = visual + plain
        chosen = (seen >= self.method.mass) & (plain >= self.method.rho * seen) & (plain > 0)
        if not place.step or values.shape[2] > 1:  # what is written stands behind the image
            chosen &= self._rows(place)[:, None]
        moved = torch.where(chosen, self.method.p, 0.0)
        change = torch.stack([moved * sinks / plain.clamp_min(1e-30), -moved], dim=-1)
        factor = change.flatten(1, 2) @ weights[..., :2].transpose(-1, -2)
        return (flat * (1 + factor)).view_as(values)

    def before(self, batch: Batch, generated: int) -> None:
        refuse_imageless(batch, self.heads[0].tower, self.label)
        self.watch.before(batch, generated)

    def _features(self, site: Site, keys: SinkKeys) -> Tensor:
        """Float ``[batch key feature]``: image but no sink, sink, visual sink.

        Zero in examples without a visual sink.
        """
        known = self._weights.get(site)
        if known is None or known[0] is not keys:
            marks = torch.stack([keys.plain_image, keys.text | keys.visual, keys.visual], dim=-1)
            having = keys.visual.any(-1)[:, None, None]
            known = self._weights[site] = keys, (marks & having).float()
        return known[1]

    def _rows(self, place: EditPlace) -> Tensor:
        """Bool ``[batch row]``: queries behind the image."""
        tokens = place.tokens[place.site.tower]
        if self._behind is None or self._behind[0] is not tokens:
            self._behind = tokens, behind_image(tokens).to(place.query_index.device)
        return self._behind[1][place.query_index]


@dataclass(frozen=True)
class Var:
    """See the top of this file; made by `var`."""

    p: float
    rho: float
    mass: float
    tau: float | None
    dimensions: tuple[int, ...] | None
    depth: tuple[float, float]
    skip_last: bool

    @property
    def label(self) -> str:
        return f"var(p={self.p:g}, rho={self.rho:g})"

    def on(self, subject: Subject) -> Prepared:
        """The edit, and the listener that finds the sinks."""
        tower = writing_tower(subject)
        if subject.kind != "vision-language":
            raise ValueError(
                f"var moves attention from sinks to an image, and {subject.name!r} "
                f"({subject.kind}) reads none. Use sink_removal or act on it."
            )
        sites = sites_within(tower, self.depth, skip_last=self.skip_last)
        watch = SinkWatch(subject, sites, self.dimensions, self.tau)
        edit = VarEdit(self, sites, watch)
        return Prepared(edits=(edit,), listeners=(watch.listener,), before=edit.before)


def var(
    p: float = 0.4,
    rho: float = 0.5,
    mass: float = 0.2,
    tau: float | None = None,
    dimensions: tuple[int, ...] | None = None,
    depth: tuple[float, float] = (0.0, 1.0),
    skip_last: bool = True,
) -> Var:
    """Visual attention redistribution, in the paper's form.

    Args:
        p: fraction of the weight on sinks that is moved to the rest of the image.
        rho: least share of a row's weight on the image that is on no sink, for a head to be chosen.
            The paper takes 0.8 in general, 0.5 against hallucination, 0.9 for vision-centric tasks.
        mass: least weight of a row on the image.
        tau: threshold of phi; 20, or as large a share of the token in models narrower than 4,096.
        dimensions: of the sinks; found on the first batch where not given.
        depth: layers by relative depth.
        skip_last: leave the last layer alone, as the paper does.

    >>> var(p=0.6).label
    'var(p=0.6, rho=0.5)'
    """
    for name, value in (("p", p), ("rho", rho), ("mass", mass)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` of var must lie between 0 and 1, got {value:g}.")
    return Var(p, rho, mass, tau, dimensions, depth, skip_last)
