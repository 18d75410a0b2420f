"""What the pieces of a forward take, and what that lets an exact restart gain.

With H heads in each of L layers, E before the first block, B a block, U after the last one (norm,
unembedding, metric), and one forward of the intact model first, for everybody:

    naive loop                      H L (E + L B + U)
    restart at the block's input    H sum over l of ((L - l) B + U)
    restart at the projection       H sum over l of (P + (L - l - 1) B + U)

P is what a block does from the output projection of its attention on: attention in the edited
block is as it was before its output projection, so it need not run. Where few positions are read,
the last block need not compute the others from its projection on either.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pieces:
    """Seconds of one forward of the intact model, piece by piece.

    Attributes:
        before: up to the first block.
        blocks: each block.
        projected: of each block what comes from the output projection on.
        after: after the last block.
        metric: what is made of the output.
    """

    before: float
    blocks: tuple[float, ...]
    projected: tuple[float, ...]
    after: float
    metric: float

    @property
    def end(self) -> float:
        return self.after + self.metric

    @property
    def forward(self) -> float:
        return self.before + sum(self.blocks) + self.end


def timed_pieces(
    subject: Any, forward: Callable[[], Any], metric: Callable[[Any], Any], device: str = "cpu"
) -> Pieces:
    """The pieces of one forward, by hooks with a clock."""
    anatomy = subject.layout.anatomy
    begun: list[float] = []
    projecting: list[float] = []
    ended: list[float] = []

    def clock(times: list[float]) -> Callable[..., None]:
        return lambda *_: times.append(_now(device))

    with ExitStack() as stack:
        for site in (place.site for place in subject.layout.sites):
            block = subject.model.get_submodule(anatomy.blocks[site].path)
            projection = subject.model.get_submodule(anatomy.projections[site].path)
            for handle in (
                block.register_forward_pre_hook(clock(begun)),
                projection.register_forward_pre_hook(clock(projecting)),
                block.register_forward_hook(clock(ended)),
            ):
                stack.callback(handle.remove)
        start = _now(device)
        output = forward()
        returned = _now(device)
        metric(output)
        measured = _now(device)
    spans = list(zip(begun, projecting, ended, strict=True))
    return Pieces(
        before=begun[0] - start,
        blocks=tuple(end - first for first, _, end in spans),
        projected=tuple(end - middle for _, middle, end in spans),
        after=returned - ended[-1],
        metric=measured - returned,
    )


def mean_pieces(some: list[Pieces]) -> Pieces:
    """Piece by piece the mean of several forwards."""

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    return Pieces(
        mean([one.before for one in some]),
        tuple(map(mean, (list(v) for v in zip(*(one.blocks for one in some), strict=True)))),
        tuple(map(mean, (list(v) for v in zip(*(one.projected for one in some), strict=True)))),
        mean([one.after for one in some]),
        mean([one.metric for one in some]),
    )


def modelled(pieces: Pieces, heads: int, share_read: float = 1.0) -> dict[str, float]:
    """Seconds for all heads of all layers: ``naive``, ``restart``, ``projection``, ``rows``.

    Args:
        share_read: share of the positions that the last block must compute from its projection on,
            for ``rows``: a restart at the projection with no more than these.

    >>> pieces = Pieces(1.0, (4.0, 4.0), (3.0, 3.0), 1.5, 0.5)
    >>> modelled(pieces, 2)
    {'naive': 55.0, 'restart': 43.0, 'projection': 39.0, 'rows': 39.0}
    >>> modelled(pieces, 2, share_read=0.5)["rows"]
    33.0
    """
    layers = len(pieces.blocks)
    unread = (1 - share_read) * pieces.projected[-1]
    restart = projection = 0.0
    for layer in range(layers):
        later = sum(pieces.blocks[layer + 1 :])
        restart += pieces.blocks[layer] + later + pieces.end
        projection += pieces.projected[layer] + later + pieces.end
    first = pieces.forward
    return {
        "naive": first + heads * layers * pieces.forward,
        "restart": first + heads * restart,
        "projection": first + heads * projection,
        "rows": first + heads * (projection - layers * unread),
    }


def _now(device: str) -> float:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()
