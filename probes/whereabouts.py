"""What the model is running: the batch, the forward of a generation, the positions of a call."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.alignment import GROWING_TOWERS, flat_positions, tokens_while_generating
from probes.masks import AttentionMask
from probes.module_stack import ModuleStack
from probes.moment import Moment
from probes.tokens.map import TokenMap

if TYPE_CHECKING:
    from probes.inputs import Batch

_MASKS_KEPT = 4


@dataclass(frozen=True)
class _Running:
    tokens: TokenMap | None
    examples: int | None
    generated: int
    first_forward: int
    batch: Batch | None
    began: int
    """How many forwards there had been when it began."""


class Whereabouts:
    """The batch that a thread is running and how far it has got.

    What layers of one forward share (positions, masks) is worked out once per forward.
    """

    def __init__(self) -> None:
        self._running: list[_Running] = []
        self._stack: ModuleStack | None = None
        self._shared: dict[Any, Any] = {}
        self._shared_forward = -1

    def follow(self, stack: ModuleStack | None) -> None:
        """Count forwards by this stack from now on."""
        self._stack = stack
        self._shared.clear()

    def begin(self, batch: Batch, generated: int, step: int = 0) -> None:
        """A batch is about to run, and may generate so many tokens.

        Args:
            step: which forward of its generation comes next.
        """
        tokens = tokens_while_generating(batch.tokens, generated)
        first = self._forwards - step
        running = _Running(tokens, batch.size or None, generated, first, batch, self._forwards)
        self._running.append(running)
        self._shared.clear()

    def end(self) -> None:
        """The batch that began last is done."""
        done = self._running.pop()
        if self._running:
            # Its forwards are no steps of the generation that goes on.
            outer, apart = self._running[-1], self._forwards - done.began
            self._running[-1] = replace(outer, first_forward=outer.first_forward + apart)
        self._shared.clear()

    @property
    def examples(self) -> int | None:
        """Number of examples in the batch, None if nobody said."""
        return self._running[-1].examples if self._running else None

    @property
    def batch(self) -> Batch | None:
        """The batch that was announced last and is still running."""
        return self._running[-1].batch if self._running else None

    @property
    def moment(self) -> Moment:
        """This forward, as edits see it; the same object for all of its layers."""
        shared = self._of_this_forward()
        if "moment" not in shared:
            generated = self._running[-1].generated if self._running else 0
            shared["moment"] = Moment(self.batch, self.tokens, generated, self.step)
        return shared["moment"]

    @property
    def tokens(self) -> TokenMap | None:
        return self._running[-1].tokens if self._running else None

    @property
    def step(self) -> int:
        """0 for the prompt, n while the n-th generated token is fed back."""
        if not self._running or not self._running[-1].generated:
            return 0
        return max(0, self._forwards - self._running[-1].first_forward - 1)

    def positions(
        self,
        tower: str,
        batch: int,
        length: int,
        offset: int,
        packed: bool,
        device: torch.device,
    ) -> Tensor | None:
        """Long ``[batch length]``: flat positions in the tower's token map, None if unknown."""
        if self.tokens is None or tower not in self.tokens:
            return None
        shared, key = self._of_this_forward(), (tower, batch, length, offset, packed, device)
        if key not in shared:
            tokens, last = self.tokens[tower], None
            generated = self._running[-1].generated
            if generated and tower in GROWING_TOWERS and tokens.rows:
                last = int(tokens.lengths.max()) - generated - 1 + self.step
            index = flat_positions(tokens, batch, length, offset=offset, last=last, packed=packed)
            shared[key] = None if index is None else index.to(device)
        return shared[key]

    def shared_mask(self, mask: AttentionMask) -> AttentionMask:
        """One mask object for all layers that were given the same tensor."""
        masks: dict[Any, AttentionMask] = self._of_this_forward().setdefault("masks", {})
        key = (id(mask.tensor), mask.queries, mask.keys, mask.causal)
        if key not in masks and len(masks) == _MASKS_KEPT:
            masks.pop(next(iter(masks)))  # models that make a new mask for each layer
        return masks.setdefault(key, mask)

    @property
    def _forwards(self) -> int:
        return 0 if self._stack is None else self._stack.forwards

    def _of_this_forward(self) -> dict[Any, Any]:
        if self._shared_forward != self._forwards:
            self._shared.clear()
            self._shared_forward = self._forwards
        return self._shared
