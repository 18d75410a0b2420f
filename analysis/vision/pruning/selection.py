"""Run some ways of choosing image tokens in the model's own forward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.vision.patch_statistics import PatchStatistics
from analysis.vision.pruning.evit import Evit
from analysis.vision.pruning.faster_vlm import FasterVlm
from analysis.vision.pruning.fastv import FastV
from analysis.vision.pruning.flowcut import FlowCut
from analysis.vision.pruning.hiprune import HiPrune
from analysis.vision.pruning.selector import Depths, Selector, Tile, budget
from analysis.vision.seeing import VISION, seeing_tower
from probes.tokens.correspondence import Correspondence, correspondence, owners

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject
    from probes.tokens.map import TowerTokens

SELECTORS: dict[str, Selector] = {
    selector.name: selector for selector in (FasterVlm(), Evit(), HiPrune(), FlowCut(), FastV())
}
FASTV_DEPTH = 2 / 32


def selector_of(name: str) -> Selector:
    """The way of choosing that has this name.

    Raises:
        ValueError: there is none; the sentence names those that there are.
    """
    if name not in SELECTORS:
        raise ValueError(
            f"A way of choosing image tokens must be one of {', '.join(SELECTORS)}, got {name!r}."
        )
    return SELECTORS[name]


def first_pruned_layer(method: str, given: int | None, depth: int) -> int:
    """From which of ``depth`` layers tokens are hidden, unless a layer is given.

    >>> [first_pruned_layer("fastv", None, depth) for depth in (32, 4)]
    [2, 1]
    """
    if given is not None:
        return given
    return max(1, round(FASTV_DEPTH * depth)) if method == "fastv" else 0


@dataclass(frozen=True)
class _Prompts:
    """The batch that runs.

    Attributes:
        read: the language model's map.
        position: long ``[position]``: its image positions.
        places: the patches they stand for, where a selector reads the vision tower.
    """

    read: TowerTokens
    position: Tensor
    places: Correspondence | None


class Selection:
    """Some selectors on one subject: what they must hear, and what they keep of a batch.

    Attributes:
        depths: where the subject's layers are.

    Raises:
        ValueError: a selector does not fit the subject.
    """

    def __init__(self, subject: Subject, selectors: Sequence[Selector], pruned_from: int) -> None:
        self.selectors = {selector.name: selector for selector in selectors}
        self.depths = Depths(0, 0, pruned_from)
        by_vision = [s for s in selectors if s.among == "tile"]
        if by_vision:
            tower = seeing_tower(subject, by_vision[0].name)
            features = feature_layer(subject, tower.depth)
            self.depths = Depths(tower.depth, features, pruned_from)
        needs = {need for s in selectors for need in s.needs(self.depths)}
        for need in sorted(needs):
            if need.layer not in subject.towers[need.tower].sites:
                raise ValueError(
                    f"Layer {need.layer} of {need.tower} must have softmax attention to choose "
                    "image tokens by it, it has none. Choose another method."
                )
        self._by_vision = bool(by_vision)
        self.statistics = PatchStatistics(frozenset(needs))
        self._prompts: _Prompts | None = None

    def begin(self, batch: Batch, tower: str) -> None:
        """Get ready for a batch whose examples have images.

        Raises:
            CorrespondenceError: it is not known which patches positions stand for.
        """
        read = batch.tokens[tower]
        position = read.has_role("image").nonzero()[:, 0]
        places = correspondence(batch.tokens, tower, VISION) if self._by_vision else None
        self._prompts = _Prompts(read, position, places)
        self.statistics.forget()

    def kept(self, name: str, keep: float) -> Tensor:
        """Bool ``[position]``: the image positions that a selector keeps.

        Positions that stand for no patch (a CLS token that is read) are kept by selectors that read
        the vision tower, and count for nothing.

        Args:
            keep: share of the tokens of each image (FastV: of each prompt), at least one.
        """
        assert self._prompts is not None
        selector, prompts = self.selectors[name], self._prompts
        places = prompts.places if selector.among == "tile" else None
        seen = {
            need: self.statistics.at_positions(need, places).cpu()
            for need in selector.needs(self.depths)
        }
        found = torch.ones(len(prompts.position), dtype=torch.bool)
        for mine in self._groups(selector):
            at = prompts.position[mine]
            tile = Tile(prompts.read.row[at], prompts.read.column[at])
            columns = {need: values[mine] for need, values in seen.items()}
            count = budget(keep, len(mine))
            found[mine] = selector.kept(columns, self.depths, tile, count)
        return found

    def _groups(self, selector: Selector) -> list[Tensor]:
        """The positions that compete, as indices into all image positions."""
        assert self._prompts is not None
        read, position = self._prompts.read, self._prompts.position
        whole = torch.ones(len(position), dtype=torch.bool)
        if selector.among == "prompt":
            group = read.example[position]
        else:
            assert self._prompts.places is not None
            group, whole = owners(read, position), self._prompts.places.placed
        return [
            ((group == number) & whole).nonzero()[:, 0] for number in group[whole].unique().tolist()
        ]


def feature_layer(subject: Subject, depth: int) -> int:
    """The layer of the vision tower whose output the language model reads: the last, or what the
    configuration says (LLaVA: the last but one).
    """
    value = getattr(subject.config, "vision_feature_layer", None)
    if isinstance(value, (list, tuple)) and value:
        value = value[-1]
    if not isinstance(value, int):
        return depth - 1
    # States are counted from the embeddings: state k is the output of layer k - 1.
    layer = depth + value if value < 0 else value - 1
    return min(max(layer, 0), depth - 1)
