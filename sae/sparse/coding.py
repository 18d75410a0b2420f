"""Encoding and decoding in one step, with sparse gradients of everything that is learnt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from sae.sparse.by_latent import ByLatent, decode
from sae.sparse.encoding import Dead, Strongest, encode
from sae.sparse.over_batch import encode_over_batch
from sae.sparse.some_columns import SomeColumns

_DENSE_UP_TO = 16
"""Dead latents per chosen one up to which products on all dead columns are faster (measured)."""


@dataclass(frozen=True)
class Coding:
    """A batch, encoded and decoded.

    Attributes:
        decoded: the sum of decoder rows, ``decoder_bias`` not added.
        explained: the same of the strongest dead latents, raw pre-activations as strengths; None
            where none were asked for.
        strengths: of the chosen latents, 0 where a pre-activation was negative; no gradient.
        indices: which latents these are.
    """

    decoded: Float[Tensor, "batch width"]
    explained: Float[Tensor, "batch width"] | None
    strengths: Float[Tensor, "batch k"]
    indices: Int[Tensor, "batch k"]


def sparse_coding(
    x: Float[Tensor, "batch width"],
    encoder: Float[Tensor, "latent width"],
    encoder_bias: Float[Tensor, " latent"],
    decoder: Float[Tensor, "latent width"],
    centre: Float[Tensor, " width"] | None,
    k: int,
    dead: Dead | None = None,
    *,
    over_batch: bool = False,
    dense_up_to: float = _DENSE_UP_TO,
) -> Coding:
    """Encode rows by their k strongest latents and decode them, differentiable in all tensors.

    Gradients are those of the plain form ``relu(topk((x - centre) @ encoder.T + encoder_bias)) @
    decoder`` (and of the same with the raw pre-activations of dead latents), reached through the
    chosen latents alone. First derivatives only. Under autocast the encoder's product is done in
    the lower type, all else in that of the weights.

    Args:
        x: rows, in the type of the weights.
        centre: what is taken from rows before they are encoded; None: nothing.
        k: latents per row, 1 to all.
        dead: latents that explain what is left as well.
        over_batch: choose the strongest of the whole batch, k for each row on average.
        dense_up_to: dead latents per chosen one up to which theirs are dense products.
    """
    kind = x.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    # Kernels of sparse products know no lower types.
    with torch.autocast(kind, enabled=False):
        outputs = _SparseCoding.apply(
            x, encoder, encoder_bias, decoder, centre, k, dead, over_batch, dense_up_to, low
        )
    decoded, explained, strengths, indices = outputs  # pyright: ignore[reportGeneralTypeIssues]
    return Coding(decoded, explained if dead else None, strengths, indices)


class _SparseCoding(torch.autograd.Function):
    """See `sparse_coding`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        encoder: Tensor,
        encoder_bias: Tensor,
        decoder: Tensor,
        centre: Tensor | None,
        k: int,
        dead: Dead | None,
        over_batch: bool,
        dense_up_to: float,
        low: torch.dtype | None,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        centred = x if centre is None else x - centre
        choose = encode_over_batch if over_batch else encode
        found, of_dead = choose(centred, encoder, encoder_bias, k, dead, low)
        strengths = found.values.relu_()
        decoded = decode(strengths, found.indices, decoder)
        explained, kept = None, ()
        ctx.dense = dead is not None and dead.latents.numel() <= dense_up_to * dead.k
        if dead is not None and of_dead is not None:
            kept = (of_dead.values, of_dead.indices, dead.latents)
            if ctx.dense:
                explained = _columns(of_dead, dead.latents).decode(decoder[dead.latents])
            else:
                explained = decode(of_dead.values, dead.latents[of_dead.indices], decoder)
        ctx.save_for_backward(centred, encoder, decoder, strengths, found.indices, *kept)
        ctx.centred, ctx.kind = centre is not None, x.device.type
        ctx.mark_non_differentiable(strengths, found.indices)
        return decoded, explained, strengths, found.indices

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        with torch.autocast(ctx.kind, enabled=False):
            return _SparseCoding._gradients(ctx, *outer)

    @staticmethod
    def _gradients(ctx: Any, *outer: Tensor | None) -> tuple[Tensor | None, ...]:
        x, encoder, decoder, strengths, indices, *dead = ctx.saved_tensors
        wanted = torch.zeros_like(x) if outer[0] is None else outer[0].contiguous()
        of_latent = ByLatent(indices, encoder.shape[0])
        of_decoder = of_latent.rows(strengths, wanted)
        of_values = of_latent.dots(decoder, wanted).mul_(strengths > 0)
        of_encoder = of_latent.rows(of_values, x)
        of_bias = torch.zeros_like(encoder[:, 0]).index_add_(
            0, indices.flatten(), of_values.flatten()
        )
        of_x = decode(of_values, indices, encoder) if ctx.needs_input_grad[0] else None
        if dead and outer[1] is not None:
            codes, latents = Strongest(dead[0], dead[1]), dead[2]
            into = (of_encoder, of_decoder, of_bias, of_x)
            _add_dead(codes, latents, ctx.dense, (x, encoder, decoder), outer[1], into)
        of_centre = -(of_bias @ encoder) if ctx.centred and ctx.needs_input_grad[4] else None
        return of_x, of_encoder, of_bias, of_decoder, of_centre, *[None] * 5


def _columns(found: Strongest, latents: Tensor) -> SomeColumns:
    return SomeColumns(found.values, found.indices, latents.numel())


def _add_dead(
    found: Strongest,
    latents: Int[Tensor, " dead"],
    dense: bool,
    given: tuple[Tensor, Tensor, Tensor],
    wanted: Float[Tensor, "batch width"],
    into: tuple[Tensor, Tensor, Tensor, Tensor | None],
) -> None:
    """Add what dead latents contribute to the gradients of both matrices, the bias and ``x``."""
    x, encoder, decoder = given
    of_encoder, of_decoder, of_bias, of_x = into
    which = latents[found.indices]
    if dense:
        of_values, encoder_rows, decoder_rows = _columns(found, latents).gradients(
            x, decoder[latents], wanted
        )
        of_encoder.index_add_(0, latents, encoder_rows)
        of_decoder.index_add_(0, latents, decoder_rows)
    else:
        of_latent = ByLatent(which, encoder.shape[0])
        of_values = of_latent.dots(decoder, wanted)
        of_encoder += of_latent.rows(of_values, x)
        of_decoder += of_latent.rows(found.values, wanted)
    of_bias.index_add_(0, which.flatten(), of_values.flatten())
    if of_x is not None:
        of_x += decode(of_values, which, encoder)
