"""Draws the sampled patterns while a model runs: a listener that keeps pooled images only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from analysis.atlas.chosen_rows import chosen_tiles
from analysis.atlas.pattern_set import PatternSet
from analysis.atlas.pooling import Pooler
from analysis.atlas.sampling import Sampling, rank_of
from analysis.atlas.views import View, find_views
from analysis.plan_cache import PlanCache
from probes.attention_call import AttentionCall
from probes.heads import Site
from probes.layout import SiteLayout

if TYPE_CHECKING:
    import pandas as pd

    from probes.inputs import Batch

_NEVER = "The example did not reach the layer, or was left out."


class _Layout(Protocol):
    def site(self, site: Site) -> SiteLayout: ...


@dataclass
class _Drawn:
    """What one example showed at one site: the part of it with the least rank so far."""

    rank: int
    view: View
    part: int
    heads: list[tuple[int, int]]
    images: Tensor
    mass: Tensor
    empty: Tensor


@dataclass(frozen=True)
class _Choice:
    example: str
    rank: int
    view: View
    part: int
    heads: list[tuple[int, int]]


class PatternCollector:
    """Pools the pattern of every sampled pair of an example and a head.

    Use: ``start_batch(batch)``, run the model with ``listener`` attached, ``finish_batch()``; after
    all batches, ``patterns()``. Memory is ``samples * side * side`` float16 numbers, whatever the
    data; of a call only tiles of the sampled heads are computed. Of an example with several tiles,
    images or windows one is drawn, the same for all heads of a layer, chosen by a keyed hash.

    Args:
        layout: of the subject, to refuse rows that are no distributions; ``None``: not known.
        sampling: the pairs.
        side: of the pooled patterns.
    """

    def __init__(self, layout: _Layout | None, sampling: Sampling, side: int = 64) -> None:
        self.sampling, self.side = sampling, side
        self._layout = layout
        self._images = np.zeros((len(sampling), side, side), dtype=np.float16)
        self._lines: dict[int, tuple[str, int, int, bool, int, float, int]] = {}
        self._reasons: dict[Site, str] = {}
        self._cache: PlanCache | None = None
        self._ids: tuple[str, ...] = ()
        self._clear()

    def start_batch(self, batch: Batch) -> None:
        """Forget what was not finished and expect a plain forward of this batch."""
        self._ids = tuple(example.id for example in batch.examples)
        self._cache = PlanCache(batch.tokens, len(self._ids))
        self._clear()

    def listener(self, call: AttentionCall) -> None:
        """Draw what was sampled of one call. Attach this to the tap.

        Raises:
            RuntimeError: if no batch was started, or the model is writing.
        """
        if self._cache is None:
            raise RuntimeError("A batch must be started before calls arrive. Call start_batch().")
        if call.step or (call.moment is not None and call.moment.generated):
            raise RuntimeError(
                "Patterns must be drawn in a plain forward, got one of a generation. Append the "
                "answer to the prompt and run the model once."
            )
        wanted = self.sampling.of_site(call.site)
        if not any(example in wanted for example in self._ids):
            return
        views = self._views(call)
        if isinstance(views, str):
            self._reasons[call.site] = views
            return
        chosen = self._choose(call.site, views, wanted)
        if chosen:
            self._draw(call, chosen)

    def finish_batch(self) -> int:
        """Keep what the batch showed; returns how many patterns.

        Raises:
            ValueError: a pattern had NaN or infinity; the sentence names the head.
        """
        count = 0
        for (site, _), drawn in self._drawn.items():
            images, mass = drawn.images.cpu().half().numpy(), drawn.mass.cpu()
            view, empty = drawn.view, drawn.empty.tolist()
            shape = view.queries.numel(), view.keys.numel(), view.causal
            for place, (head, number) in enumerate(drawn.heads):
                if not torch.isfinite(mass[place]):
                    raise ValueError(
                        f"The pattern of {site}H{head} must be finite, got NaN or infinity. Check "
                        "the weights, or load the model with dtype='float32'."
                    )
                self._images[number] = images[place]
                kept = (view.kind, *shape, drawn.part, float(mass[place]), empty[place])
                self._lines[number] = kept
                count += 1
        self._clear()
        return count

    def patterns(self, features: Sequence[tuple[pd.DataFrame, pd.DataFrame]] = ()) -> PatternSet:
        """Everything that was drawn, in the order of the sampling.

        Where nothing was, `not_drawn` says why.

        Args:
            features: values and nulls of `sample_features` of each batch, on lines of the sampling.
        """
        import pandas as pd

        numbers = sorted(self._lines)
        names = ["view", "queries", "keys", "causal", "part", "mass", "empty"]
        lines = pd.DataFrame([self._lines[n] for n in numbers], columns=names, index=numbers)
        samples = pd.concat([self.sampling.frame.loc[numbers], lines], axis=1)
        values, nulls = (
            pd.concat([part[kind] for part in features]).reindex(numbers)
            if features
            else pd.DataFrame(index=numbers)
            for kind in (0, 1)
        )
        all_drawn = len(numbers) == len(self.sampling)
        return PatternSet(
            self._images if all_drawn else self._images[numbers],
            samples.reset_index(drop=True),
            values.reset_index(drop=True),
            nulls.reset_index(drop=True),
            self.side,
            self.sampling.seed,
        )

    def not_drawn(self) -> pd.DataFrame:
        """The pairs without a pattern: ``tower layer head example reason``."""
        frame = self.sampling.frame
        rest = frame[~frame.index.isin(list(self._lines))]
        sites = zip(rest["tower"], rest["layer"], strict=True)
        reasons = [self._reasons.get(Site(tower, int(layer)), _NEVER) for tower, layer in sites]
        return rest.assign(reason=reasons).reset_index(drop=True)

    def _clear(self) -> None:
        self._drawn: dict[tuple[Site, str], _Drawn] = {}
        self._parts: dict[tuple[Site, int], int] = defaultdict(int)

    def _views(self, call: AttentionCall) -> list[View] | str:
        assert self._cache is not None
        place = None if self._layout is None else self._layout.site(call.site)
        if place is not None and place.row_sums == "any":
            return (
                f"The heads of {call.site.tower} are mixed after the softmax, so rows of a pattern "
                "are no distributions and no pattern is drawn there."
            )
        plan, _ = self._cache.find(call)
        if isinstance(plan, str):
            return plan
        cross = place is not None and place.cross
        return plan.memo(("views", cross), lambda: find_views(plan, cross=cross))

    def _choose(
        self, site: Site, views: Sequence[View], wanted: Mapping[str, list[tuple[int, int]]]
    ) -> list[_Choice]:
        """The part of each sampled example that comes first by rank, if not drawn before."""
        best: dict[str, _Choice] = {}
        for view in views:
            part = self._parts[site, view.example]
            self._parts[site, view.example] += 1
            example = self._ids[view.example]
            heads = wanted.get(example)
            if not heads:
                continue
            rank = rank_of(self.sampling.seed, "part", example, part)
            known = best.get(example) or self._drawn.get((site, example))
            if known is None or rank < known.rank:
                best[example] = _Choice(example, rank, view, part, heads)
        return list(best.values())

    def _draw(self, call: AttentionCall, chosen: Sequence[_Choice]) -> None:
        by_row: dict[int, list[tuple[_Choice, Pooler]]] = defaultdict(list)
        heads: dict[int, list[int]] = {}
        for choice in chosen:
            view, count = choice.view, len(choice.heads)
            sizes = view.queries.numel(), view.keys.numel()
            pooler = Pooler(count, *sizes, self.side, call.device)
            by_row[view.row].append((choice, pooler))
            known = heads.setdefault(view.row, [])
            known += [head for head, _ in choice.heads if head not in known]
        for row, rows, pattern in chosen_tiles(call, heads):
            for choice, pooler in by_row[row]:
                mine = [heads[row].index(head) for head, _ in choice.heads]
                part = pattern if mine == list(range(len(pattern))) else pattern[mine]
                _pool_part(pooler, choice.view, part, rows)
        for choice, pooler in (pair for pairs in by_row.values() for pair in pairs):
            self._drawn[call.site, choice.example] = _Drawn(
                choice.rank, choice.view, choice.part, choice.heads,
                pooler.images, pooler.mass, pooler.empty,
            )  # fmt: skip


def _pool_part(pooler: Pooler, view: View, part: Tensor, rows: slice) -> None:
    drawn = ((view.queries >= rows.start) & (view.queries < rows.stop)).nonzero().flatten()
    keys = (view.keys < part.shape[-1]).nonzero().flatten()
    if drawn.numel():
        part = _taken(part, 1, view.queries[drawn] - rows.start)
        pooler.add(_taken(part, 2, view.keys[keys]), drawn, keys)


def _taken(part: Tensor, dim: int, places: Tensor) -> Tensor:
    """Some rows or keys; without a copy where they follow one another."""
    count = places.numel()
    if count and torch.equal(places, torch.arange(int(places[0]), int(places[0]) + count)):
        return part.narrow(dim, int(places[0]), count)
    return part.index_select(dim, places.to(part.device))
