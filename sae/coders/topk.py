"""TopK: each row keeps its k strongest latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.auxiliary import auxiliary_loss
from sae.coders.coder import Coder, Codes, Losses, Moment
from sae.sparse.losses import sparse_topk_losses

if TYPE_CHECKING:
    from sae.training.config import TrainConfig


class TopK(Coder):
    """Strengths are the k largest pre-activations of a row, after a ReLU; nothing is shrunk.

    The loss is ``|x - x̂|² + auxiliary · AuxK`` (`auxiliary_loss`).

    Source: Gao et al. 2024 (arXiv 2406.04093). We keep rows unit and take the parallel gradient
    away as dictionary_learning does.

    Args:
        k: latents per row.
        auxiliary: weight of the loss for dead latents; 0: none.
        auxiliary_k: dead latents per row that explain the error; None: half of the width.
    """

    architecture: ClassVar[str] = "topk"
    knows_auxk: ClassVar[bool] = True
    needs_k: ClassVar[bool] = True

    def __init__(
        self,
        width: int,
        latents: int,
        *,
        centred: bool = True,
        seed: int = 0,
        k: int = 32,
        auxiliary: float = 1 / 32,
        auxiliary_k: int | None = None,
    ) -> None:
        if not 1 <= k <= latents:
            raise ValueError(
                f"`k` must be between 1 and the number of latents, {latents}, got {k}. Choose "
                "fewer active latents or a larger dictionary."
            )
        super().__init__(width, latents, centred=centred, seed=seed)
        self.k, self.auxiliary = k, auxiliary
        self.auxiliary_k = max(width // 2, 1) if auxiliary_k is None else auxiliary_k

    @classmethod
    def options_of(cls, config: TrainConfig, width: int) -> dict[str, Any]:
        wanted = config.dead_features in (None, "auxk")
        return {
            "k": config.k,
            "auxiliary": config.auxiliary if wanted else 0.0,
            "auxiliary_k": config.auxiliary_k,
        }

    @property
    def settings(self) -> dict[str, Any]:
        return {"k": self.k, "auxiliary": self.auxiliary, "auxiliary_k": self.auxiliary_k}

    def activate(self, pre: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        return self._chosen(pre).dense(self.latents)

    def codes(self, x: Float[Tensor, "batch width"]) -> Codes:
        return self._chosen(self.pre_activations(x))

    def losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        if self.sparse_at(moment):
            return sparse_topk_losses(self, x, moment)
        return self.dense_losses(x, moment)

    def dense_losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        """The loss with a matrix of all latents: what a sparse path must agree with."""
        pre = self.pre_activations(x)
        strengths = self.trained_strengths(pre)
        reconstruction = self.decode(strengths)
        left = x - reconstruction
        error = left.pow(2).sum(1).mean()
        auxiliary = self._auxiliary(pre, left, moment)
        return Losses(
            error + auxiliary,
            {"reconstruction": error.detach(), "auxiliary": auxiliary.detach()},
            (strengths > 0).sum(0),
            reconstruction.detach(),
        )

    def sparse_at(self, moment: Moment) -> bool:
        """Whether the sparse path is taken: where it may be, and torch has its products.

        They know no type of half width, and CPUs and GPUs of NVIDIA and AMD alone.
        """
        known = self.decoder.dtype in (torch.float32, torch.float64)
        return moment.fast and known and self.decoder.device.type in ("cpu", "cuda")

    def trained_strengths(
        self, pre: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch latent"]:
        """Strengths while training; of TopK, as used."""
        return self.activate(pre)

    def _chosen(self, pre: Float[Tensor, "batch latent"]) -> Codes:
        found = pre.topk(self.k, dim=1)
        return Codes(found.values.relu(), found.indices)

    def _auxiliary(
        self,
        pre: Float[Tensor, "batch latent"],
        left: Float[Tensor, "batch width"],
        moment: Moment,
    ) -> Float[Tensor, ""]:
        if not self.auxiliary:
            return pre.new_zeros(())
        loss = auxiliary_loss(pre, self.decoder, left, moment.dead, self.auxiliary_k)
        return self.auxiliary * loss

    @torch.no_grad()
    def scale_strengths(self, factors: Float[Tensor, " latent"]) -> None:
        """Refused: other units of strengths would choose other latents.

        Raises:
            ValueError: unless all factors are the same.
        """
        if not torch.allclose(factors, factors[:1].expand_as(factors), rtol=1e-4):
            raise ValueError(
                f"Strengths of a {self.architecture} coder must keep their units, since latents "
                "are chosen by comparing them. Train with unit decoder rows."
            )
        super().scale_strengths(factors)
