"""What heads do with sinks, per head and example: weight, value and key norms, image-centricity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.score_sheet import per_example
from analysis.scores import BatchScores, Column
from probes.attention_call import AttentionCall
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch

VISUAL_MASS = 0.2
"""Least weight on the image of an image-centric head (Kang et al., 2025)."""
NON_SINK_RATIO = 0.5
"""Least share of that on patches that are no sinks: rho for hallucination in the same paper."""


@dataclass
class SinkKeys:
    """The keys of one call that are sinks, and the queries that are asked about them.

    Attributes:
        kinds: bool ``[batch key]`` by kind: ``text``, ``visual``, ``artefact``, ``register``.
        others: bool ``[batch key]`` by kind: keys of the same sort that are no sinks.
        image: bool ``[batch key]``: positions of the image, where visual sinks are looked for.
        key_example: long ``[batch key]``, -1 for padding.
        example: long ``[batch query]``, -1 for queries that are not asked.
        behind: bool ``[batch query]``: queries behind the image.
    """

    kinds: Mapping[str, Tensor]
    others: Mapping[str, Tensor]
    image: Tensor | None
    key_example: Tensor
    example: Tensor
    behind: Tensor

    def asked(self, kind: str, *, behind: bool = False) -> Tensor:
        """Long ``[batch query]``: as `example`, -1 also where the example has no such sink."""
        having = self.key_example[self.kinds[kind] & (self.key_example >= 0)]
        left_out = ~torch.isin(self.example, having)
        return self.example.masked_fill(left_out | ~self.behind if behind else left_out, -1)


@dataclass
class HeadColumns:
    """Collects the columns of a batch: `score` is called with every attention call."""

    batch: Batch
    rho: float = NON_SINK_RATIO
    least_mass: float = VISUAL_MASS
    _columns: list[Column] = field(default_factory=list)
    _sums: list[tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=list)

    def score(self, call: AttentionCall, keys: SinkKeys) -> None:
        """Add the columns of one call."""
        kinds = {name: found for name, found in keys.kinds.items() if bool(found.any())}
        if not kinds:
            return
        features = [*kinds.values()]
        if "visual" in kinds and keys.image is not None:
            features.append(keys.image & ~kinds["visual"])
        masses, uniform = _masses(call, torch.stack(features, dim=-1).float())
        for place, (name, found) in enumerate(kinds.items()):
            asked = keys.asked(name)
            mass, null = masses[..., place], uniform[..., place]
            self._mean(call.site, "sink_mass", name, mass, null, asked)
            for measure, vectors in (("sink_value_norm", call.value), ("sink_key_norm", call.key)):
                if vectors is not None:
                    self._norms(call, measure, name, vectors, found, keys)
        if len(features) > len(kinds):
            self._image_centric(call.site, masses, uniform, list(kinds).index("visual"), keys)

    def _image_centric(
        self, site: Site, masses: Tensor, uniform: Tensor, visual: int, keys: SinkKeys
    ) -> None:
        """Visual non-sink ratio r, and the share of queries at which a head is image-centric."""
        asked = keys.asked("visual", behind=True)
        # Behind a window that ends before the image there is nothing to take a share of.
        blind = (uniform[..., visual] + uniform[..., -1] == 0).cpu()
        asked = asked.masked_fill(blind, -1)
        both = []
        for mass in (masses, uniform):
            seen = mass[..., visual] + mass[..., -1]
            ratio = torch.where(seen > 0, mass[..., -1] / seen.clamp_min(1e-30), 0.0)
            both.append((ratio, ((seen >= self.least_mass) & (ratio >= self.rho)).float()))
        (ratio, centric), (ratio_null, centric_null) = both
        self._mean(site, "non_sink_ratio", "", ratio, ratio_null, asked)
        variant = f"mass={self.least_mass:g},rho={self.rho:g}"
        self._mean(site, "image_centric", variant, centric, centric_null, asked)

    def _mean(
        self,
        site: Site,
        measure: str,
        variant: str,
        values: Tensor,
        null: Tensor,
        asked: Tensor,
    ) -> None:
        """A mean of ``values [batch head query]``, null ``[batch query]``.

        ``asked`` is long ``[batch query]``: the example of each query that counts, else -1.
        """

        def summed(rows: Tensor) -> Tensor:
            return per_example(rows.transpose(1, 2), asked, self.batch.size)

        total, count = summed(values), summed(torch.ones_like(null)[:, None])
        heads = values.shape[1]
        self._add(
            site, measure, variant, "share", total, count.expand(-1, heads),
            summed(null[:, None]).expand(-1, heads), count.expand(-1, heads),
        )  # fmt: skip

    def _norms(
        self,
        call: AttentionCall,
        measure: str,
        variant: str,
        vectors: Tensor,
        found: Tensor,
        keys: SinkKeys,
    ) -> None:
        """Mean norm at sinks over that at other keys of their sort; null: as many others."""
        size = torch.linalg.vector_norm(vectors.float(), dim=-1)  # [batch kv_head key]
        size = size.repeat_interleave(call.heads // size.shape[1], dim=1)
        flat = size.transpose(1, 2).flatten(0, 1).double().cpu()  # [place head]
        owner = keys.key_example.flatten()
        sums = torch.zeros(4, self.batch.size, call.heads, dtype=torch.float64)
        for example in owner[found.flatten() & (owner >= 0)].unique().tolist():
            mine = (found.flatten() & (owner == example)).nonzero()[:, 0]
            other = (keys.others[variant].flatten() & (owner == example)).nonzero()[:, 0]
            if not len(other):
                continue
            name = f"{self.batch.examples[example].id}\0{call.site}\0{variant}"
            drawn = other[_draw(name, len(other), len(mine))]
            means = [flat[some].mean(0) for some in (mine, other, drawn)]
            sums[:, example] += torch.stack([means[0], means[1], means[2], means[1]])
        self._add(call.site, measure, variant, "ratio", *sums)

    def _add(self, site: Site, measure: str, variant: str, unit: str, *sums: Tensor) -> None:
        heads = sums[0].shape[1]
        self._columns += [
            Column(site.tower, site.layer, head, measure, variant, unit) for head in range(heads)
        ]
        numerator, denominator, null, null_denominator = (part.double().cpu() for part in sums)
        self._sums.append((numerator, denominator, null, null_denominator))

    def scores(self, reasons: Mapping[tuple[str, str], str]) -> BatchScores:
        """Everything added, and why something was not measured."""
        ids = tuple(example.id for example in self.batch.examples)
        if not self._columns:
            return BatchScores.nothing(ids, reasons)
        numerator, denominator, null, null_denominator = (
            torch.cat([one[index] for one in self._sums], dim=1) for index in range(4)
        )
        measured = {(column.tower, column.measure) for column in self._columns}
        left = {key: why for key, why in reasons.items() if key not in measured}
        return BatchScores(
            tuple(self._columns), numerator, denominator, null, null_denominator,
            examples=ids, reasons=left,
        )  # fmt: skip


def _masses(call: AttentionCall, features: Tensor) -> tuple[Tensor, Tensor]:
    """Float32 ``[batch head query feature]``; of the uniform pattern ``[batch query feature]``.

    Args:
        features: float ``[batch key feature]``.
    """
    features = features.to(call.device)
    count = features.shape[-1]
    masses = torch.zeros(call.batch, call.heads, call.queries, count, device=call.device)
    uniform = torch.zeros(call.batch, call.queries, count, device=call.device)
    for tile in call.tiles():
        chosen = features[tile.batch, : tile.keys]
        masses[tile.batch, :, tile.rows] = tile.pattern @ chosen[:, None]
        allowed = tile.allowed().any(1).to(features)
        share = allowed / allowed.sum(-1, keepdim=True).clamp_min(1)
        uniform[tile.batch, tile.rows] = share @ chosen
    return masses, uniform


def _draw(name: str, count: int, wanted: int) -> Tensor:
    """Long ``[wanted or count]``: which of so many, a function of the name alone."""
    seed = int.from_bytes(blake2b(name.encode(), digest_size=7).digest(), "little")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:wanted]
