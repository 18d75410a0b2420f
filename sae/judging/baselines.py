"""What a coder must beat: a random dictionary, principal components, and itself untrained.

Each is a coder, so that it is judged as the trained one is, and each has the same L0. What is
fitted of them is fitted on rows they are not judged on.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.coders.batch_topk import BatchTopK
from sae.coders.coder import Coder, Losses, Moment
from sae.coders.jump_relu import JumpReLU
from sae.coders.start import start_at
from sae.coders.topk import TopK
from sae.judging.one_pass import coded_blocks
from sae.judging.seen_rows import SeenRows

_MOST_STRENGTHS = 1 << 26
_L0_TOLERANCE = 0.1


class PrincipalComponents(Coder):
    """The orthonormal directions along which rows vary most, all of them active at every row.

    Strengths have signs. No linear code of so many numbers per row explains more variance of the
    rows it was fitted on; a sparse coder may choose other directions at every row.
    """

    architecture: ClassVar[str] = "pca"

    def activate(self, pre: Float[Tensor, "batch latent"]) -> Float[Tensor, "batch latent"]:
        return pre

    def losses(self, x: Float[Tensor, "batch width"], moment: Moment) -> Losses:
        made = self(x)
        error = (x - made).pow(2).sum(1).mean()
        fired = torch.full((self.latents,), x.shape[0], device=x.device)
        return Losses(error, {"reconstruction": error.detach()}, fired, made.detach())


@torch.no_grad()
def principal_components(seen: SeenRows, l0: float) -> PrincipalComponents:
    """As many components as the judged coder has active latents, to the nearest whole number.

    At least 1 and at most the width, with which every row is reconstructed exactly.
    """
    width = seen.mean.numel()
    count = min(max(round(l0), 1), width)
    _, directions = torch.linalg.eigh(seen.covariance)  # ascending
    coder = PrincipalComponents(width, count)
    coder.decoder.copy_(directions[:, -count:].T.flip(0))
    coder.encoder.copy_(coder.decoder)
    coder.decoder_bias.copy_(seen.mean)
    return coder.eval().requires_grad_(False)


@torch.no_grad()
def random_dictionary(seen: SeenRows, latents: int, l0: float, *, seed: int = 0) -> TopK:
    """Random unit directions around the mean row; the k that match a row best stand for it.

    Strengths are products with the directions times one factor, which makes the error least on
    the sample: without it, k directions that overlap would write the same part several times.
    """
    k = _k(l0, latents)
    coder = TopK(seen.mean.numel(), latents, k=k, seed=seed)
    coder.decoder_bias.copy_(seen.mean)
    dot = square = 0.0
    for coded in coded_blocks(coder, seen.sample):
        wanted, made = (part.double() - seen.mean for part in (coded.x, coded.reconstruction))
        dot += float((wanted * made).sum())
        square += float(made.pow(2).sum())
    if square > 0:
        coder.encoder.mul_(dot / square)
    return coder.eval().requires_grad_(False)


@torch.no_grad()
def untrained(coder: Coder, seen: SeenRows, l0: float, *, seed: int = 0) -> Coder:
    """A coder of the same kind and size as it starts, at the same L0 on the sample.

    Kinds with k get it; the others one threshold for all latents: JumpReLU's own, else taken off
    the bias that decides what fires.

    Raises:
        ValueError: a kind that this does not bring to that L0.
    """
    settings: dict[str, Any] = dict(coder.settings)
    if "k" in settings:
        settings["k"] = _k(l0, coder.latents)
    fresh = type(coder)(coder.width, coder.latents, centred=coder.centred, seed=seed, **settings)
    # Strengths of all latents are needed at once to find the threshold.
    rows = seen.sample[: max(1, _MOST_STRENGTHS // coder.latents)]
    start_at(fresh, rows)
    if isinstance(fresh, BatchTopK):
        fresh.set_threshold(rows)
    elif not isinstance(fresh, TopK):
        pre = fresh.pre_activations(rows).flatten()
        count = min(max(round(l0 * rows.shape[0]), 1), pre.numel())
        # The value of rank count + 1, so that as many as wanted lie above it.
        rank = pre.numel() - min(count, pre.numel() - 1)
        threshold = float(pre.kthvalue(rank).values)
        if isinstance(fresh, JumpReLU):
            fresh.threshold.fill_(max(threshold, 0.0))
        else:
            fresh.encoder_bias.sub_(threshold)
    found = float((fresh.encode(rows) != 0).double().sum(1).mean())
    if abs(found - l0) > _L0_TOLERANCE * l0 + 1:
        raise ValueError(
            f"An untrained coder of kind {coder.architecture} must have an L0 of {l0:.4g} to be "
            f"compared with, it has {found:.4g}. Judge without this baseline."
        )
    return fresh.eval().requires_grad_(False)


def _k(l0: float, latents: int) -> int:
    return min(max(round(l0), 1), latents)
