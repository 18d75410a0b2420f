"""Visual-aware head divergence of every head of a batch, in two forwards: with the image, without.

Whole prompts and answers are read at once (teacher forcing); of each layer's z only the positions
that predict the tokens in question are kept, and no logits but the last are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from analysis.vision.divergence import (
    activation,
    cosine_divergence,
    divergence,
    outliers,
    relative_divergence,
    token_divergence,
)
from probes.heads import Site
from probes.image_removal import How, without_image
from probes.listening import attach
from probes.tap import Attached, TapError

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

TOWER = "language"


@dataclass(frozen=True)
class Reads:
    """The tokens at which heads are compared; what counts is z where each of them is predicted.

    Attributes:
        example: long ``[read]``: row of the batch.
        position: long ``[read]``: index of the token in ``input_ids``, at least 1.
    """

    example: Tensor
    position: Tensor

    def __len__(self) -> int:
        return self.example.numel()


@dataclass(frozen=True)
class Diverged:
    """What one layer's heads do without the image, float32 ``[read head]``.

    Attributes:
        vhd: `divergence`.
        relative: `relative_divergence`.
        cosine: `cosine_divergence`.
        outlier: bool: `outliers`.
    """

    vhd: Tensor
    relative: Tensor
    cosine: Tensor
    outlier: Tensor

    @classmethod
    def between(cls, seen: Tensor, unseen: Tensor) -> Diverged:
        """Of ``z [read head width]`` with and without the image."""
        vhd = divergence(seen, unseen)
        return cls(
            vhd.cpu(),
            relative_divergence(seen, unseen).cpu(),
            cosine_divergence(seen, unseen).cpu(),
            outliers(vhd, activation(unseen)).cpu(),
        )


def answer_reads(batch: Batch) -> Reads:
    """Every token of each example's answer, special ones and padding left out."""
    tokens = batch.tokens[TOWER]
    length = batch.tensors["input_ids"].shape[1]
    words = tokens.has_role("text", "generated", "system").reshape(batch.size, length)
    starts = batch.answer_starts or (-1,) * batch.size
    for row, start in enumerate(starts):
        words[row, : start if start > 0 else length] = False
    example, position = words.nonzero(as_tuple=True)
    return Reads(example, position)


def head_divergence(
    subject: Subject, batch: Batch, reads: Reads, how: How = "delete", seed: int = 0
) -> dict[Site, Diverged]:
    """By layer of the language tower, what its heads do at some reads without the image.

    Two forwards, of which the second is the shorter one where the image's positions are deleted.
    Edits that are in force act in both.

    Args:
        how, seed: as `probes.image_removal.without_image` takes them.

    Raises:
        InputError: the batch or the model has no image that can be taken away.
        TapError: what the layers give out does not fit the positions of the batch.
    """
    removed = without_image(subject, batch, how, seed)
    sites = [site.site for site in subject.layout.sites if site.site.tower == TOWER]
    seen: dict[Site, Tensor] = {}
    found: dict[Site, Diverged] = {}

    def keep(site: Site, z: Tensor) -> None:
        seen[site] = z

    def compare(site: Site, z: Tensor) -> None:
        if site in seen:
            found[site] = Diverged.between(seen.pop(site), z)

    _run(subject, batch, sites, reads.example, reads.position - 1, keep)
    without = removed.kept[reads.example, reads.position] - 1
    _run(subject, removed.batch, sites, reads.example, without, compare)
    return {site: found[site] for site in sites if site in found}


def t_vhd(found: dict[Site, Diverged], k: int | None = None) -> Tensor:
    """Float64 ``[read]``: T-VHD of what `head_divergence` found, see `token_divergence`."""
    return token_divergence([layer.vhd for layer in found.values()], k)


def t_vhd_by_k(found: dict[Site, Diverged]) -> dict[int, Tensor]:
    """T-VHD by the heads per layer that it counts, 1, 2, 4, ...: for a slider over ``k``."""
    most = max((layer.vhd.shape[1] for layer in found.values()), default=0)
    by_k, k = {}, 1
    while k <= most:
        by_k[k] = t_vhd(found, k)
        k *= 2
    return by_k


def _run(
    subject: Subject,
    batch: Batch,
    sites: list[Site],
    rows: Tensor,
    positions: Tensor,
    give: Callable[[Site, Tensor], None],
) -> None:
    """Run a batch and give ``z [read head width]`` of each layer at some positions."""
    shape = tuple(batch.tensors["input_ids"].shape)

    def hear(site: Site, z: Tensor, step: int) -> None:
        if tuple(z.shape[:2]) != shape:
            raise TapError(
                f"{site} must give out one vector per position of the text {list(shape)}, it gives "
                f"{list(z.shape[:2])}, so its tokens cannot be told. Use another model."
            )
        give(site, z[rows.to(z.device), positions.to(z.device)].detach())

    settings: dict[str, Any] = {}
    if "logits_to_keep" in subject.arguments.names:
        settings["logits_to_keep"] = 1  # nobody reads them
    with attach(subject, Attached(frozenset(sites), on_z=hear)):
        subject.forward(batch, **settings)
