"""Which tokens of a stream are sinks: by phi where text is read, by norm among patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from analysis.sinks.artefacts import artefacts, in_last_third
from analysis.sinks.head_columns import SinkKeys
from analysis.sinks.phi import phi, tau_for
from analysis.sinks.places import behind_image, sequence_rank
from analysis.sinks.streams import Stream
from probes.tokens.map import ROLES

_IMAGE = ROLES.index("image")


@dataclass(frozen=True)
class Found:
    """The sinks of one stream.

    Attributes:
        kinds: bool ``[batch position]``: ``text`` and ``visual``, or ``artefact``.
        scores: float ``[batch position]``: phi, or the norm over the median of the image.
        norms: float ``[batch position]``, in towers of patches.
    """

    stream: Stream
    kinds: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]
    norms: Tensor | None = None

    @property
    def any(self) -> bool:
        return any(bool(found.any()) for found in self.kinds.values())

    def keys(self) -> SinkKeys:
        """The same as keys of the block's attention, and the queries that are asked about them.

        Those behind the image where there is one, else all but the first of the sequence; in
        towers of patches all.
        """
        stream = self.stream
        tokens, index = stream.tokens, stream.index
        image = torch.zeros_like(stream.example, dtype=torch.bool)
        behind = torch.zeros_like(image)
        asked = stream.example
        if tokens is not None and index is not None:
            image = tokens.role[index] == _IMAGE
            if "artefact" not in self.kinds:
                behind = behind_image(tokens)[index]
                pictured = torch.isin(stream.example, stream.example[image])
                wanted = torch.where(pictured, behind, sequence_rank(tokens)[index] > 0)
                asked = asked.masked_fill(~wanted, -1)
        real = stream.example >= 0
        others = {}
        for kind, found in self.kinds.items():
            same = real & (~image if kind == "text" else image)
            others[kind] = same & ~found
        return SinkKeys(self.kinds, others, image, stream.example, asked, behind)


@dataclass(frozen=True)
class SinkFinder:
    """What counts as a sink.

    Attributes:
        layers: number of blocks of each tower.
        tower: the one that reads and writes text, empty if there is none.
        dimensions: D_sink of that tower; without any there are no text and visual sinks.
        tau: threshold of phi; by default as `analysis.sinks.phi.default_tau` has it.
    """

    layers: Mapping[str, int] = field(default_factory=dict)
    tower: str = ""
    dimensions: tuple[int, ...] = ()
    tau: float | None = None

    def find(self, stream: Stream) -> Found | None:
        """The sinks of a stream; None where none are looked for."""
        if stream.tower == self.tower:
            return self._by_phi(stream) if self.dimensions else None
        tokens, index = stream.tokens, stream.index
        if tokens is None or index is None or not self._has_grid(stream):
            return None
        return self._by_norm(stream)

    def _by_phi(self, stream: Stream) -> Found:
        score = phi(stream.x, self.dimensions).cpu()
        real = stream.example >= 0
        drawn = (score > tau_for(stream.x.shape[-1], self.tau)) & real
        if stream.tokens is None or stream.index is None:
            return Found(stream, {"text": drawn}, {"text": score})
        image = stream.tokens.role[stream.index] == _IMAGE
        kinds = {"text": drawn & ~image, "visual": drawn & image}
        return Found(stream, kinds, dict.fromkeys(kinds, score))

    def _has_grid(self, stream: Stream) -> bool:
        assert stream.tokens is not None
        patches = (stream.tokens.role == _IMAGE) & (stream.tokens.row >= 0)
        return bool(patches.any()) and in_last_third(stream.depth, self.layers[stream.tower])

    def _by_norm(self, stream: Stream) -> Found:
        tokens, index = stream.tokens, stream.index
        assert tokens is not None and index is not None
        norms = torch.linalg.vector_norm(stream.x.float(), dim=-1).cpu()
        drawn, relative = torch.zeros_like(norms, dtype=torch.bool), torch.zeros_like(norms)
        patches = (tokens.role[index] == _IMAGE) & (stream.example >= 0)
        owner = stream.example * (int(tokens.image.max()) + 1) + tokens.image[index]
        for picture in owner[patches].unique().tolist():
            mine = patches & (owner == picture)
            drawn[mine] = artefacts(norms[mine])
            relative[mine] = norms[mine] / norms[mine].quantile(0.5).clamp_min(1e-30)
        return Found(stream, {"artefact": drawn}, {"artefact": relative}, norms)
