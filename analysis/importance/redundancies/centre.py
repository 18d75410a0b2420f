"""How far a head's contribution points away from the mean direction of its layer (Task-KV)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.behaviours.places import example_means, places
from analysis.scores import BatchScores, Column
from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

MEASURE = "centre_distance"
LAST = 8


def centre_distance(contributions: Tensor) -> Tensor:
    """Float64 ``[example head]``, 0 to 2, of mean contributions ``[example head model_width]``.

    With e_h the unit vector of head h and c the mean of all e: ``1 - cos(e_h, c)``. Heads that
    write in unrelated directions are all at ``1 - 1 / sqrt(heads)``.

    >>> centre_distance(torch.tensor([[[2.0, 0.0], [0.0, 3.0]]])).round(decimals=4).tolist()
    [[0.2929, 0.2929]]
    """
    unit = torch.nn.functional.normalize(contributions.double(), dim=-1)
    centre = torch.nn.functional.normalize(unit.mean(1, keepdim=True), dim=-1)
    return 1 - (unit * centre).sum(-1)


def centre_scores(
    subject: Subject, batch: Batch, z: dict[Site, Tensor], last: int = LAST
) -> BatchScores:
    """Distance from the semantic centre, after Task-KV (arXiv 2501.15113), per example.

    The contribution is the mean over the last ``last`` positions of a text, all positions of a
    tower without text; an example that does not reach a tower does not count there. Null:
    unrelated directions. The distance formula could not be read in the paper; this is a
    reconstruction.
    """
    columns: list[Column] = []
    sums: list[Tensor] = []
    nulls: list[Tensor] = []
    counts: list[Tensor] = []
    reasons: dict[tuple[str, str], str] = {}
    for site in sorted(z):
        matrix = subject.layout.anatomy.output_matrix(site)
        heads = z[site].shape[2]
        if matrix is None or heads < 2:
            reasons[site.tower, MEASURE] = _why(site, heads)
            continue
        try:
            counted, example = places(batch, site, z[site], "last", last, may_miss=True)
        except ValueError as error:
            reasons[site.tower, MEASURE] = str(error)
            continue
        mean = example_means(z[site].float(), counted, example, batch.size).float()
        written = torch.einsum("bhd,hdm->bhm", mean, matrix.to(mean.device))
        columns += [
            Column(site.tower, site.layer, head, MEASURE, f"last={last}", "cosine distance")
            for head in range(heads)
        ]
        there = torch.bincount(example[counted], minlength=batch.size) > 0
        distance = centre_distance(written).cpu()
        sums.append(distance.masked_fill(~there[:, None], 0.0))
        counts.append(there.double()[:, None].expand_as(distance))
        nulls.append(counts[-1] * (1 - heads**-0.5))
    names = [example.id for example in batch.examples]
    if not sums:
        return BatchScores.nothing(names, reasons)
    value, null, count = (torch.cat(parts, dim=1) for parts in (sums, nulls, counts))
    return BatchScores(
        tuple(columns), value, count, null, count, examples=tuple(names), reasons=reasons
    )


def _why(site: Site, heads: int) -> str:
    if heads < 2:
        return f"{site.tower} has one head per layer, so there is no centre to be far from."
    return (
        f"The output matrix of {site.tower} could not be found and verified, and heads share no "
        f"directions before it, so {MEASURE} is not measured there."
    )
