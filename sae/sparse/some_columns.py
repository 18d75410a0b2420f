"""Products with strengths of many of a few latents: dense, on the columns of those alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.sparse.products import linear, rows_at_once


@dataclass(frozen=True)
class SomeColumns:
    """Strengths of the chosen among ``columns`` latents.

    Attributes:
        values: strengths.
        indices: which of the columns each belongs to.
        columns: how many there are.
    """

    values: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]
    columns: int

    def decode(self, decoder: Float[Tensor, "column width"]) -> Float[Tensor, "batch width"]:
        """The sum of each row's decoder rows, weighted by its strengths."""
        blocks = self._blocks()
        return torch.cat([linear(self._dense(self.values, it), decoder.T) for it in blocks])

    def gradients(
        self,
        x: Float[Tensor, "batch width"],
        decoder: Float[Tensor, "column width"],
        wanted: Float[Tensor, "batch width"],
    ) -> tuple[
        Float[Tensor, "batch k"], Float[Tensor, "column width"], Float[Tensor, "column width"]
    ]:
        """Of the strengths, of the encoder's rows and of the decoder's rows.

        Args:
            x: what was encoded.
            wanted: gradient of what `decode` gave.
        """
        of_values = torch.empty_like(self.values)
        of_encoder, of_decoder = torch.zeros_like(decoder), torch.zeros_like(decoder)
        for it in self._blocks():
            of_values[it] = linear(wanted[it], decoder).gather(1, self.indices[it])
            of_decoder += linear(self._dense(self.values, it).T, wanted[it].T)
            of_encoder += linear(self._dense(of_values, it).T, x[it].T)
        return of_values, of_encoder, of_decoder

    def _dense(self, values: Tensor, block: slice) -> Float[Tensor, "row column"]:
        chosen = values[block]
        found = chosen.new_zeros(chosen.shape[0], self.columns)
        return found.scatter_(1, self.indices[block], chosen)

    def _blocks(self) -> list[slice]:
        rows = rows_at_once(self.columns, self.values.device)
        return [slice(start, start + rows) for start in range(0, self.values.shape[0], rows)]
