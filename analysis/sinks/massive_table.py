"""Tables of massive activations: per layer, and per place and dimension."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from analysis.sinks.massive import TOP, LargestEntries, largest_entries, normal_ratio
from analysis.sinks.places import Place, Places
from analysis.sinks.ratios import Ratios
from analysis.sinks.streams import Stream
from probes.tokens.map import TowerTokens

if TYPE_CHECKING:
    import pandas as pd

    from probes.inputs import Batch

Layer = tuple[str, int]
Entry = tuple[str, int, int, Place]
"""Tower, depth, dimension and place."""
_SHOWN = 12
"""Entries that the table keeps of each layer."""
_OF_LAYER = ("ratio", "median", "robust_z", "normal", "published")


@dataclass
class MassiveTable:
    """The largest entries of every example's hidden states, layer by layer.

    A hidden state is the residual stream of one example as it enters a block (``layer``), and as it
    leaves the last one (``layer`` = number of blocks). Padding is left out.
    """

    seed: int = 0
    _sums: Ratios = field(init=False)
    _entries: dict[Layer, Counter[Entry]] = field(default_factory=dict)
    _first: dict[Layer, Counter[Entry]] = field(default_factory=dict)
    _examples: Counter[Layer] = field(default_factory=Counter)
    _places: tuple[TowerTokens | None, Places] = (None, Places(None))

    def __post_init__(self) -> None:
        self._sums = Ratios(self.seed)

    def hear(self, batch: Batch, stream: Stream) -> None:
        """Count a stream.

        Raises:
            ValueError: it holds NaN or infinity.
        """
        layer = stream.tower, stream.depth
        if stream.tokens is not self._places[0]:
            self._places = stream.tokens, Places(stream.tokens)
        for example, x, index in stream.of_examples():
            found = largest_entries(x)
            name = batch.examples[example].id
            self._examples[layer] += 1
            self._count_layer(layer, name, found)
            for order, (place, dimension) in enumerate(
                zip(found.position.tolist(), found.dimension.tolist(), strict=True)
            ):
                flat = None if index is None else int(index[place])
                entry = (*layer, dimension, self._places[1].of(flat))
                self._entries.setdefault(layer, Counter())[entry] += 1
                if order == 0:
                    self._first.setdefault(layer, Counter())[entry] += 1
                self._sums.add(("entry", "value", entry), name, float(found.value[order]))
                self._sums.add(("entry", "ratio", entry), name, float(found.ratio[order]))

    def _count_layer(self, layer: Layer, name: str, found: LargestEntries) -> None:
        sizes = found.value.abs().tolist()
        for order in range(TOP):
            size = sizes[order] if order < len(sizes) else float("nan")
            self._sums.add(("size", order, layer), name, size)
        values = (
            float(found.ratio[0]),
            found.median,
            float(found.robust_z[0]),
            normal_ratio(found.entries),
            float(found.published[0]),
        )
        for what, value in zip(_OF_LAYER, values, strict=True):
            self._sums.add((what, layer), name, value)

    def frames(self) -> dict[str, pd.DataFrame]:
        """``massive``: a line per layer. ``massive_entries``: a line per place and dimension."""
        import pandas as pd

        shown = {layer: self._entries[layer].most_common(_SHOWN) for layer in self._examples}
        found = self._sums.results(self._wanted(shown))
        layers, entries = [], []
        for layer, count in self._examples.items():
            first, times = self._first[layer].most_common(1)[0]
            layers.append(
                {
                    "tower": layer[0],
                    "layer": layer[1],
                    **found["size", 0, layer].columns("largest"),
                    "second": found["size", 1, layer].value,
                    "third": found["size", 2, layer].value,
                    "median": found["median", layer].value,
                    **found["ratio", layer].columns("ratio"),
                    "ratio_null": found["normal", layer].value,
                    "robust_z": found["robust_z", layer].value,
                    "published": found["published", layer].value,
                    **_described(first),
                    "share": times / count,
                    "n": count,
                }
            )
            for entry, times in shown[layer]:
                entries.append(
                    {
                        "tower": layer[0],
                        "layer": layer[1],
                        **_described(entry),
                        **found["entry", "value", entry].columns("value"),
                        **found["entry", "ratio", entry].columns("ratio"),
                        "ratio_null": found["normal", layer].value,
                        "share": times / count,
                        "n": found["entry", "value", entry].n,
                    }
                )
        return {"massive": pd.DataFrame(layers), "massive_entries": pd.DataFrame(entries)}

    def _wanted(self, shown: dict[Layer, list[tuple[Entry, int]]]) -> Iterator[tuple[Any, ...]]:
        for layer, entries in shown.items():
            yield from (("size", order, layer) for order in range(TOP))
            yield from ((what, layer) for what in _OF_LAYER)
            for entry, _ in entries:
                yield from (("entry", what, entry) for what in ("value", "ratio"))


def _described(entry: Entry) -> dict[str, Any]:
    return {"dimension": entry[2], **entry[3]._asdict()}
