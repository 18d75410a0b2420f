"""The residual stream between the blocks of every tower, example by example."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from probes.alignment import flat_positions
from probes.heads import Site
from probes.listening import attach
from probes.tap import Attached
from probes.tokens.map import ROLES, TowerTokens

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

_PAD = ROLES.index("pad")


@dataclass(frozen=True)
class Stream:
    """The residual stream of a batch at one depth of a tower.

    Attributes:
        depth: n is where the stream enters block n; one more than the last block is where it
            leaves the tower's blocks.
        x: ``[batch position model_width]``.
        tokens, index: token map of the tower and long ``[batch position]`` flat positions in it;
            both ``None`` where positions are not known.
        example: long ``[batch position]``, -1 for padding.
    """

    tower: str
    depth: int
    x: Tensor
    tokens: TowerTokens | None
    index: Tensor | None
    example: Tensor

    def of_examples(self) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """For each example its number, ``[position model_width]`` and flat positions."""
        flat = self.x.reshape(-1, self.x.shape[-1])
        owner = self.example.flatten()
        for example in owner[owner >= 0].unique().tolist():
            mine = (owner == example).nonzero()[:, 0]
            index = None if self.index is None else self.index.flatten()[mine]
            yield example, flat[mine.to(flat.device)], index


def stream_of(batch: Batch, tower: str, depth: int, x: Tensor) -> Stream | None:
    """A stream with what is known of its positions; None where not even examples are told apart."""
    tokens = batch.tokens.towers.get(tower)
    rows, length = x.shape[:2]
    index = None if tokens is None else flat_positions(tokens, rows, length, packed=True)
    if tokens is not None and index is not None:
        example = tokens.example[index].masked_fill(tokens.role[index] == _PAD, -1)
        return Stream(tower, depth, x, tokens, index, example)
    if not batch.size or rows % batch.size:
        return None
    example = torch.arange(rows)[:, None].expand(rows, length) // (rows // batch.size)
    return Stream(tower, depth, x, None, None, example)


def streamed_sites(subject: Subject) -> list[Site]:
    """One site per block of every tower, the towers' own: cross attention shares its block."""
    found: dict[tuple[str, int], Site] = {}
    for site in subject.layout.sites:
        block = subject.layout.anatomy.blocks.get(site.site)
        if block is not None and (not site.cross or (block.path, site.occurrence) not in found):
            found[block.path, site.occurrence] = site.site
    return list(found.values())


@contextmanager
def listening_to_streams(
    subject: Subject,
    batch: Batch,
    hear: Callable[[Stream], None],
    sites: Iterable[Site] | None = None,
    *,
    leaving: bool = False,
) -> Iterator[None]:
    """Hand over the stream that enters each block while the ``with`` block runs the batch.

    Args:
        sites: only these; by default one per block.
        leaving: also hand over what leaves the last block of each tower.
    """
    chosen = streamed_sites(subject) if sites is None else list(sites)

    def enters(site: Site, x: Tensor, step: int) -> None:
        stream = stream_of(batch, site.tower, site.layer, x)
        if stream is not None:
            hear(stream)

    def leaves(site: Site, x: Tensor, step: int) -> None:
        stream = stream_of(batch, site.tower, site.layer + 1, x)
        if stream is not None:
            hear(stream)

    last = {site.tower: site for site in sorted(chosen)}
    with ExitStack() as stack:
        if chosen:
            stack.enter_context(attach(subject, Attached(frozenset(chosen), on_residual=enters)))
            if leaving:
                watcher = Attached(frozenset(last.values()), on_block_output=leaves)
                stack.enter_context(attach(subject, watcher))
        yield
