"""How much every head writes for each example: the length of its contribution, as one number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.importance.behaviours.places import LAST, Where, example_means, places
from probes.head_outputs import head_outputs
from probes.heads import Head, Site

if TYPE_CHECKING:
    from analysis.importance.targets import Data
    from probes.subject import Subject


@dataclass(frozen=True)
class HeadValues:
    """One number for each head and example.

    Attributes:
        values: float64 ``[example head]``; NaN where a head has none.
        examples: ids.
        heads: tower by tower.
        of: per head what the number is taken of. Activity: ``contribution`` (z times the head's
            output matrix), or ``z`` where the matrix is not known; lengths of the two kinds are not
            comparable.
        unit: of the numbers; empty for lengths.
    """

    values: NDArray[np.float64]
    examples: tuple[str, ...]
    heads: tuple[Head, ...]
    of: tuple[str, ...]
    unit: str = ""


def head_activity(
    subject: Subject,
    data: Data,
    towers: Sequence[str],
    where: Where = "last",
    last: int = LAST,
) -> HeadValues:
    """How much every head of some towers writes: its mean length over the positions that count.

    Raises:
        ValueError: no example, an example that does not reach all layers, or positions that
            cannot be told apart.
    """
    grams = output_grams(subject, towers)
    blocks, ids = [], []
    for batch in data():
        z = head_outputs(subject, batch).z
        missing = [str(site) for site in grams if site not in z]
        if missing:
            raise ValueError(
                f"Every example must reach all layers of {', '.join(towers)}, "
                f"{batch.examples[0].id!r} does not reach {missing[0]}. Choose other `towers`."
            )
        columns = []
        for site, gram in grams.items():
            length = squared_length(z[site], gram).clamp_min(0).sqrt()
            counted, example = places(batch, site, z[site], where, last)
            columns.append(example_means(length, counted, example, batch.size).cpu())
        blocks.append(torch.cat(columns, dim=1))
        ids += [example.id for example in batch.examples]
    if not blocks:
        raise ValueError("Both sets must hold examples, one is empty. Give some.")
    counts = {site.site: site.heads for site in subject.layout.sites}
    heads = [Head(s.tower, s.layer, head) for s in grams for head in range(counts[s])]
    of = ["z" if grams[head.site] is None else "contribution" for head in heads]
    return HeadValues(torch.cat(blocks).numpy(), tuple(ids), tuple(heads), tuple(of))


def output_grams(subject: Subject, towers: Sequence[str]) -> dict[Site, Tensor | None]:
    """By site, float32 ``[head width width]``: W W^T of the heads' output matrices, if known.

    Raises:
        ValueError: a tower that the subject has not.
    """
    unknown = [name for name in towers if name not in subject.towers]
    if unknown or not towers:
        raise ValueError(f"Towers must be some of {', '.join(subject.towers)}, got {list(towers)}.")
    found: dict[Site, Tensor | None] = {}
    for name in towers:
        for place in subject.towers[name].sites.values():
            matrix = subject.layout.anatomy.output_matrix(place.site)
            found[place.site] = None if matrix is None else matrix @ matrix.transpose(-1, -2)
    return found


def squared_length(z: Tensor, gram: Tensor | None) -> Tensor:
    """Float32 ``[batch query head]``: ``|z W_O|^2`` of ``z [batch query head width]``, or |z|^2."""
    z = z.float()
    if gram is None:
        return z.square().sum(-1)
    return (torch.einsum("bqhd,hde->bqhe", z, gram.to(z.device)) * z).sum(-1)
