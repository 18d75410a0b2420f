"""Names of heads and sites, and selections such as ``language.L3H5`` or ``vision.*``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

_NAME = re.compile(
    r"^(?:(?P<tower>[A-Za-z_][A-Za-z0-9_]*)\.)?L(?P<layer>\d+)(?:H(?P<head>\d+))?$", re.ASCII
)
_SELECTION = re.compile(
    r"^(?:(?P<tower>\*|[A-Za-z_][A-Za-z0-9_]*)\.)?(?:\*|L(?P<layer>\*|\d+)(?:H(?P<head>\*|\d+))?)$",
    re.ASCII,
)
_HOOK_NAME = re.compile(r"^blocks\.(?P<layer>\d+)\.attn\.hook_(?:z|pattern)$")


@dataclass(frozen=True, order=True)
class Site:
    """A tower and a layer: the place of one attention layer, written ``language.L3``.

    >>> str(Site("language", 3))
    'language.L3'
    """

    tower: str
    layer: int

    def __str__(self) -> str:
        return f"{self.tower}.L{self.layer}"


@dataclass(frozen=True, order=True)
class Head:
    """One attention head, zero-based, written ``language.L3H5``.

    >>> Head.parse("language.L3H5")
    Head(tower='language', layer=3, head=5)
    """

    tower: str
    layer: int
    head: int

    @property
    def site(self) -> Site:
        return Site(self.tower, self.layer)

    def __str__(self) -> str:
        return f"{self.tower}.L{self.layer}H{self.head}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """Read ``tower.L3H5``.

        Raises:
            ValueError: if the text is not the full name of one head.
        """
        match = _NAME.match(text)
        if match is None or match["tower"] is None or match["head"] is None:
            raise ValueError(
                f"A head must be written like 'language.L3H5', got {text!r}. "
                "Run `headscope inspect MODEL` to list towers, layers and heads."
            )
        return cls(match["tower"], int(match["layer"]), int(match["head"]))


class _HeadCounts(Protocol):
    """What a selection needs to know of a tower: the heads of each layer that has attention."""

    @property
    def heads_by_layer(self) -> Mapping[int, int]: ...


def select_heads(
    selection: str | Head | Site | Iterable[str | Head | Site], towers: Mapping[str, _HeadCounts]
) -> list[Head]:
    """The heads that a selection names, in order of tower, layer and head, each once.

    A selection is one or several of: ``language.L3H5`` (one head), ``language.L3`` or
    ``language.L3H*`` (a layer), ``language.*`` (a tower), ``*`` (everything), and
    ``blocks.3.attn.hook_z`` (TransformerLens' spelling). Without a tower the model must have
    only one, or one called ``language`` for TransformerLens' spelling.

    Raises:
        ValueError: a name that is not in the model; the sentence says what there is.
    """
    items = [selection] if isinstance(selection, str | Head | Site) else list(selection)
    chosen: set[Head] = set()
    for item in items:
        chosen.update(_expand(str(item), towers))
    order = {name: index for index, name in enumerate(towers)}
    return sorted(chosen, key=lambda head: (order[head.tower], head.layer, head.head))


def select_sites(
    selection: str | Head | Site | Iterable[str | Head | Site], towers: Mapping[str, _HeadCounts]
) -> list[Site]:
    """The sites of the heads that a selection names, in order, each once."""
    return list(dict.fromkeys(head.site for head in select_heads(selection, towers)))


def _expand(text: str, towers: Mapping[str, _HeadCounts]) -> list[Head]:
    hook = _HOOK_NAME.match(text)
    if hook is not None:
        text = f"L{hook['layer']}"
        if "language" in towers:
            text = f"language.{text}"
    match = _SELECTION.match(text)
    if match is None:
        raise ValueError(
            f"A selection of heads must look like 'language.L3H5', 'language.L3' or 'vision.*', "
            f"got {text!r}. Run `headscope inspect MODEL` to list towers, layers and heads."
        )
    names = _towers_named(text, match["tower"], towers)
    found = [
        Head(name, layer, head)
        for name in names
        for layer, count in towers[name].heads_by_layer.items()
        if match["layer"] in (None, "*") or int(match["layer"]) == layer
        for head in range(count)
        if match["head"] in (None, "*") or int(match["head"]) == head
    ]
    if not found:
        raise ValueError(_absent(text, names, match["layer"], towers))
    return found


def _towers_named(text: str, tower: str | None, towers: Mapping[str, _HeadCounts]) -> list[str]:
    if tower == "*" or (tower is None and text == "*"):
        return list(towers)
    if tower is None:
        if len(towers) == 1:
            return list(towers)
        raise ValueError(
            f"{text!r} must name its tower because this model has {len(towers)}: "
            f"{', '.join(towers)}. Write for example '{next(iter(towers), 'language')}.{text}'."
        )
    if tower not in towers:
        raise ValueError(
            f"The tower of {text!r} must be one of {', '.join(towers) or 'none'}, got {tower!r}. "
            "Run `headscope inspect MODEL` to list towers, layers and heads."
        )
    return [tower]


def _absent(
    text: str, names: list[str], layer: str | None, towers: Mapping[str, _HeadCounts]
) -> str:
    counts = {name: towers[name].heads_by_layer for name in names}
    layers = sorted({index for heads in counts.values() for index in heads})
    known = f"layers {layers[0]} to {layers[-1]}" if layers else "no layers with attention"
    if layer not in (None, "*") and any(int(layer) in heads for heads in counts.values()):
        most = max(heads.get(int(layer), 0) for heads in counts.values())
        known = f"heads 0 to {most - 1} in layer {layer}"
    return (
        f"{text!r} must name heads of this model, which has {known} in {', '.join(names)}. "
        "Run `headscope inspect MODEL` to list towers, layers and heads."
    )
