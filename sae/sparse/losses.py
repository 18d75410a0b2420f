"""The loss of a TopK coder by the sparse path: the numbers and gradients of the dense one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.auxiliary import chosen_of_dead, unexplained
from sae.coders.coder import Losses, Moment
from sae.sparse.coding import sparse_coding
from sae.sparse.encoding import Dead

if TYPE_CHECKING:
    from sae.coders.topk import TopK


def sparse_topk_losses(
    coder: TopK,
    x: Float[Tensor, "batch width"],
    moment: Moment,
    *,
    over_batch: bool = False,
    follow: Callable[[Tensor], None] | None = None,
) -> Losses:
    """What `TopK.dense_losses` gives, without a matrix of all strengths.

    Equal in value and in the gradients of ``x`` and of all parameters, those of AuxK included, up
    to rounding. Under autocast the encoder's product is done in the lower type, all else in the
    type of the parameters.

    Args:
        over_batch: choose over the whole batch, k for each row on average, as BatchTopK.
        follow: hears the strengths that fired, in any order.
    """
    x = x.to(coder.encoder.dtype)
    dead = _dead(coder, moment)
    centre = coder.decoder_bias if coder.centred else None
    coding = sparse_coding(
        x,
        coder.encoder,
        coder.encoder_bias,
        coder.decoder,
        centre,
        coder.k,
        dead,
        over_batch=over_batch,
    )
    fires = coding.strengths > 0
    if follow is not None:
        follow(coding.strengths[fires])
    reconstruction = coding.decoded + coder.decoder_bias
    left = x - reconstruction
    error = left.pow(2).sum(1).mean()
    auxiliary = error.new_zeros(())
    if dead is not None and coding.explained is not None:
        missed = unexplained(left, coding.explained, dead.latents.numel(), coder.auxiliary_k)
        auxiliary = coder.auxiliary * missed
    fired = torch.zeros(coder.latents, dtype=torch.long, device=x.device)
    return Losses(
        error + auxiliary,
        {"reconstruction": error.detach(), "auxiliary": auxiliary.detach()},
        fired.index_add_(0, coding.indices.flatten(), fires.flatten().long()),
        reconstruction.detach(),
    )


def _dead(coder: TopK, moment: Moment) -> Dead | None:
    """What AuxK asks of dead latents; None where it asks nothing."""
    if not coder.auxiliary or moment.dead is None:
        return None
    latents = moment.dead.nonzero().squeeze(1)
    count = latents.numel()
    return Dead(latents, chosen_of_dead(coder.auxiliary_k, count)) if count else None
