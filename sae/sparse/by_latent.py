"""Products with strengths of a few latents per row, each in the order that suits memory."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


def decode(
    values: Float[Tensor, "batch k"],
    indices: Int[Tensor, "batch k"],
    decoder: Float[Tensor, "latent width"],
) -> Float[Tensor, "batch width"]:
    """The sum of each row's decoder rows, weighted by its strengths."""
    return functional.embedding_bag(indices, decoder, mode="sum", per_sample_weights=values)


class ByLatent:
    """Which rows each latent was chosen at: the matrix of strengths, transposed.

    Gradients need, latent by latent, the rows ``[batch width]`` it was chosen at. They fit into a
    cache where the weights ``[latent width]`` do not, so this order is several times faster than
    going through rows and adding to weights.
    """

    def __init__(self, indices: Int[Tensor, "batch k"], latents: int) -> None:
        self.batch, self.k = indices.shape
        self.latents = latents
        ordered, self._order = indices.flatten().sort(stable=True)
        self._rows = self._order // max(self.k, 1)
        bounds = torch.arange(latents + 1, device=indices.device)
        self._offsets = torch.searchsorted(ordered, bounds)

    def rows(
        self, values: Float[Tensor, "batch k"], x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "latent width"]:
        """``S.T @ x``: for each latent the sum of its rows, weighted by ``values``."""
        return functional.embedding_bag(
            self._rows,
            x,
            self._offsets,
            mode="sum",
            per_sample_weights=values.flatten()[self._order],
            include_last_offset=True,
        )

    def dots(
        self, weights: Float[Tensor, "latent width"], x: Float[Tensor, "batch width"]
    ) -> Float[Tensor, "batch k"]:
        """The products of each row with the weights of its latents."""
        empty = x.new_zeros(self._rows.shape)
        shape = (self.latents, self.batch)
        with warnings.catch_warnings():
            # Torch announces once per process that compressed rows are in beta state.
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            pattern = torch.sparse_csr_tensor(
                self._offsets, self._rows, empty, shape, check_invariants=False
            )
            sampled = torch.sparse.sampled_addmm(pattern, weights, x.T, beta=0.0).values()
        found = torch.empty_like(sampled)
        found[self._order] = sampled
        return found.view(self.batch, self.k)
