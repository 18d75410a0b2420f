"""Prune image tokens: from a layer of the language model on, no query reads the dropped ones.

The scores of published methods decide what is kept (see `analysis.vision.pruning`). What they drop
is hidden, not taken out: from the layer on, its keys are forbidden to every query, in the prompt
and while tokens are written. For the tokens that are kept this is exactly what taking them out does
at that layer, but for one thing: nothing is numbered anew. FasterVLM, HiPrune and FlowCut drop
tokens before the language model, which then counts positions without them; here those that are kept
stay at their old positions, as in FastV. Nothing becomes faster.

EViT's fused token and DyVTE's trained exit are not part of this; what DyVTE's exit looks at can be
measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from analysis.vision.prompt_lookup import AtImageKeys
from analysis.vision.pruning.selection import Selection, first_pruned_layer, selector_of
from analysis.vision.seeing import reading_tower, refuse_imageless
from probes.edits.edit import EditPlace
from probes.edits.method import Prepared
from probes.heads import Site
from probes.masks import MASKED_SCORE

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

How = Literal["faster_vlm", "evit", "hiprune", "flowcut", "fastv"]


@dataclass
class PruneEdit:
    """The scores of the layers of one `PruneTokens`."""

    method: PruneTokens
    heads: list[Site]
    selection: Selection
    stage: Literal["scores"] = "scores"
    kept: Tensor | None = None
    """Bool ``[position]``: the image positions of the batch that runs that are kept."""
    _dropped: AtImageKeys | None = None

    @property
    def label(self) -> str:
        return self.method.label

    def before(self, batch: Batch, generated: int) -> None:
        """Refuse what has no image, and match positions with patches."""
        tower = self.heads[0].tower
        refuse_imageless(batch, tower, self.label)
        self.selection.begin(batch, tower)
        self.kept = self._dropped = None

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        dropped = self._hidden(place).at(place)
        return values.masked_fill(dropped[:, None, None], MASKED_SCORE)

    def _hidden(self, place: EditPlace) -> AtImageKeys:
        if not place.step or self._dropped is None:
            self._dropped = place.shared(("pruned", id(self)), self._choose)
        return self._dropped

    def _choose(self) -> AtImageKeys:
        self.kept = self.selection.kept(self.method.method, self.method.keep)
        return AtImageKeys(~self.kept)


@dataclass(frozen=True)
class PruneTokens:
    """See the top of this file; made by `prune_tokens`."""

    method: How
    keep: float
    from_layer: int | None

    @property
    def label(self) -> str:
        return f"prune_tokens({self.method}, keep={self.keep:g})"

    def on(self, subject: Subject) -> Prepared:
        """The edit, and what hears the scores."""
        tower = reading_tower(subject, "prune_tokens")
        first = first_pruned_layer(self.method, self.from_layer, tower.depth)
        sites = [Site(tower.name, layer) for layer in tower.sites if layer >= first]
        if not 0 <= first < tower.depth or not sites:
            raise ValueError(
                f"`from_layer` of prune_tokens must be between 0 and {tower.depth - 1}, got "
                f"{first}."
            )
        selection = Selection(subject, [selector_of(self.method)], first)
        edit = PruneEdit(self, sites, selection)
        return Prepared(edits=(edit,), listeners=selection.statistics.listeners, before=edit.before)


def prune_tokens(
    method: How = "faster_vlm", keep: float = 0.5, from_layer: int | None = None
) -> PruneTokens:
    """Hide image tokens from a layer of the language model on.

    Args:
        method: whose score decides, see `analysis.vision.pruning`.
        keep: share of the tokens of each image (or tile of one; FastV: of each prompt) that stays.
        from_layer: first layer in which dropped tokens are hidden, counted from 0. FastV takes its
            score from the layer before, and by default begins as deep as layer 2 of 32; the others
            take theirs from the vision tower and begin at layer 0.

    >>> prune_tokens("fastv", 0.25).label
    'prune_tokens(fastv, keep=0.25)'
    """
    selector_of(method)
    if not 0 < keep <= 1:
        raise ValueError(f"`keep` of prune_tokens must lie between 0 and 1, got {keep:g}.")
    return PruneTokens(method, keep, from_layer)
