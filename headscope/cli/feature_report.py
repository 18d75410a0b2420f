"""What a feature or the features of a head are, on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.precision import plain
from headscope.cli.screen import print_json, print_lines, print_table, wrapped

if TYPE_CHECKING:
    from headscope.coding.feature_reading import FeatureReading
    from headscope.coding.head_reading import HeadReading
    from sae.reading.windows import FiringView, Window

_SHOWN_HEADS = 3


def print_feature(found: FeatureReading, as_json: bool) -> None:
    """Head shares, examples with their sources, words."""
    if as_json:
        print_json(found.record())
        return
    heads = range(len(found.decoder_shares))
    print_table(
        f"Latent {found.latent} of {found.site}: fires at {found.firings:,} of {found.rows:,} "
        f"positions, at most {plain(found.largest)}",
        ["head", ">writes", ">makes it fire"],
        [
            [f"H{head}", _share(found.decoder_shares[head]), _share(found.firing_shares[head])]
            for head in heads
        ],
    )
    for view in found.views:
        print_lines("", *wrapped(_lines_of(view)))
    print_lines("", *wrapped(_words(found.words, found.words_against, found.no_words)))


def print_head(found: HeadReading, as_json: bool) -> None:
    """The features with the largest share of a head."""
    if as_json:
        print_json(found.record())
        return
    print_table(
        f"Features of {found.head}, by its share of their decoder rows",
        [">latent", ">share", ">fires at", "speaks for"],
        [
            [str(latent), _share(share), f"{firings / found.rows:.2%}", " ".join(words) or "–"]
            for latent, share, firings, words in found.features
        ],
    )
    mean, low, high = found.null
    lines = [
        f"These are {plain(found.roles)} different roles of {len(found.features)}, by what they "
        f"write at this head; as many random features: {plain(mean)} "
        f"[{plain(low)}, {plain(high)}]."
        if not found.no_roles
        else f"How many roles they are is not measured: {found.no_roles}"
    ]
    lines += [f"What they speak for is not known: {found.no_words}"] if found.no_words else []
    print_lines("", *wrapped(lines))


def _lines_of(view: FiringView) -> list[str]:
    from headscope.coding.feature_reading import strongest_sources

    direct = view.attribution
    by_head = direct.by_head.sort(descending=True)
    heads = [
        f"H{head} {plain(value)}"
        for value, head in zip(by_head.values.tolist(), by_head.indices.tolist(), strict=True)
    ]
    lines = [f"{view.firing.example}, strength {plain(view.firing.strength)}: "
             f"{_place(view.destination)}"]  # fmt: skip
    lines.append(
        f"    = {plain(direct.constant)} + heads {', '.join(heads[:_SHOWN_HEADS])}"
        + (", ..." if len(heads) > _SHOWN_HEADS else "")
    )
    sources = [f"{_place(window)} {plain(value)}" for window, value in strongest_sources(view)]
    lines.append(f"    from {'; '.join(sources) or 'sources whose place is not known'}")
    return lines


def _place(window: Window) -> str:
    """A word in its surroundings between signs, or a patch with its pixels."""
    if window.patch is not None:
        left, top, right, bottom = (round(edge) for edge in window.patch.box)
        patch = window.patch
        return f"patch ({patch.row}, {patch.column}) at pixels {left},{top} to {right},{bottom}"
    if not window.words:
        return f"{window.role} position"
    words = list(window.words)
    words[window.centre] = f"»{words[window.centre].strip()}«"
    return " ".join(word.strip() for word in words)


def _words(
    best: Sequence[tuple[str, float]], worst: Sequence[tuple[str, float]], why: str
) -> list[str]:
    if why:
        return [f"What it speaks for is not known: {why}"]
    shown = [
        ", ".join(f"{word.strip()} {value:+.2f}" for word, value in words if sign * value > 0)
        for words, sign in ((best, 1), (worst, -1))
    ]
    return [f"Speaks for {shown[0] or 'nothing'}", f"against {shown[1] or 'nothing'}"]


def _share(value: float) -> str:
    return "–" if value != value else f"{value:.2f}"
