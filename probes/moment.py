"""What all layers of one forward share: the batch, its token map, and what was worked out once."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from probes.tokens.map import ROLES, TokenMap

if TYPE_CHECKING:
    from probes.inputs import Batch

T = TypeVar("T")


@dataclass
class Moment:
    """One forward of a batch, as edits of any of its layers see it.

    Attributes:
        batch: what was announced, ``None`` where the model was called by itself.
        tokens: its token map, generated positions included.
        generated: how many tokens the model may generate.
        step: 0 for the prompt, n while the n-th generated token is fed back.
    """

    batch: Batch | None = None
    tokens: TokenMap | None = None
    generated: int = 0
    step: int = 0
    _memory: dict[Hashable, Any] = field(default_factory=dict, repr=False)

    def shared(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for all layers of this forward."""
        if key not in self._memory:
            self._memory[key] = make()
        return self._memory[key]

    def with_role(self, tower: str, index: Tensor, names: tuple[str, ...]) -> Tensor:
        """Bool, the shape of ``index``: which flat positions of a tower have one of these roles.

        Raises:
            ValueError: a name that is no role.
        """
        unknown = [name for name in names if name not in ROLES]
        if unknown:
            raise ValueError(
                f"A role must be one of {', '.join(ROLES)}, got {unknown[0]!r}. "
                "Give roles or a list of positions."
            )
        assert self.tokens is not None
        tokens = self.tokens[tower]

        def find() -> tuple[Tensor, Tensor]:
            wanted = torch.tensor([ROLES.index(name) for name in names])
            found = torch.isin(tokens.role[index.cpu()], wanted) & (index.cpu() >= 0)
            return index, found.to(index.device)  # the index is kept, so that its id stays its own

        return self.shared(("role", tower, id(index), names), find)[1]
