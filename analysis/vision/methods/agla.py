"""AGLA: what the model would say of the image's relevant parts alone is added to what it says.

An et al., *Mitigating Object Hallucinations in Large Vision-Language Models with Assembly of Global
and Local Attention* (CVPR 2025, arXiv 2406.12718). With l the next-token logits after the image and
l' those after the image without its least relevant parts:

    l + alpha l'   where  l >= max l + log beta,   minus infinity elsewhere

The second branch reads the same prompt and the same written tokens, with a KV cache of its own. No
head is edited. Greedy unless told otherwise; the paper samples.

What is ours: relevance. The paper asks a matching model (BLIP-ITM) which pixels belong to the
question and keeps ``1 - sim / 2`` of them, ``sim`` its similarity of image and question: .8 at a
similarity of .4. Here the subject itself is asked (see `analysis.vision.gradient_attention`; layers
in the middle), ``keep`` is fixed, whole patches go, and they get the processor's mean colour, not
black. Each image (or tile of one) keeps the same share.

Edits that act at the same time act in both branches; methods that look ahead or listen act in the
first only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.vision.gradient_attention import gradient_attention
from analysis.vision.pruning.selector import budget, largest
from analysis.vision.seeing import VISION, reading_tower, refuse_imageless
from probes.depth import sites_within
from probes.edits.method import Prepared
from probes.heads import Site
from probes.inputs import InputError
from probes.pixel_patches import blanked
from probes.second_generation import SecondGeneration
from probes.tokens.correspondence import Correspondence, correspondence, owners

if TYPE_CHECKING:
    from probes.edits.edit import EditReport
    from probes.inputs import Batch
    from probes.subject import Subject

MIDDLE = (1 / 3, 2 / 3)


@dataclass
class AglaState:
    """The masked images of the batch that is being continued."""

    method: Agla
    subject: Subject
    sites: list[Site]
    masked: Batch | None = None
    kept: Tensor | None = None
    """Bool ``[position]``: the image positions whose pixels are still there."""
    _generated: int = field(default=0, repr=False)

    def before(self, batch: Batch, generated: int) -> None:
        """Mask the images, if something is to be written."""
        tower, label = self.sites[0].tower, self.method.label
        refuse_imageless(batch, tower, label)
        places = correspondence(batch.tokens, tower, VISION)
        if not generated:
            return
        relevance = gradient_attention(self.subject, batch, self.sites)
        self.kept = most_relevant(batch, tower, places, relevance, self.method.keep, label)
        pixels = blanked(self.subject, batch, places, ~self.kept)
        self.masked = replace(batch, tensors={**batch.tensors, **pixels})
        self._generated = generated

    def logits(self, batch: Batch, report: EditReport) -> Ensemble:
        """The processor of one generation."""
        return Ensemble(self, report)

    def second(self) -> SecondGeneration:
        """The other branch, from its prompt on."""
        assert self.masked is not None
        return SecondGeneration(self.subject, self.masked, self._generated)


@dataclass
class Ensemble:
    """A logits processor: adds the second branch, cuts what the first finds implausible."""

    state: AglaState
    report: EditReport
    _second: SecondGeneration | None = None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        if self._second is None:
            self._second = self.state.second()
        method = self.state.method
        new = ensembled(scores, self._second.logits(ids), method.alpha, method.beta)
        self.report.fired += 1
        self.report.touched += int((new != scores).any(-1).sum())
        return new


def ensembled(scores: Tensor, masked: Tensor, alpha: float, beta: float) -> Tensor:
    """``scores + alpha masked`` where ``scores`` is within ``log beta`` of its row's largest.

    Args:
        scores, masked: ``[batch word]``.
    """
    least = scores.amax(-1, keepdim=True) + (math.log(beta) if beta else -math.inf)
    return (scores + alpha * masked.to(scores)).masked_fill(scores < least, -math.inf)


def most_relevant(
    batch: Batch, tower: str, places: Correspondence, relevance: Tensor, keep: float, label: str
) -> Tensor:
    """Bool ``[position]``: the share of each image (or tile) that is most relevant.

    Positions that stand for no patch are kept and count for nothing.

    Raises:
        InputError: all positions of an image are equally relevant.
    """
    kept = torch.ones(len(relevance), dtype=torch.bool)
    tokens = batch.tokens[tower]
    owner = owners(tokens, places.position)
    for number in owner[places.placed].unique().tolist():
        mine = ((owner == number) & places.placed).nonzero()[:, 0]
        values, count = relevance[mine], budget(keep, len(mine))
        if count < len(mine) and not float(values.max()) > float(values.min()):
            example = batch.examples[int(tokens.example[places.position[mine[0]]])]
            raise InputError(
                f"{label} masks the least relevant parts of an image, and in example "
                f"{example.id!r} all are equally relevant. Choose other layers with `depth`.",
                example_id=example.id,
            )
        kept[mine] = largest(values, count)
    return kept


@dataclass(frozen=True)
class Agla:
    """See the top of this file; made by `agla`."""

    alpha: float
    beta: float
    keep: float
    depth: tuple[float, float]

    @property
    def label(self) -> str:
        return f"agla(alpha={self.alpha:g}, keep={self.keep:g})"

    def on(self, subject: Subject) -> Prepared:
        """What masks the images, and the processor of logits."""
        tower = reading_tower(subject, "agla")
        state = AglaState(self, subject, sites_within(tower, self.depth))
        return Prepared(before=state.before, logits=state.logits)


def agla(
    alpha: float = 2.0,
    beta: float = 0.5,
    keep: float = 0.8,
    depth: tuple[float, float] = MIDDLE,
) -> Agla:
    """Add the logits of an image without its least relevant parts; acts where text is written.

    Args:
        alpha: weight of the masked branch.
        beta: words less than this times as probable as the likeliest one are never written.
        keep: share of each image that stays visible.
        depth: layers, by relative depth, whose attention tells what is relevant.

    >>> agla(keep=0.6).label
    'agla(alpha=2, keep=0.6)'
    """
    if alpha < 0:
        raise ValueError(f"`alpha` of agla must be at least 0, got {alpha:g}.")
    if not 0 <= beta <= 1:
        raise ValueError(f"`beta` of agla must lie between 0 and 1, got {beta:g}.")
    if not 0 < keep <= 1:
        raise ValueError(f"`keep` of agla must lie between 0 and 1, got {keep:g}.")
    return Agla(alpha, beta, keep, depth)
