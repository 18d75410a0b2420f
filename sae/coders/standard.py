"""ReLU with an L1 loss: the coder that shrinks what it reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.coder import Coder, Losses, Moment
from sae.coders.decoder_rules import with_unit_rows
from sae.coders.defaults import Defaults

if TYPE_CHECKING:
    from sae.training.config import TrainConfig

Form = Literal["april", "kissane"]
_APRIL_NORM = 0.1
_UNIT_NORM_SPARSITY = 0.1


class Standard(Coder):
    """Strengths are ReLU of the pre-activations; the loss pulls each towards 0.

    ``|x - x̂|² + sparsity Σ strength · |decoder row|``. A lone feature of strength ``a`` is read as
    ``a - sparsity / 2``: shrinkage, which gated and choosing kinds do not have.

    Two forms:

    - ``april`` (Anthropic, Circuits Updates April 2024): decoder rows have any length, start at
      0.1, the encoder at their transpose. `as_used` makes rows unit.
    - ``kissane`` (Kissane et al. 2024, arXiv 2406.17759, attention outputs): rows are kept at
      length 1, so the loss is the plain L1; the encoder starts on its own, from Kaiming's uniform
      distribution with bound ``sqrt(6 / latents)`` as the authors' code draws it.

    Args:
        sparsity: weight of the L1 loss, in units of strengths.
        form: which of the two.
    """

    architecture: ClassVar[str] = "standard"

    def __init__(
        self,
        width: int,
        latents: int,
        *,
        centred: bool = True,
        seed: int = 0,
        sparsity: float = 1.0,
        form: Form = "april",
    ) -> None:
        super().__init__(width, latents, centred=centred, seed=seed)
        if form not in get_args(Form):
            raise ValueError(f"`form` must be april or kissane, got {form!r}.")
        self.sparsity, self.form = sparsity, form
        self.unit_decoder = form == "kissane"
        with torch.no_grad():
            if form == "april":
                self.decoder.mul_(_APRIL_NORM)
                self.encoder.mul_(_APRIL_NORM)
            else:
                bound = (6 / latents) ** 0.5
                # A seed of its own: rows of the decoder must not come back in the encoder.
                generator = torch.Generator().manual_seed(seed + 1)
                self.encoder.uniform_(-bound, bound, generator=generator)

    @classmethod
    def defaults(cls, width: int, latents: int) -> Defaults:
        """dictionary_learning's for rows of norm 1, strengths being sqrt(width) times as large.

        At a width of 2,500 this is the 5 of Anthropic's April update. Kissane's released coders of
        unscaled rows have 0.8 to 3.0 by layer, mostly 1.
        """
        return Defaults(
            learning_rate=1e-3,
            betas=(0.9, 0.999),
            sparsity=_UNIT_NORM_SPARSITY * width**0.5,
            raw_sparsity=1.0,
            source="dictionary_learning's StandardTrainerAprilUpdate; Kissane et al. 2024",
        )

    @classmethod
    def options_of(cls, config: TrainConfig, width: int) -> dict[str, Any]:
        return {"sparsity": config.sparsity}

    @property
    def settings(self) -> dict[str, Any]:
        return {"sparsity": self.sparsity, "form": self.form}

    def activate(self, pre: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        return pre.relu()

    def losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        strengths = self.activate(self.pre_activations(x))
        reconstruction = self.decode(strengths)
        error = (x - reconstruction).pow(2).sum(1).mean()
        weighted = strengths if self.unit_decoder else strengths * self.decoder.norm(dim=1)
        sparsity = self.sparsity * moment.warmth * weighted.sum(1).mean()
        return Losses(
            error + sparsity,
            {"reconstruction": error.detach(), "sparsity": sparsity.detach()},
            (strengths > 0).sum(0),
            reconstruction.detach(),
        )

    def as_used(self) -> Coder:
        """With unit decoder rows, strengths in units of the reconstruction."""
        return with_unit_rows(self)
