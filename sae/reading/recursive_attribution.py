"""What made a latent fire, back through earlier layers: heads, features, MLPs and embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.direct.direct_path import tolerance_of
from probes.direct.residual_path import Part, PathError
from probes.heads import Head, Site
from probes.tap import TapError
from sae.coders.coder import Coder
from sae.reading.attribution_tree import AttributionTree, Link, Piece
from sae.reading.destinations import (
    Destination,
    flat_destinations,
    key_positions,
    places_in,
    unknown_positions,
)
from sae.reading.direct_attribution import attributions_at
from sae.reading.earlier_features import read_by_feature, split_into_features
from sae.reading.latent_reading import chosen_latents, latent_reading, site_of
from sae.reading.pattern_rows import brought_by_key, pattern_row
from sae.reading.pruning import DEPTH, LEAST_SHARE, TOP_K, Pruning, without
from sae.reading.value_paths import HeadPieces, Split, ValuePaths

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


def recursive_attribution(
    subject: Subject,
    batch: Batch,
    coder: Coder,
    site: Site | str,
    latent: int,
    destination: Destination,
    *,
    coders: Mapping[Site | str, Coder] | None = None,
    top_k: int | None = TOP_K,
    least_share: float = LEAST_SHARE,
    depth: int = DEPTH,
) -> AttributionTree:
    """Follow a latent back with patterns and the scales of norms frozen.

    A step: the latent is split by head and source (`direct_attribution`); what a head brings from
    a source is split into what was added to the residual stream there: the embedding, each
    earlier head's write, each MLP's, biases. Scores of pieces are those of the paper's recursion,
    ``A ((y - mean y) / scale * gain) W_V . w``; the norm's shift and the value bias are the
    constant. Before pruning, pieces sum exactly to their link and links to their piece. A head's
    write is followed in the same way, and so is a feature: where its strength is ``w . z + c``.

    Args:
        coders: of earlier layers: heads of such a layer are split into its active features, the
            coder's bias and its error instead.
        top_k, least_share, depth: what is followed, see `Pruning`. The rest is reported as left
            out at every node.

    Raises:
        PathError: the values of a layer are not linear in a residual stream, or the pieces do not
            add up to what they should.
        ValueError, TapError: as `direct_attribution`.

    Each link that is split costs a backward pass. By default that is 30 at most. With nothing
    pruned (``top_k=None, least_share=0``), from position n of a causal layer of H heads, depth 1
    takes ``H n`` passes at most, depth 2 another ``H H' n (n + 1) / 2``, H' being the heads of all
    layers below: 264 and 35,904 at the end of the 33 words of a text of `repeats` in the bundled
    `repeat-lm`, which is minutes. Prune, or stay at depth 1.

    In models of half precision, gradients along the path are rounded to that precision; pieces then
    add up to 5 % of the largest only.

    Source: Kissane et al. 2024 (arXiv 2406.17759), recursive direct feature attribution. Their
    script's ranking of residual features leaves out pattern and scale; this does not.
    """
    if not 0 <= least_share <= 1 or depth < 0 or (top_k is not None and top_k < 1):
        raise ValueError(
            "`top_k` must be positive, `least_share` between 0 and 1 and `depth` not negative, "
            f"got {top_k}, {least_share} and {depth}."
        )
    place = site_of(subject, coder, site)
    known = {site_of(subject, c, s).site: c for s, c in (coders or {}).items()}
    chosen_latents(coder, latent)
    flat = flat_destinations(batch, place.site, destination)[0]
    paths = ValuePaths(subject, batch)
    if place.rule == "heads":
        raise PathError(
            f"{place.site} makes an attention call for each group of heads, which is not followed. "
            "Use `direct_attribution` there."
        )
    for call in paths.calls[place.site]:
        for row, query, _ in places_in(call, [flat]):
            reading = latent_reading(coder, latent, place.heads)
            direct = attributions_at(call, row, query, flat, coder, [reading], batch, place)[0]
            walk = _Walk(paths, known, Pruning(top_k, least_share, depth))
            name, score = f"{place.site} latent {latent}", direct.pre_activation
            tower = place.site.tower
            root = Piece("feature", name, score, tower, flat, place.site, latent=latent)
            read = _Read((call, row, query), reading.direction, direct.constant)
            return AttributionTree(walk.followed(root, read, depth), direct.active, batch.tokens)
    raise TapError(unknown_positions(place.site, [flat]))


@dataclass(frozen=True)
class _Read:
    """What a piece reads of the heads at one query: ``sum(direction * z) + constant``."""

    at: tuple[AttentionCall, int, int]
    direction: Float[Tensor, "head head_width"]
    constant: float = 0.0


@dataclass(frozen=True)
class _Walk:
    paths: ValuePaths
    coders: Mapping[Site, Coder]
    pruning: Pruning

    def followed(self, piece: Piece, read: _Read, depth: int) -> Piece:
        """The piece with what its heads bring from their sources; the largest are split on."""
        call, row, query = read.at
        joint = brought_by_key(call, row, query, read.direction[None])[0].cpu()
        heads, keys = joint.nonzero(as_tuple=True)
        scores = joint[heads, keys].tolist()
        kept = self.pruning.kept(scores, piece.score)
        lost, share = without(scores, kept)
        links = [self._link(read, int(heads[i]), int(keys[i]), scores[i], depth) for i in kept]
        return replace(
            piece,
            links=tuple(links),
            constant=read.constant,
            left_out=piece.score - read.constant - sum(scores[i] for i in kept),
            left_out_size=lost,
            left_out_share=share,
            followed=True,
        )

    def _link(self, read: _Read, head: int, key: int, score: float, depth: int) -> Link:
        call, row, query = read.at
        place = self.paths.subject.layout.site(call.site)
        tower, index = key_positions(call, row, place)
        source = int(index[key])
        if depth == 0:
            return Link(head, tower, source, score, followed=False)
        weight = float(pattern_row(call, row, query)[head, key])
        direction = read.direction[head] * weight
        split = self.paths.split(call, row, key, head, direction)
        pieces = self._pieces(split, tower, source)
        scores = [piece.score for piece, _ in pieces]
        self._refuse_gap(call.site, scores, score, split.size)
        kept = self.pruning.kept(scores, score)
        chosen = [
            piece if more is None or depth == 1 else self.followed(piece, more, depth - 1)
            for piece, more in (pieces[i] for i in kept)
        ]
        left_out = score - sum(scores[i] for i in kept)
        pruned = (left_out, *without(scores, kept))
        return Link(head, tower, source, score, tuple(chosen), *pruned)

    def _pieces(self, split: Split, tower: str, source: int) -> list[tuple[Piece, _Read | None]]:
        """What was added to the stream, and how those that can be followed are read."""
        found: list[tuple[Piece, _Read | None]] = [
            (_other(part, score, tower, source), None) for part, score in split.others.items()
        ]
        for heads in split.heads:
            if heads.bias:
                name = f"{heads.site} output bias"
                bias = Piece("bias", name, heads.bias, heads.site.tower, heads.position, heads.site)
                found.append((bias, None))
            coder = self.coders.get(heads.site)
            found += _of_heads(heads) if coder is None else _of_features(heads, coder)
        return found

    def _refuse_gap(self, site: Site, scores: Sequence[float], score: float, terms: float) -> None:
        size = max([terms, abs(score), *map(abs, scores)]) or 1.0
        gap, limit = abs(sum(scores) - score) / size, tolerance_of(self.paths.subject.dtype)
        if not gap <= limit:
            raise PathError(
                f"The parts of the stream that {site} reads must add up to what its head brings, "
                f"they miss it by {gap:.1e} of the largest. Attribute directly, without recursion."
            )


def _of_heads(heads: HeadPieces) -> list[tuple[Piece, _Read | None]]:
    scores, found = (heads.z * heads.gradient).sum(-1).tolist(), []
    for head, score in enumerate(scores):
        site = heads.site
        name = str(Head(site.tower, site.layer, head))
        piece = Piece("head", name, score, site.tower, heads.position, site, head)
        alone = torch.zeros_like(heads.gradient)
        alone[head] = heads.gradient[head]
        call = heads.call
        read = None if call is None else _Read((call, heads.row, heads.query), alone)
        found.append((piece, read))
    return found


def _of_features(heads: HeadPieces, coder: Coder) -> list[tuple[Piece, _Read | None]]:
    site, split = heads.site, split_into_features(coder, heads.z, heads.gradient)
    place = (site.tower, heads.position, site)
    found: list[tuple[Piece, _Read | None]] = [
        (Piece("bias", f"{site} coder bias", split.bias, *place), None),
        (Piece("error", f"{site} coder error", split.error, *place), None),
    ]
    for latent, score in zip(split.latents, split.scores, strict=True):
        piece = Piece("feature", f"{site} latent {latent}", score, *place, latent=latent)
        read = None
        if heads.call is not None:
            direction, constant = read_by_feature(coder, heads.z, latent, score)
            read = _Read((heads.call, heads.row, heads.query), direction, constant)
        found.append((piece, read))
    return found


def _other(part: Part, score: float, tower: str, source: int) -> Piece:
    assert part.kind != "heads"
    if part.site is not None:
        return Piece(part.kind, f"{part.site} block", score, tower, source, part.site)
    return Piece(part.kind, f"{part.kind} {part.name}".strip(), score, tower, source)
