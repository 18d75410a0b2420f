"""The token map: for every position of every input, what it is and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import pandas as pd

ROLES = ("bos", "system", "text", "image", "special", "cls", "register", "generated", "pad")
"""What a position can be. A role is stored as its index in this tuple."""


@dataclass(frozen=True)
class TowerTokens:
    """The positions that one tower sees in one batch, as flat columns of length ``n``.

    A *row* is one sequence as the tower sees it (one prompt; one image or tile; one packed image).
    Row ``r`` holds the flat positions ``starts[r]`` to ``starts[r + 1]``, in the order in which
    the model runs them. Columns that do not apply hold -1 (NaN for boxes).
    """

    tower: str
    starts: Tensor
    """Long ``[rows + 1]``: where each row begins, and the total."""
    example: Tensor
    """Long ``[n]``: index of the example in the batch."""
    role: Tensor
    """Long ``[n]``: index in ``ROLES``."""
    ids: Tensor
    """Long ``[n]``: token id, -1 for patches."""
    image: Tensor
    """Long ``[n]``: index of the image within its example."""
    tile: Tensor
    """Long ``[n]``: index of the tile within its image (0 for the thumbnail or the only one)."""
    row: Tensor
    """Long ``[n]``: patch row within the grid of its tile."""
    column: Tensor
    """Long ``[n]``: patch column within the grid of its tile."""
    box: Tensor
    """Float ``[n, 4]``: left, top, right, bottom in pixels of the original image."""
    text: tuple[str, ...] = field(default=())
    """The token as text, empty if not known."""

    def __post_init__(self) -> None:
        n = int(self.starts[-1])
        for name in ("example", "role", "ids", "image", "tile", "row", "column", "box"):
            column = getattr(self, name)
            if column.shape[0] != n:
                raise ValueError(
                    f"Column {name!r} of the token map of tower {self.tower!r} must have {n} "
                    f"positions, got {column.shape[0]}."
                )

    @property
    def rows(self) -> int:
        return self.starts.numel() - 1

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def lengths(self) -> Tensor:
        """Long ``[rows]``: number of positions in each row."""
        return self.starts[1:] - self.starts[:-1]

    @property
    def position(self) -> Tensor:
        """Long ``[n]``: position within its row."""
        return torch.arange(len(self)) - self.starts[:-1].repeat_interleave(self.lengths)

    def has_role(self, *names: str) -> Tensor:
        """Bool ``[n]``: whether a position has one of these roles."""
        wanted = torch.tensor([ROLES.index(name) for name in names])
        return torch.isin(self.role, wanted)

    def to_frame(self) -> pd.DataFrame:
        """One line per position; role as a word, boxes as four columns."""
        import pandas as pd

        row_of = torch.arange(self.rows).repeat_interleave(self.lengths)
        frame = pd.DataFrame(
            {
                "tower": self.tower,
                "sequence": row_of.numpy(),
                "position": self.position.numpy(),
                "example": self.example.numpy(),
                "role": [ROLES[index] for index in self.role.tolist()],
                "id": self.ids.numpy(),
                "text": list(self.text) if self.text else [""] * len(self),
                "image": self.image.numpy(),
                "tile": self.tile.numpy(),
                "row": self.row.numpy(),
                "column": self.column.numpy(),
            }
        )
        for index, edge in enumerate(("left", "top", "right", "bottom")):
            frame[edge] = self.box[:, index].numpy()
        return frame

    def with_generated(self, count: int) -> TowerTokens:
        """The same rows, each followed by ``count`` positions of role ``generated``."""
        if count == 0:
            return self
        pieces = [torch.arange(int(a), int(b)) for a, b in self._bounds()]
        filler = len(self)
        index = torch.cat([torch.cat([piece, torch.full((count,), filler)]) for piece in pieces])
        new = index == filler
        example = self.example[self.starts[:-1]].repeat_interleave(self.lengths + count)

        def extend(column: Tensor, value: float) -> Tensor:
            pad = torch.full((1, *column.shape[1:]), value, dtype=column.dtype)
            return torch.cat([column, pad])[index]

        text = (*self.text, "") if self.text else ()
        return replace(
            self,
            starts=self.starts + count * torch.arange(self.rows + 1),
            example=example,
            role=torch.where(new, ROLES.index("generated"), extend(self.role, 0)),
            ids=extend(self.ids, -1),
            image=extend(self.image, -1),
            tile=extend(self.tile, -1),
            row=extend(self.row, -1),
            column=extend(self.column, -1),
            box=extend(self.box, float("nan")),
            text=tuple(text[i] for i in index.tolist()) if text else (),
        )

    def _bounds(self) -> list[tuple[int, int]]:
        edges = self.starts.tolist()
        return list(pairwise(edges))


@dataclass(frozen=True)
class TokenMap:
    """The token maps of all towers of a subject for one batch."""

    towers: Mapping[str, TowerTokens]

    def __getitem__(self, tower: str) -> TowerTokens:
        if tower not in self.towers:
            raise KeyError(
                f"The token map covers {', '.join(self.towers) or 'no tower'}, got {tower!r}."
            )
        return self.towers[tower]

    def __contains__(self, tower: str) -> bool:
        return tower in self.towers

    @property
    def frame(self) -> pd.DataFrame:
        """One line per position of every tower."""
        import pandas as pd

        frames = [tokens.to_frame() for tokens in self.towers.values()]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def blank_tokens(tower: str, lengths: list[int], examples: list[int], role: str) -> TowerTokens:
    """Rows of the given lengths in which every position has one role and nothing else is known.

    >>> blank_tokens("language", [2, 3], [0, 1], "text").position.tolist()
    [0, 1, 0, 1, 2]
    """
    size = torch.tensor(lengths, dtype=torch.long)
    n = int(size.sum())
    unknown = torch.full((n,), -1, dtype=torch.long)
    return TowerTokens(
        tower=tower,
        starts=torch.cat([torch.zeros(1, dtype=torch.long), size.cumsum(0)]),
        example=torch.tensor(examples, dtype=torch.long).repeat_interleave(size),
        role=torch.full((n,), ROLES.index(role), dtype=torch.long),
        ids=unknown,
        image=unknown.clone(),
        tile=unknown.clone(),
        row=unknown.clone(),
        column=unknown.clone(),
        box=torch.full((n, 4), float("nan")),
    )
