"""What makes a feature fire and what it speaks for: ``hs.read_feature``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.coding.examples import CHUNK_EXAMPLES
from headscope.coding.read_rows import logit_words, opened_rows

if TYPE_CHECKING:
    from probes.subject import Subject
    from sae.coders.coder import Coder
    from sae.reading.windows import FiringView, Window

EXAMPLES = 5
_SOURCES = 3


@dataclass(frozen=True)
class FeatureReading:
    """One feature on some data.

    Attributes:
        rows, firings: positions that were read, and at how many of them it fires.
        decoder_shares: of each head, by what it writes; sums to 1. NaN for a row of zeros.
        firing_shares: of each head, by size of what makes it fire; NaN if it never does.
        views: its strongest examples, each with windows and direct attribution.
        words: what it speaks for: word or class, and effect on its logit; strongest first.
        words_against: the same for the most negative ones.
        no_words: why those are not known, else empty.
    """

    site: str
    latent: int
    rows: int
    firings: int
    largest: float
    decoder_shares: tuple[float, ...]
    firing_shares: tuple[float, ...]
    views: tuple[FiringView, ...] = field(repr=False)
    words: tuple[tuple[str, float], ...] = ()
    words_against: tuple[tuple[str, float], ...] = ()
    no_words: str = ""

    @property
    def density(self) -> float:
        """Share of the rows at which it fires, 0 to 1."""
        return self.firings / self.rows

    def record(self) -> dict[str, Any]:
        """For JSON."""
        shown = ("site", "latent", "rows", "firings", "density", "largest", "decoder_shares")
        more = ("firing_shares", "words", "words_against", "no_words")
        found = {name: getattr(self, name) for name in (*shown, *more)}
        return {**found, "examples": [view_record(view) for view in self.views]}


def read_feature(
    coder: Coder | str | Path,
    latent: int,
    subject: Subject,
    data: str | Path | None = None,
    *,
    site: str = "",
    examples: int = EXAMPLES,
    limit: int | None = None,
    batch_size: int = CHUNK_EXAMPLES,
    context: int | None = None,
    other_model: bool = False,
) -> FeatureReading:
    """Which heads, words and patches make a feature fire, and what it speaks for.

    Args:
        coder: or its folder, or the name of a bundled one.
        data: that examples are taken from; default: what the coder was trained on where it is
            there, else the bundled set that fits.
        site: where a folder holds coders of several sites, or the coder does not say its own.
        examples: how many of the strongest are shown.
        context: longer texts are cut into examples of so many tokens; default: as in training.

    Raises:
        AskedWrongly: a latent that there is not; a model or site that is not the coder's.
        ValueError: data that cannot be used.
    """
    from sae.reading.feature_examples import feature_examples
    from sae.reading.head_shares import decoder_shares, firing_shares
    from sae.reading.windows import firing_views

    coder, rows = opened_rows(
        coder, subject, data, site, limit, batch_size, context, other_model, latent
    )
    ((name, heads),) = rows.heads.items()
    found = feature_examples(rows, coder, name, latent, top=examples, sample=1)
    views = firing_views(subject, rows, coder, name, found.top(latent))
    best, worst, why = logit_words(subject, coder, name, [latent])
    return FeatureReading(
        name,
        latent,
        found.rows,
        int(found.firings[0]),
        float(found.largest[0]),
        tuple(decoder_shares(coder, heads)[latent].tolist()),
        tuple(firing_shares(rows, coder, name).shares[latent].tolist()),
        tuple(views),
        best.get(latent, ()),
        worst.get(latent, ()),
        why,
    )


def strongest_sources(view: FiringView, count: int = _SOURCES) -> list[tuple[Window, float]]:
    """The sources that brought most to a firing, with what each brought; largest first."""
    from sae.reading.windows import window_at

    brought, index = view.attribution.by_source, view.attribution.sources.index
    order = brought.sort(descending=True, stable=True).indices[:count].tolist()
    return [
        (window_at(view.attribution.sources.map, int(index[at]), 0), float(brought[at]))
        for at in order
        if int(index[at]) >= 0 and float(brought[at]) > 0
    ]


def view_record(view: FiringView) -> dict[str, Any]:
    """A firing with its window and sources, for JSON."""
    direct = view.attribution
    return {
        "example": view.firing.example,
        "position": view.firing.position,
        "strength": view.firing.strength,
        "destination": _window_record(view.destination),
        "sources": [
            {**_window_record(window), "brought": brought}
            for window, brought in strongest_sources(view)
        ],
        "by_head": direct.by_head.tolist(),
        "constant": direct.constant,
        "pre_activation": direct.pre_activation,
    }


def _window_record(window: Window) -> dict[str, Any]:
    found: dict[str, Any] = {"tower": window.tower, "role": window.role}
    if window.words:
        found |= {"words": list(window.words), "centre": window.centre}
    if window.patch is not None:
        patch = window.patch
        found |= {"row": patch.row, "column": patch.column, "box": list(patch.box)}
    return found
