"""Tables of the tokens that are sinks: text and visual sinks by phi, artefact patches by norm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from analysis.sinks.artefacts import NORMAL_BIMODALITY, bimodality, normal_share
from analysis.sinks.places import Place, Places
from analysis.sinks.ratios import Ratios
from analysis.sinks.received import Received
from analysis.sinks.streams import Stream
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    import pandas as pd

    from probes.inputs import Batch

Spot = tuple[str, int, str, Place]
"""Tower, depth, kind and place."""
_SHOWN = 20
"""Places that the table keeps of each layer and kind, those that are sinks most often first."""


@dataclass
class SinkTable:
    """Where sinks are, how strong, how often, and how much weight they receive."""

    seed: int = 0
    _sums: Ratios = field(init=False)
    _spots: dict[tuple[str, int, str], Counter[Spot]] = field(default_factory=dict)
    _seen: dict[tuple[str, int, str], list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sums = Ratios(self.seed)

    def count(
        self,
        batch: Batch,
        stream: Stream,
        kinds: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        got: Received | None,
    ) -> None:
        """Add the sinks of a stream.

        Args:
            kinds: bool ``[batch position]`` by kind.
            scores: float ``[batch position]`` by kind: phi, or the norm over the image's median.
            got: weight that the keys of the block's attention receive, if it was measured.
        """
        places = Places(stream.tokens)
        for kind, found in kinds.items():
            layer = stream.tower, stream.depth, kind
            here = stream.example[stream.example >= 0].unique().tolist()
            self._seen.setdefault(layer, []).extend(batch.examples[e].id for e in here)
            for row, position in found.nonzero().tolist():
                example = int(stream.example[row, position])
                if example < 0:
                    continue
                name = batch.examples[example].id
                flat = None if stream.index is None else int(stream.index[row, position])
                spot: Spot = (*layer, places.of(flat))
                self._spots.setdefault(layer, Counter())[spot] += 1
                self._sums.add(("score", spot), name, float(scores[kind][row, position]))
                if got is not None:
                    mean = float(got.mean[row, :, position].mean())
                    self._sums.add(("received", spot), name, mean)
                    self._sums.add(("largest", spot), name, float(got.mean[row, :, position].max()))
                    self._sums.add(("null", spot), name, float(got.null[row, position]))

    def frame(self) -> pd.DataFrame:
        """One line per tower, layer, kind and place, those that are sinks most often first.

        ``share``: of the examples, with interval. ``score``: phi for text and visual sinks, norm
        over the median of the image's patches for artefacts. ``received``: mean weight from the
        positions that may read it, over heads; ``received_largest``: in the head that gives it
        most; ``received_null``: under uniform patterns.
        """
        import pandas as pd

        shown = {layer: spots.most_common(_SHOWN) for layer, spots in self._spots.items()}
        for layer, spots in shown.items():
            examples = set(self._seen[layer])
            for spot, _ in spots:
                sinks = self._sums.examples(("score", spot))
                for name in examples:
                    self._sums.add(("share", spot), name, float(name in sinks))
        found = self._sums.results(_wanted(shown))
        lines: list[dict[str, Any]] = []
        for layer in sorted(shown):
            for spot, _ in shown[layer]:
                tower, depth, kind, place = spot
                lines.append(
                    {
                        "tower": tower,
                        "layer": depth,
                        "kind": kind,
                        **place._asdict(),
                        **found["share", spot].columns("share"),
                        **found["score", spot].columns("score"),
                        **found["received", spot].columns("received"),
                        "received_null": found["null", spot].value,
                        "received_largest": found["largest", spot].value,
                        "n": found["share", spot].n,
                    }
                )
        return pd.DataFrame(lines)


def _wanted(shown: Mapping[Any, list[tuple[Spot, int]]]) -> Iterator[tuple[str, Spot]]:
    for spots in shown.values():
        for spot, _ in spots:
            for what in ("share", "score", "received", "null", "largest"):
                yield what, spot


@dataclass
class PatchNorms:
    """Norms of the residual stream at patches, CLS and registers of a vision tower."""

    seed: int = 0
    _sums: Ratios = field(init=False)
    _lines: dict[tuple[str, int, str], None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._sums = Ratios(self.seed)

    def count(self, batch: Batch, stream: Stream, norms: Tensor, artefact: Tensor) -> None:
        """Add a stream; ``norms`` and ``artefact`` are ``[batch position]``."""
        assert stream.tokens is not None and stream.index is not None
        role, image = stream.tokens.role[stream.index], stream.tokens.image[stream.index]
        for example in stream.example[stream.example >= 0].unique().tolist():
            name = batch.examples[example].id
            own = stream.example == example
            patches = own & (role == ROLES.index("image"))
            for picture in image[patches].unique().tolist():
                mine = patches & (image == picture)
                size = norms[mine]
                key = (stream.tower, stream.depth, "image")
                self._add(key, name, float(size.quantile(0.5)))
                self._sums.add(("artefacts", key), name, int(artefact[mine].sum()), len(size))
                both = bimodality(size)
                if both == both:
                    self._sums.add(("bimodality", key), name, both)
            for other in ("cls", "register"):
                some = norms[own & (role == ROLES.index(other))]
                if len(some):
                    self._add((stream.tower, stream.depth, other), name, float(some.mean()))

    def _add(self, key: tuple[str, int, str], name: str, norm: float) -> None:
        self._lines[key] = None
        self._sums.add(("norm", key), name, norm)

    def frame(self) -> pd.DataFrame:
        """One line per tower, layer and role.

        ``norm``: median over an image's patches, or mean over CLS or registers. ``artefacts``:
        share of patches, null for a normal distribution of norms. ``bimodality``: Sarle's
        coefficient of an image's patches, 1/3 for a normal distribution.
        """
        import pandas as pd

        found = self._sums.results()
        lines = []
        for key in self._lines:
            line = {"tower": key[0], "layer": key[1], "role": key[2]}
            line |= found["norm", key].columns("norm")
            if key[2] == "image":
                line |= found["artefacts", key].columns("artefacts")
                line["artefacts_null"] = normal_share()
                both = found.get(("bimodality", key))
                line |= {} if both is None else both.columns("bimodality")
                line["bimodality_null"] = NORMAL_BIMODALITY
            lines.append({**line, "n": found["norm", key].n})
        return pd.DataFrame(lines)
