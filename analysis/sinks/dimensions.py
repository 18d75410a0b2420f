"""The dimensions in which sinks are massive, found and not listed: D_sink.

The rule. In the middle half of the layers take the tokens that are sinks by position or by
attention: the first one of each sequence, and every key that some head gives more than ``eps`` of
the weight of all who may read it. A dimension is massive at a token if ``|x[d]|`` is at least
``ratio`` times the median |x| of the hidden state and within a factor 4 of the token's own largest.
D_sink holds the dimensions that are massive at half or more of the first tokens, or of the other
sinks, that are massive at all, and whose |x|/RMS is, where it is massive, at least 4 times what it
is at tokens that are no sinks: a dimension that is large at every token marks none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.sinks.published import Published, published_for
from analysis.sinks.received import received
from analysis.sinks.streams import Stream, listening_to_streams
from probes.attention_call import AttentionCall
from probes.depth import refuse_unknown_streams, sites_within, writing_tower
from probes.heads import Site
from probes.listening import attach
from probes.tap import Attached
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    import pandas as pd

    from probes.inputs import Batch
    from probes.subject import Subject

MIDDLE = (0.25, 0.75)
EPSILON = 0.3
RATIO = 100.0
"""Of |x| to the median |x|. Sun et al. take 1,000, which does not carry over to small models."""
_WITHIN = 4.0
_SHARE = 0.5
_RANKED = 10
_PAD = ROLES.index("pad")


@dataclass(frozen=True)
class SinkDimensions:
    """What was found of the dimensions of sinks.

    Attributes:
        dimensions: D_sink, ascending; empty if no token is massive in any.
        ranking: the ten dimensions that stand out most: ``dimension first other elsewhere``
            (mean |x|/RMS at the first token, at other sinks, at all other tokens),
            ``massive_first massive_other`` (share of tokens at which it is massive), ``chosen``.
        width: of the residual stream.
        n: sequences that were looked at.
        published: constants of a model of this shape, if there are any: a check.
    """

    tower: str
    dimensions: tuple[int, ...]
    ranking: pd.DataFrame
    width: int
    n: int
    published: Published | None = None

    @property
    def sentence(self) -> str:
        """What was found, in a sentence or two."""
        if not self.dimensions:
            said = f"No dimension of {self.tower} is massive at a sink."
        else:
            named = ", ".join(map(str, self.dimensions))
            said = f"Sinks of {self.tower} are massive in dimensions {named} of {self.width}."
        if self.published is None:
            return said
        listed = ", ".join(map(str, self.published.dimensions))
        word = "the same as" if self.dimensions == self.published.dimensions else "not those"
        return f"{said} They are {word} published for {self.published.name} ({listed})."


def sink_dimensions(
    subject: Subject,
    batches: Batch | Iterable[Batch],
    *,
    eps: float = EPSILON,
    ratio: float = RATIO,
) -> SinkDimensions:
    """D_sink of a model that reads or writes text, by the rule at the top of this file.

    One forward per batch; a few prompts are enough, since the dimensions are the model's.

    Args:
        eps: mean weight above which a key is a sink (Gu et al., ICLR 2025, take 0.3).
        ratio: of a massive |x| to the median |x|.

    Raises:
        ValueError: the model has no such tower, its residual stream is not known, or there is no
            batch.
    """
    from probes.inputs import Batch

    tower = writing_tower(subject)
    sites = sites_within(tower, MIDDLE)
    refuse_unknown_streams(subject, sites)
    votes = _Votes(eps, ratio)
    for batch in [batches] if isinstance(batches, Batch) else batches:
        votes.look(subject, batch, sites)
    if not votes.width:
        raise ValueError(
            f"Sink dimensions of {subject.name!r} must be looked for on at least one batch, "
            "got none. Give a few prompts."
        )
    return votes.result(tower.name, published_for(subject))


@dataclass
class _Votes:
    """Sums over tokens and middle layers, float64 ``[kind dimension]``: first, other, elsewhere.

    Attributes:
        massive: at how many tokens a dimension is massive.
        relative: |x| / RMS; ``at_massive``: the same over the tokens at which it is massive.
        tokens, massive_tokens: ``[kind 1]``: how many there are, and how many massive ones.
    """

    eps: float
    ratio: float
    width: int = 0
    n: int = 0
    massive: Tensor = field(default_factory=lambda: torch.zeros(0))
    relative: Tensor = field(default_factory=lambda: torch.zeros(0))
    at_massive: Tensor = field(default_factory=lambda: torch.zeros(0))
    tokens: Tensor = field(default_factory=lambda: torch.zeros(3, 1, dtype=torch.float64))
    massive_tokens: Tensor = field(default_factory=lambda: torch.zeros(3, 1, dtype=torch.float64))

    def look(self, subject: Subject, batch: Batch, sites: list[Site]) -> None:
        streams: dict[Site, Stream] = {}

        def hear(stream: Stream) -> None:
            streams[Site(stream.tower, stream.depth)] = stream

        def on_call(call: AttentionCall) -> None:
            stream = streams.pop(call.site, None)
            if stream is not None and stream.x.shape[1] == call.keys:
                self._count(stream, _drawing(call, stream, self.eps))

        with (
            attach(subject, Attached(frozenset(sites), on_call=on_call)),
            listening_to_streams(subject, batch, hear, sites),
        ):
            subject.forward(batch)
        self.n += batch.size

    def _count(self, stream: Stream, drawing: Tensor) -> None:
        """Add a hidden state; ``drawing`` is bool ``[batch key]``."""
        width = stream.x.shape[-1]
        if not self.width:
            self.width = width
            shape = 3, 3, width
            self.massive, self.relative, self.at_massive = torch.zeros(shape, dtype=torch.float64)
        owner, flat = stream.example.flatten(), stream.x.reshape(-1, width)
        for example in owner[owner >= 0].unique().tolist():
            mine = (owner == example).nonzero()[:, 0]
            x = flat[mine.to(flat.device)].float()
            kinds = torch.full((len(mine),), 2)
            kinds[drawing.flatten()[mine]] = 1
            kinds[0] = 0
            size = x.abs()
            large = (size >= self.ratio * size.median()) & (
                size >= size.amax(-1, keepdim=True) / _WITHIN
            )
            root = x.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-30)
            for target, value in (
                (self.massive, large),
                (self.relative, size / root),
                (self.at_massive, size / root * large),
            ):
                target.index_add_(0, kinds, value.double().cpu())
            self.tokens += torch.bincount(kinds, minlength=3)[:, None]
            some = kinds[large.any(-1).cpu()]
            self.massive_tokens += torch.bincount(some, minlength=3)[:, None]

    def result(self, tower: str, published: Published | None) -> SinkDimensions:
        import pandas as pd

        count = self.tokens.clamp_min(1)
        massive, relative = self.massive / count, self.relative / count
        chosen = torch.zeros(self.width, dtype=torch.bool)
        for kind in (0, 1):
            there = self.at_massive[kind] / self.massive[kind].clamp_min(1)
            apart = there >= _WITHIN * relative[2]
            often = self.massive[kind] >= _SHARE * self.massive_tokens[kind].clamp_min(1)
            chosen |= often & apart
        contrast = relative[:2].amax(0) - relative[2]
        order = contrast.argsort(descending=True)[:_RANKED]
        known = torch.where(self.tokens > 0, relative, torch.nan)
        shares = torch.where(self.tokens > 0, massive, torch.nan)
        ranking = pd.DataFrame(
            {
                "dimension": order.numpy(),
                "first": known[0, order].numpy(),
                "other": known[1, order].numpy(),
                "elsewhere": known[2, order].numpy(),
                "massive_first": shares[0, order].numpy(),
                "massive_other": shares[1, order].numpy(),
                "chosen": chosen[order].numpy(),
            }
        )
        found = tuple(chosen.nonzero()[:, 0].tolist())
        return SinkDimensions(tower, found, ranking, self.width, self.n, published)


def _drawing(call: AttentionCall, stream: Stream, eps: float) -> Tensor:
    """Bool ``[batch key]``: keys that some head gives more than ``eps``."""
    got = received(call, stream.example >= 0)
    drawn = (got.mean > eps).any(1) & got.judged
    return drawn.cpu()
