"""What all latents of a coder speak for and against, in blocks that fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from probes.weights.head_weight_search import head_weights
from sae.coders.coder import Coder
from sae.reading.latent_reading import site_of
from sae.reading.logit_effects import logit_effects

if TYPE_CHECKING:
    from torch import Tensor

    from probes.subject import Subject
    from sae.reading.logit_effects import LogitEffects

BEST = 8
_LATENTS, _LARGE = 64, 1 << 25
"""The first block tells how many words there are; the others take so many numbers."""


@dataclass(frozen=True)
class WordsOfLatents:
    """Words or classes with their effects on the logits, by latent, strongest first.

    Attributes:
        what: ``word`` or ``class``, empty where they are not known.
        why: why they are not known, else empty.
    """

    best: dict[int, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    worst: dict[int, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    what: str = ""
    why: str = ""


def words_of_latents(
    subject: Subject, coder: Coder, site: str, latents: Sequence[int], count: int = BEST
) -> WordsOfLatents:
    """`logit_effects` of many latents; only the strongest are kept."""
    try:
        place = site_of(subject, coder, site)
        weights = head_weights(subject, None)[place.site]
        first = logit_effects(subject, coder, site, list(latents[:_LATENTS]), weights=weights)
    except ValueError as error:
        return WordsOfLatents(why=str(error))
    best, worst = {}, {}
    _take(first, count, best, worst)
    size = max(1, _LARGE // first.effects.shape[1])
    for start in range(_LATENTS, len(latents), size):
        some = list(latents[start : start + size])
        _take(logit_effects(subject, coder, site, some, weights=weights), count, best, worst)
    return WordsOfLatents(best, worst, "word" if first.words else "class")


def _take(found: LogitEffects, count: int, best: dict, worst: dict) -> None:
    count = min(count, found.effects.shape[1])
    unnamed = "word" if found.words else "class"

    def named(row: Tensor, index: Tensor) -> tuple[tuple[str, float], ...]:
        ids = index.tolist()
        texts = [found.names[i] if found.names else "" for i in ids]
        told = [text or f"{unnamed} {i}" for text, i in zip(texts, ids, strict=True)]
        return tuple(zip(told, row[index].tolist(), strict=True))

    high, low = (found.effects.topk(count, 1, largest=way).indices for way in (True, False))
    for number, latent in enumerate(found.latents):
        best[latent] = named(found.effects[number], high[number])
        worst[latent] = named(found.effects[number], low[number])
