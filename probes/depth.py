"""Layers by relative depth, so that what a paper says of 32 layers can be said of any number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from probes.heads import Head, Site, select_heads

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from probes.layout import Tower
    from probes.subject import Subject

WRITING_TOWERS = ("language", "decoder")
"""Towers that read the prompt, its image included, and write the answer."""


def writing_tower(subject: Subject) -> Tower:
    """The tower in which text is read and written.

    Raises:
        ValueError: the model has none, such as a vision transformer.
    """
    for name in WRITING_TOWERS:
        if name in subject.towers:
            return subject.towers[name]
    raise ValueError(
        f"{subject.name!r} must read or write text, it has only {', '.join(subject.towers)}. "
        "Choose a language or vision-language model."
    )


def sites_within(
    tower: Tower, depth: tuple[float, float], *, skip_last: bool = False
) -> list[Site]:
    """The attention layers whose middle lies in a range of relative depths.

    The middle of layer l of L lies at ``(l + 1/2) / L``: layers 2 to 30 of 32 are those of
    ``(2/32, 31/32)``.

    Args:
        skip_last: leave out the last layer whatever its depth.

    Raises:
        ValueError: ``depth`` is no range within 0 to 1, or no layer lies in it.
    """
    low, high = depth
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"`depth` must be two numbers with 0 <= first < second <= 1, got {low:g} and {high:g}."
        )
    layers = [
        layer
        for layer in tower.sites
        if low <= (layer + 0.5) / tower.depth <= high
        and not (skip_last and layer == tower.depth - 1)
    ]
    if not layers:
        raise ValueError(
            f"`depth` must take in at least one layer of {tower.name}, which has {tower.depth}; "
            f"{low:g} to {high:g} takes in none{_but_last(skip_last)}. Widen it."
        )
    return [Site(tower.name, layer) for layer in layers]


def sites_near(tower: Tower, depths: Sequence[tuple[float, float]]) -> list[Site]:
    """The layers of `sites_within` of several ranges; of a range too narrow to hold the middle of
    a layer, the one in which its own middle lies (the second of 32 is the first of 12).

    Raises:
        ValueError: a range that is none, or in which there is no attention.
    """
    found: set[Site] = set()
    for low, high in depths:
        layer = min(int((low + high) / 2 * tower.depth), tower.depth - 1)
        narrow = 0 <= low < high <= 1 and (high - low) * tower.depth < 1
        if narrow and layer in tower.sites:
            found.add(Site(tower.name, layer))
        else:
            found |= set(sites_within(tower, (low, high)))
    return sorted(found)


def writing_heads(
    subject: Subject, heads: str | Sequence[str] | None, depth: tuple[float, float]
) -> list[Head]:
    """The heads that are named, or all of the layers at these depths, in the tower that writes.

    Raises:
        ValueError: there is no such tower, head or layer.
    """
    tower = writing_tower(subject)
    found = select_heads(sites_within(tower, depth) if heads is None else heads, subject.towers)
    foreign = [str(head) for head in found if head.tower != tower.name]
    if foreign:
        raise ValueError(
            f"Heads must be of {tower.name}, where text is read and written, got {foreign[0]}. "
            f"Write for example '{tower.name}.L{min(tower.sites)}'."
        )
    return found


def refuse_unknown_streams(subject: Subject, sites: Iterable[Site]) -> None:
    """Raise where the residual stream that enters a layer is not known.

    Raises:
        ValueError: naming the layer.
    """
    blocks = subject.layout.anatomy.blocks
    unknown = [str(site) for site in sites if site not in blocks]
    if unknown:
        raise ValueError(
            f"The residual stream that enters {unknown[0]} must be known, but its block was not "
            f"found in {subject.name!r}. Run `headscope inspect {subject.name}` to see the anatomy."
        )


def _but_last(skip_last: bool) -> str:
    return " but the last one, which is skipped" if skip_last else ""
