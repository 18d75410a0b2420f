"""Prefixes in natural text: what happens to heads and features if the token before last is another.

Where a head attends strongly from a query to a source, the tokens before the source may be those
up to the query: the prefix that induction needs. Replacing the second of them (two before the
source) leaves a prefix of one. A head for which one match is enough goes on as before; a
long-prefix head does not (Kissane et al. 2024, arXiv 2406.17759). For a feature the source is that
with the largest direct attribution, and its strength is compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.heads import Head, Site, select_heads
from probes.listening import attach, listen
from probes.tap import Attached
from sae.coders.coder import Coder
from sae.reading.direct_attribution import attributed
from sae.reading.latent_reading import chosen_latents, site_of, strengths_at
from sae.reading.pattern_rows import pattern_row
from sae.reading.prefix_pairs import Pair, PairSearch

if TYPE_CHECKING:
    import pandas as pd

    from probes.inputs import Batch
    from probes.subject import Subject

LEAST_ATTENTION = 0.3
MOST_PAIRS = 50


@dataclass(frozen=True)
class PrefixReplacement:
    """Attention of heads, or strength of features, before and after the replacement.

    Attributes:
        pairs: each with its value after the replacement.
    """

    pairs: tuple[tuple[Pair, float], ...] = field(repr=False)

    def frame(self) -> pd.DataFrame:
        """One line per reader and matched length: ``reader matched n before after``, means."""
        import pandas as pd

        lines = [
            {"reader": pair.reader, "matched": pair.matched, "before": pair.before, "after": after}
            for pair, after in self.pairs
        ]
        columns = ["reader", "matched", "n", "before", "after"]
        if not lines:
            return pd.DataFrame(columns=columns)
        groups = pd.DataFrame(lines).groupby(["reader", "matched"], sort=True)
        found = groups[["before", "after"]].mean()
        found.insert(0, "n", groups.size())
        return found.reset_index()[columns]


def replaced_before_heads(
    subject: Subject,
    batches: Iterable[Batch],
    heads: Any = "language.*",
    *,
    least_attention: float = LEAST_ATTENTION,
    most_pairs: int = MOST_PAIRS,
    words: Tensor | None = None,
    seed: int = 0,
) -> PrefixReplacement:
    """Attention to the source before and after the second token of the prefix was replaced.

    Pairs whose attention is at least ``least_attention`` and whose source is neither BOS nor among
    the first two tokens; the first ``most_pairs`` of each head and matched length, in the order of
    the data.

    Args:
        batches: of text, without images.
        words: what the new token is drawn from; by default every word that is not special.

    Raises:
        InputError: a batch is not text alone.
    """
    chosen = select_heads(heads, subject.towers)
    sites = list(dict.fromkeys(head.site for head in chosen))
    search = PairSearch(subject, words, most_pairs, seed)
    for batch in batches:
        search.begin(batch)
        pairs: list[Pair] = []

        def hear(call: AttentionCall, pairs: list[Pair] = pairs) -> None:
            here = [head for head in chosen if head.site == call.site]
            for tile in call.tiles():
                strong = tile.pattern[:, [head.head for head in here]] >= least_attention
                for row, number, query, source in strong.nonzero().tolist():
                    place = (row + tile.batch.start, query + tile.rows.start, source)
                    value = float(tile.pattern[row, here[number].head, query, source])
                    pairs += search.pair(str(here[number]), *place, value)

        with listen(subject, batch, hear, sites):
            subject.forward(batch)
        search.replace(pairs, lambda some, changed: _attention(subject, changed, some))
    return PrefixReplacement(tuple(search.found))


def replaced_before_features(
    subject: Subject,
    batches: Iterable[Batch],
    coder: Coder,
    site: Site | str,
    latents: int | Sequence[int],
    *,
    most_pairs: int = MOST_PAIRS,
    words: Tensor | None = None,
    seed: int = 0,
) -> PrefixReplacement:
    """The same for features: strength at the query, the source being that which brings the most.

    Args and errors as of `replaced_before_heads`.
    """
    place, chosen = site_of(subject, coder, site), chosen_latents(coder, latents)
    search = PairSearch(subject, words, most_pairs, seed)
    for batch in batches:
        search.begin(batch)
        wanted: dict[int, list[int]] = defaultdict(list)
        fires = strengths_at(coder, _rows(subject, batch, place.site).flatten(0, 1))[:, chosen]
        for flat, number in fires.nonzero().tolist():
            wanted[flat].append(chosen[number])
        wanted = {flat: some for flat, some in wanted.items() if search.is_text(flat)}
        found = attributed(subject, batch, coder, place, wanted) if wanted else {}
        pairs: list[Pair] = []
        for flat, directs in found.items():
            row, query = divmod(flat, search.ids.shape[1])
            for direct in directs:
                source = int(direct.sources.index[int(direct.by_source.argmax())])
                name, strength = f"{place.site} latent {direct.latent}", direct.strength
                pairs += search.pair(name, row, query, source % search.ids.shape[1], strength)

        def after(some: list[Pair], changed: Batch) -> list[float]:
            z = _rows(subject, changed, place.site)
            at = torch.stack([z[number, pair.query] for number, pair in enumerate(some)])
            strengths = strengths_at(coder, at)
            return [
                float(strengths[number, int(pair.reader.rpartition(" ")[2])])
                for number, pair in enumerate(some)
            ]

        search.replace(pairs, after)
    return PrefixReplacement(tuple(search.found))


def _attention(subject: Subject, batch: Batch, pairs: Sequence[Pair]) -> list[float]:
    """Attention of each pair's head, each in its own row of the batch."""
    heads = [Head.parse(pair.reader) for pair in pairs]
    values: dict[int, float] = {}

    def hear(call: AttentionCall) -> None:
        for number, (pair, head) in enumerate(zip(pairs, heads, strict=True)):
            if head.site == call.site:
                row = pattern_row(call, number, pair.query)
                values[number] = float(row[head.head, pair.source])

    with listen(subject, batch, hear, {head.site for head in heads}):
        subject.forward(batch)
    return [values[number] for number in range(len(pairs))]


def _rows(subject: Subject, batch: Batch, site: Site) -> Tensor:
    """``[example position width]``: z of a site."""
    kept: list[Tensor] = []
    with attach(subject, Attached(frozenset([site]), on_z=lambda s, z, n: kept.append(z.detach()))):
        subject.forward(batch)
    return kept[0].flatten(2)
