"""Towers, layers and heads of a model, as plain facts read off one observed forward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from probes.anatomy import Anatomy
from probes.heads import Site


@dataclass(frozen=True)
class SiteLayout:
    """One attention layer.

    Attributes:
        path: the module whose code makes the attention call.
        occurrence: which run of a shared module within a forward this is (0 for all others).
        rule: how several calls within one run of the module belong together: ``single``,
            ``blocks`` (windows or packed images, one after the other along the tokens) or
            ``heads`` (one call per group of heads).
        kv_heads: heads of keys and values; fewer than ``heads`` under GQA as far as the call
            shows it (a model that repeats keys before the call shows as many as queries).
        source: ``sdpa`` (pattern recomputed from query and key) or ``softmax`` (written out).
        softmax_path: the module in which a softmax that is written out is taken.
        softmax_numbers: which softmaxes of one run of that module are attention.
        cross: whether keys come from another sequence than queries.
        row_sums: what the rows of a pattern sum to: ``one``; ``below one`` (a learned sink takes
            the rest); ``any`` (heads are mixed after the softmax, so rows are no distributions).
        key_tower: tower whose token map describes the keys.
        mismatch: largest ``|pattern @ value - z|`` seen, in units of the largest ``|value|``.
    """

    site: Site
    path: str
    heads: int
    kv_heads: int
    head_width: int
    value_width: int
    source: str
    rule: str = "single"
    calls: int = 1
    occurrence: int = 0
    shared: bool = False
    cross: bool = False
    causal: bool = False
    row_sums: str = "one"
    key_tower: str = ""
    mismatch: float = 0.0
    inside: int | None = None
    softmax_path: str = ""
    softmax_numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Tower:
    """A stack of attention layers, named by what it is.

    Attributes:
        sites: attention layers by block index; blocks without softmax attention are not in it.
        depth: number of blocks.
        template: the modules' common path, ``*`` for the block index.
    """

    name: str
    sites: Mapping[int, SiteLayout]
    depth: int
    template: str

    @property
    def layers(self) -> int:
        """Number of blocks, those without softmax attention included."""
        return self.depth

    @property
    def heads(self) -> int | tuple[int, ...]:
        """Heads per layer, or one number per attention layer where they differ."""
        return _same([site.heads for site in self.sites.values()])

    @property
    def kv_heads(self) -> int | tuple[int, ...]:
        """Key and value heads per layer, or one number per attention layer."""
        return _same([site.kv_heads for site in self.sites.values()])

    @property
    def head_width(self) -> int | tuple[int, ...]:
        """Width of a head's query, or one number per attention layer."""
        return _same([site.head_width for site in self.sites.values()])

    @property
    def heads_by_layer(self) -> dict[int, int]:
        """Layer index to number of heads, for layers with softmax attention."""
        return {layer: site.heads for layer, site in self.sites.items()}

    @property
    def empty_layers(self) -> list[int]:
        """Blocks in which there is no softmax attention ("no pattern here")."""
        return [layer for layer in range(self.depth) if layer not in self.sites]


@dataclass(frozen=True)
class Refusal:
    """Something like attention that cannot be captured, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Layout:
    """What one observed forward showed of a model."""

    towers: Mapping[str, Tower]
    refusals: tuple[Refusal, ...] = ()
    anatomy: Anatomy = field(default_factory=Anatomy)

    def site(self, site: Site) -> SiteLayout:
        return self.towers[site.tower].sites[site.layer]

    @property
    def sites(self) -> list[SiteLayout]:
        """All attention layers, tower by tower."""
        return [site for tower in self.towers.values() for site in tower.sites.values()]


def _same(values: list[int]) -> int | tuple[int, ...]:
    return values[0] if len(set(values)) == 1 else tuple(values)
