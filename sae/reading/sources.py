"""What the keys of an attention call are: words, or patches that can be drawn on the picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from probes.tokens.map import TokenMap, TowerTokens

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Sources:
    """The keys of one row of a pattern.

    Attributes:
        tower: whose token map they are positions of: for cross attention another than the
            destination's.
        index: flat position of each, -1 where it is not known.
    """

    tower: str
    index: Int[Tensor, "source"]
    tokens: TokenMap = field(repr=False)

    def __len__(self) -> int:
        return self.index.numel()

    @property
    def map(self) -> TowerTokens:
        """The token map of their tower."""
        return self.tokens[self.tower]

    def frame(self, values: Float[Tensor, "source"]) -> pd.DataFrame:
        """One line per source of known place: what it is and its value.

        Columns: those of `probes.tokens.map.TowerTokens.to_frame`, then ``value``.
        """
        known = self.index >= 0
        lines = self.map.to_frame().iloc[self.index[known].numpy()].reset_index(drop=True)
        lines["value"] = values[known].cpu().numpy()
        return lines

    def on_patches(
        self, values: Float[Tensor, "source"]
    ) -> dict[tuple[int, int, int], Float[Tensor, "row column"]]:
        """Values laid out as the patches lie: by (example, image, tile), NaN where none was read.

        Patches that the token map knows no place of are left out.
        """
        tokens, known = self.map, self.index >= 0
        index, values = self.index[known], values[known].cpu()
        placed = (tokens.row[index] >= 0) & (tokens.column[index] >= 0)
        index, values = index[placed], values[placed]
        names = torch.stack([tokens.example, tokens.image, tokens.tile], 1)
        grids: dict[tuple[int, int, int], Tensor] = {}
        for name in names[index].unique(dim=0):
            mine = (names[index] == name).all(1)
            # The whole tile gives the size: a causal reader may not have read its last patches.
            tile = (names == name).all(1) & (tokens.row >= 0)
            size = (int(tokens.row[tile].max()) + 1, int(tokens.column[tile].max()) + 1)
            grid = torch.full(size, float("nan"), dtype=values.dtype)
            grid[tokens.row[index[mine]], tokens.column[index[mine]]] = values[mine]
            example, image, number = name.tolist()
            grids[example, image, number] = grid
        return grids
