"""What a coder is: head outputs to few active latents and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae.coders.defaults import Defaults

if TYPE_CHECKING:
    from sae.training.config import TrainConfig


@dataclass(frozen=True)
class Codes:
    """Active latents, those of each row side by side.

    Attributes:
        values: strengths; 0 where fewer are active than there is room for.
        indices: which latent each is.
    """

    values: Float[Tensor, "batch active"]
    indices: Int[Tensor, "batch active"]

    def dense(self, latents: int) -> Float[Tensor, "batch latent"]:
        """The same with a column for every latent."""
        found = self.values.new_zeros(self.values.shape[0], latents)
        return found.scatter_add(1, self.indices, self.values)


@dataclass(frozen=True)
class Moment:
    """Where a training is when a loss is asked for.

    Attributes:
        step: optimiser steps that were taken.
        progress: 0 to 1, share of the training that lies behind.
        warmth: 0 to 1, factor of sparsity losses while they warm up.
        dead: which latents have not fired for as long as counts as dead; None before that can be.
        fast: whether the sparse path may be taken where the coder has one.
    """

    step: int = 0
    progress: float = 0.0
    warmth: float = 1.0
    dead: Bool[Tensor, " latent"] | None = None
    fast: bool = True


@dataclass(frozen=True)
class Losses:
    """What a batch costs.

    Attributes:
        total: scalar with its graph: what is minimised.
        parts: each part by name, detached scalars, weights included; ``reconstruction`` is the
            mean over rows of the squared error summed over the width. They add up to ``total``
            unless the kind says otherwise.
        fired: how many rows of the batch each latent fired at.
        reconstruction: of each row, detached.
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor]
    fired: Int[Tensor, " latent"]
    reconstruction: Float[Tensor, "batch width"] = field(repr=False)


class Coder(nn.Module, ABC):
    """A sparse autoencoder of the concatenated head outputs z of a layer.

    ``reconstruction = encode(x) @ decoder + decoder_bias``. Both matrices have a row per latent:
    ``encoder [latent width]``, ``decoder [latent width]``; so a row is a direction among head
    outputs, and its slices of ``head_width`` belong to heads one after the other.

    Attributes:
        width: heads x head width of the site.
        latents: how many features there are.
        centred: whether ``decoder_bias`` is taken from the input before it is encoded.
        about: what it was trained on, JSON values only: ``site``, ``heads``, ``head_width``,
            ``subject``, ``provenance``, ``config``; empty before it is trained. Written and read
            with it (`sae.exchange.headscope_folder`).
    """

    about: dict[str, Any]
    encoder_bias: nn.Parameter
    architecture: ClassVar[str]
    """Name in files and on the command line."""
    knows_auxk: ClassVar[bool] = False
    """Whether the loss holds a part for dead latents (`auxiliary`); others are resampled."""
    needs_k: ClassVar[bool] = False
    """Whether `TrainConfig.k` says how many latents fire."""
    unit_decoder: bool = True
    """Whether decoder rows are kept at length 1 while training (`decoder_rules`)."""

    def __init__(self, width: int, latents: int, *, centred: bool = True, seed: int = 0) -> None:
        super().__init__()
        if width < 1 or latents < 1:
            raise ValueError(
                f"`width` and `latents` must be positive, got {width} and {latents}. Give the "
                "width of the site and a number of features."
            )
        self.width, self.latents, self.centred = width, latents, centred
        self.about = {}
        self._per_latent: dict[str, tuple[float, bool]] = {}
        self.learn_per_latent("encoder_bias", 0.0)
        self.decoder_bias = nn.Parameter(torch.zeros(width))
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(latents, width, generator=generator)
        self.decoder = nn.Parameter(rows / rows.norm(dim=1, keepdim=True))
        self.encoder = nn.Parameter(self.decoder.detach().clone())

    def learn_per_latent(self, name: str, start: float, *, as_strengths: bool = True) -> None:
        """Add a parameter ``[latent]``, and say what new units and new beginnings do to it.

        Args:
            start: of all latents, also of those that begin again.
            as_strengths: whether it is in units of strengths; else it has none.
        """
        self.register_parameter(name, nn.Parameter(torch.full((self.latents,), float(start))))
        self._per_latent[name] = (start, as_strengths)

    @classmethod
    def defaults(cls, width: int, latents: int) -> Defaults:
        """How the source of this kind trains it; of rows whose mean norm is the root of the width.

        A kind that names none is trained as TopK coders are.
        """
        return Defaults.of_topk(latents)

    @classmethod
    def options_of(cls, config: TrainConfig, width: int) -> dict[str, Any]:
        """Arguments of the constructor that a training's settings decide.

        ``config.options`` is not among them: `make_coder` lays it over these.
        """
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """What the constructor of this kind needs beyond width, latents and centred (for JSON)."""
        return {}

    def pre_activations(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch latent"]:
        """What the activation function decides upon.

        Raises:
            ValueError: rows of another width.
        """
        if x.shape[-1] != self.width:
            raise ValueError(
                f"Rows must have the coder's width, {self.width}, got {list(x.shape)}. Give head "
                "outputs of the site that it was trained on, heads side by side."
            )
        if not self.centred:
            return nn.functional.linear(x, self.encoder, self.encoder_bias)
        # Centred before the product: where rows lie far from 0, x W - b W loses the digits that
        # bfloat16 has. Its gradient is taken from the second form, a product with a vector.
        centre = self.decoder_bias.detach()
        bias = self.encoder_bias
        if self.decoder_bias.requires_grad and torch.is_grad_enabled():
            bias = bias - self.encoder @ (self.decoder_bias - centre)
        return nn.functional.linear(x - centre, self.encoder, bias)

    @abstractmethod
    def activate(self, pre: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        """Strengths of all latents, zero where a latent does not fire; as used, not as trained."""

    @abstractmethod
    def losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        """The training loss of this kind on a batch."""

    def encode(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch latent"]:
        """Strengths of all latents at each row."""
        return self.activate(self.pre_activations(x))

    def codes(self, x: Float[Tensor, "batch width"]) -> Codes:
        """The same, active latents only, strongest first."""
        strengths = self.encode(x)
        active = int((strengths != 0).sum(1).amax()) if x.shape[0] else 0
        found = strengths.topk(max(active, 1), dim=1)
        return Codes(found.values, found.indices)

    def decode(self, strengths: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch width"]:
        """The head outputs that such strengths stand for."""
        return strengths @ self.decoder + self.decoder_bias

    def forward(self, x: Float[Tensor, "batch width"]) -> Float[Tensor, "batch width"]:
        """The reconstruction of head outputs."""
        return self.decode(self.encode(x))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """What an optimiser is given; kinds may let some parameters move faster than others."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        """Turn a coder of ``x / factor`` into one of ``x``: strengths grow with the input.

        What is computed is exactly that; weights of training losses stay as they are. The
        activation must be homogeneous in pre-activations and what is `learn_per_latent`.
        """
        for parameter in self._in_strengths():
            parameter.mul_(factor)
        self.decoder_bias.mul_(factor)

    @torch.no_grad()
    def scale_strengths(self, factors: Float[Tensor, " latent"]) -> None:
        """Measure strengths in other units, decoder rows in return: reconstructions stay.

        Only where each latent decides for itself whether it fires: kinds that choose between
        latents refuse.

        Args:
            factors: positive; the new strength of a latent is so many times the old one.
        """
        for parameter in self._in_strengths():
            parameter.mul_(factors)
        self.encoder.mul_(factors[:, None])
        self.decoder.div_(factors[:, None])

    @torch.no_grad()
    def restart(
        self,
        which: Int[Tensor, " chosen"],
        directions: Float[Tensor, "chosen width"],
        encoder_norm: float,
    ) -> None:
        """Give latents new directions (of length 1), what is `learn_per_latent` its start."""
        self.decoder[which] = directions.to(self.decoder)
        self.encoder[which] = (directions * encoder_norm).to(self.encoder)
        for name, (start, _) in self._per_latent.items():
            self.get_parameter(name)[which] = start

    def _in_strengths(self) -> list[nn.Parameter]:
        return [self.get_parameter(n) for n, (_, scales) in self._per_latent.items() if scales]

    def as_used(self) -> Coder:
        """The coder that files of other tools describe: itself, or what replaces it after training.

        Kinds that choose over a batch become one with a threshold here.
        """
        return self
