"""BatchTopK: k latents per row on average, chosen over the batch; a threshold afterwards."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.coders.coder import Coder, Codes, Losses, Moment
from sae.coders.jump_relu import JumpReLU
from sae.coders.topk import TopK
from sae.sparse.losses import sparse_topk_losses

_SURELY_BELOW = 0.5


class BatchTopK(TopK):
    """While training, the ``k · batch`` largest positive pre-activations of the batch fire.

    Used, a latent fires where its pre-activation is above one threshold: the running mean of the
    least strength that fired in a batch. `as_used` is the JumpReLU coder with that threshold.

    Source: Bussmann et al. 2024 (arXiv 2412.06410). The mean moves by 0.01 a step as SAELens' does
    and begins at the first batch's value as dictionary_learning's does, so that it is not drawn
    towards 0 in short trainings.

    Attributes:
        threshold: [] in units of strengths; negative before the first batch, when every positive
            pre-activation fires.

    Args:
        threshold_rate: how far the threshold moves towards that of a batch; above 0, at most 1.

    Raises:
        ValueError: k or a rate out of range.
    """

    architecture: ClassVar[str] = "batch_topk"
    threshold: Tensor

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
        threshold_rate: float = 0.01,
    ) -> None:
        if not 0 < threshold_rate <= 1:
            raise ValueError(
                f"`threshold_rate` must be above 0 and at most 1, got {threshold_rate}. Try 0.01."
            )
        super().__init__(
            width,
            latents,
            centred=centred,
            seed=seed,
            k=k,
            auxiliary=auxiliary,
            auxiliary_k=auxiliary_k,
        )
        self.threshold_rate = threshold_rate
        self.register_buffer("threshold", torch.tensor(-1.0))

    @property
    def settings(self) -> dict[str, Any]:
        return {**super().settings, "threshold_rate": self.threshold_rate}

    def activate(self, pre: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        return pre.relu() * (pre > self.threshold)

    def codes(self, x: Float[Tensor, "batch width"]) -> Codes:
        return Coder.codes(self, x)

    def losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        if self.sparse_at(moment):
            follow = self._follow if self.training else None
            return sparse_topk_losses(self, x, moment, over_batch=True, follow=follow)
        return self.dense_losses(x, moment)

    def trained_strengths(
        self, pre: Float[Tensor, "batch latent"]
    ) -> Float[Tensor, "batch latent"]:
        """The largest of the batch, k for each row on average.

        In training mode the threshold follows.
        """
        where = self._strongest(pre.detach())
        values = pre.flatten()[where]
        if self.training:
            self._follow(values.detach())
        empty = pre.new_zeros(pre.numel())
        return empty.scatter(0, where, values).view_as(pre)

    @torch.no_grad()
    def set_threshold(self, x: Float[Tensor, "batch width"]) -> None:
        """Give the threshold that a batch has: for coders that were not trained here."""
        pre = self.pre_activations(x)
        found = pre.flatten()[self._strongest(pre)]
        self.threshold.fill_(-1.0)
        self._follow(found)

    def _strongest(self, pre: Float[Tensor, "batch latent"]) -> Int[Tensor, " chosen"]:
        """Where the k times batch largest positive values lie in the flattened matrix."""
        flat, most = pre.flatten(), self.k * pre.shape[0]
        # What is far below the threshold is not searched: a tenth of the time for a large
        # dictionary. Whether enough lies above is counted, so what is found is the same.
        for least in (_SURELY_BELOW * self.threshold.item(), 0.0):
            found = (flat > max(least, 0.0)).nonzero().squeeze(1)
            if found.numel() >= most:
                return found[flat[found].topk(most, sorted=False).indices]
        return found

    def _follow(self, chosen: Float[Tensor, " chosen"]) -> None:
        if not chosen.numel():
            return
        least = chosen.amin().to(self.threshold)
        if self.threshold < 0:
            self.threshold.copy_(least)
        else:
            self.threshold.lerp_(least, self.threshold_rate)

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        super().rescale(factor)
        if self.threshold > 0:
            self.threshold.mul_(factor)

    @torch.no_grad()
    def as_used(self) -> JumpReLU:
        """A JumpReLU coder with this threshold at every latent; it has parameters of its own."""
        used = JumpReLU(self.width, self.latents, centred=self.centred).to(self.decoder)
        for name, mine in self.named_parameters():
            getattr(used, name).copy_(mine).requires_grad_(mine.requires_grad)
        used.threshold.fill_(self.threshold.clamp_min(0).item())
        used.about = dict(self.about)
        return used.train(self.training)
