"""A recursive attribution as a tree: what a number is made of, back to words and patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from probes.heads import Head, Site
from probes.tokens.map import TokenMap

PieceKind = Literal[
    "feature", "head", "error", "embedding", "block", "bias", "other", "constant", "left_out"
]
"""``feature``: a latent of a coder (the root, and where an earlier layer has one). ``head``: what a
head wrote. ``error``: what a layer's coder does not reconstruct. ``embedding``: what enters the
tower. ``block``: what a block adds beside its heads (its MLP). ``bias``: of an output projection
or a coder. ``other``: added outside all blocks. ``constant``: biases of norms and values, and the
part of a latent that belongs to no source. ``left_out``: pruned away."""


@dataclass(frozen=True)
class Link:
    """What one head brings from one source to a piece.

    ``score = sum of the pieces' scores + left_out``.

    Attributes:
        source: flat position in the token map of tower ``tower``, -1 where it is not known.
        score: part of the root's pre-activation, in its units.
        left_out: sum of the scores of pieces that were pruned; with it rounding.
        left_out_size: ``sum |score|`` of the pruned pieces.
        left_out_share: 0 to 1, that over ``sum |score|`` of all pieces.
    """

    head: int
    tower: str
    source: int
    score: float
    pieces: tuple[Piece, ...] = ()
    left_out: float = 0.0
    left_out_size: float = 0.0
    left_out_share: float = 0.0
    followed: bool = True


@dataclass(frozen=True)
class Piece:
    """Something that was added to the residual stream, and what it is made of where that was asked.

    Where it was followed, ``score = constant + sum of the links' scores + left_out``.

    Attributes:
        name: such as ``language.L0H3`` or ``language.L1 latent 17``.
        position: flat position in the token map of tower ``tower``, -1 where it is not known.
        score: part of the root's pre-activation, in its units.
        constant: part of a latent that belongs to no source.
        left_out, left_out_size, left_out_share: of pruned links, as for `Link`.
    """

    kind: PieceKind
    name: str
    score: float
    tower: str = ""
    position: int = -1
    site: Site | None = None
    head: int | None = None
    latent: int | None = None
    links: tuple[Link, ...] = ()
    constant: float = 0.0
    left_out: float = 0.0
    left_out_size: float = 0.0
    left_out_share: float = 0.0
    followed: bool = False

    def leaves(self) -> Iterator[Piece]:
        """What it is made of in the end; the scores add up to its own."""
        if not self.followed:
            yield self
            return
        yield Piece("constant", f"constant of {self.name}", self.constant, self.tower)
        yield Piece("left_out", f"left out of {self.name}", self.left_out, self.tower)
        for link in self.links:
            if not link.followed:
                assert self.site is not None
                name = str(Head(self.site.tower, self.site.layer, link.head))
                yield Piece("head", name, link.score, link.tower, link.source, self.site, link.head)
                continue
            yield Piece("left_out", f"left out of {self.name}", link.left_out, link.tower)
            for piece in link.pieces:
                yield from piece.leaves()


@dataclass(frozen=True)
class AttributionTree:
    """A latent at a destination, followed back.

    Attributes:
        root: the latent; its score is its pre-activation.
        active: whether it fires there.
    """

    root: Piece
    active: bool
    tokens: TokenMap = field(repr=False)

    @property
    def by_kind(self) -> dict[str, float]:
        """Sum of the leaves' scores by kind; their total is the root's score."""
        sums: dict[str, float] = {}
        for leaf in self.root.leaves():
            sums[leaf.kind] = sums.get(leaf.kind, 0.0) + leaf.score
        return sums

    @property
    def unexplained_share(self) -> float:
        """0 to 1: ``sum |score|`` of coder errors and of all that was pruned, over that of all.

        Signs do not cancel here: of two pruned pieces of +1 and -1, both are unexplained.
        """
        lost = left_out_size(self.root)
        named = [leaf for leaf in self.root.leaves() if leaf.kind != "left_out"]
        errors = sum(abs(leaf.score) for leaf in named if leaf.kind == "error")
        total = lost + sum(abs(leaf.score) for leaf in named)
        return (lost + errors) / total if total else 0.0


def left_out_size(piece: Piece) -> float:
    """``sum |score|`` of all that was pruned at a piece and below."""
    below = (
        link.left_out_size + sum(left_out_size(one) for one in link.pieces) for link in piece.links
    )
    return piece.left_out_size + sum(below)
