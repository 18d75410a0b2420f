"""Steer along any direction at heads: that of a probe, or a difference of means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probes.edits.edit import EditPlace
from probes.heads import Head, Site, select_heads
from sae.activations.site_forward import heard_rows
from sae.activations.token_rows import check_roles

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass(frozen=True)
class Steer:
    """``z`` of the chosen heads plus ``amount`` times a direction.

    Attributes:
        direction: ``[head_width]`` for all heads, or by head's name.
        roles: only positions with one of these roles; None: all.
    """

    heads: Any
    direction: Tensor | Mapping[str, Tensor]
    amount: float
    roles: tuple[str, ...] | None = None
    stage: Literal["z"] = "z"

    @property
    def label(self) -> str:
        return f"steer({self.amount:g})"

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        wide = torch.promote_types(values.dtype, torch.float32)
        rows = [self._direction(place.site, head, values.shape[3]) for head in place.heads]
        change = self.amount * torch.stack(rows).to(values.device, wide)
        if self.roles is not None:
            chosen = place.queries_with(*self.roles).to(values.device)
            change = torch.where(chosen[..., None, None], change, 0.0)
        return (values.to(wide) + change).to(values.dtype)

    def _direction(self, site: Site, head: int, width: int) -> Tensor:
        name = str(Head(site.tower, site.layer, head))
        if isinstance(self.direction, Tensor):
            found = self.direction
        elif name in self.direction:
            found = self.direction[name]
        else:
            raise ValueError(
                f"{self.label} must have a direction for {name}, got {len(self.direction)} others. "
                "Add it, or leave the head out."
            )
        if found.shape != (width,):
            raise ValueError(
                f"The direction of {name} must have shape [{width}] (head_width), got "
                f"{list(found.shape)}."
            )
        return found


def steer(
    heads: Any,
    direction: Tensor | Mapping[str, Tensor],
    amount: float = 1.0,
    roles: str | list[str] | None = None,
) -> Steer:
    """Add ``amount`` times a direction to ``z`` of heads.

    Args:
        direction: ``[head_width]``, the same for all chosen heads, or one by head's name. It is
            taken as long as it is: with a difference of means, amount 1 takes one mean to the
            other.
        roles: only at positions with one of these roles.

    Source: activation addition (Turner et al. 2023, arXiv 2308.10248); at heads, inference-time
    intervention (Li et al. 2023, arXiv 2306.03341).
    """
    return Steer(heads, direction, float(amount), check_roles(roles))


@dataclass(frozen=True)
class MeanDifference:
    """What heads give out on one set of inputs more than on another.

    Attributes:
        directions: float32 ``[head_width]`` by head's name: mean of the first minus the second.
        means: of both sets, by head's name.
        rows: positions that were averaged, of each set, by site.
    """

    directions: Mapping[str, Float[Tensor, "head_width"]]
    means: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = field(repr=False)
    rows: Mapping[str, tuple[int, int]]


def difference_of_means(
    subject: Subject,
    first: Iterable[Batch],
    second: Iterable[Batch],
    heads: Any,
    *,
    roles: str | list[str] | None = None,
    last: bool = False,
) -> MeanDifference:
    """The difference of the means of z at heads over two sets: a direction to steer along.

    Args:
        roles: which positions are averaged; all but padding by default.
        last: of those, only the last of each example: where an answer is decided on.

    Raises:
        ValueError: a set has no such position at a site, or there is no such head.
    """
    chosen = select_heads(heads, subject.towers)
    sites = list(dict.fromkeys(head.site for head in chosen))
    sides = [_means(subject, side, sites, check_roles(roles), last) for side in (first, second)]
    for number, (_, rows) in enumerate(sides):
        empty = next((site for site in sites if not rows[site]), None)
        if empty is not None:
            raise ValueError(
                f"The {('first', 'second')[number]} set must have positions that are averaged at "
                f"{empty}, it has none. Choose other roles or data."
            )
    named: list[dict[str, Tensor]] = [
        {str(head): means[head.site][head.head].float() for head in chosen} for means, _ in sides
    ]
    directions = {name: named[0][name] - named[1][name] for name in named[0]}
    rows = {str(site): (sides[0][1][site], sides[1][1][site]) for site in sites}
    return MeanDifference(directions, (named[0], named[1]), rows)


def _means(
    subject: Subject,
    batches: Iterable[Batch],
    sites: list[Site],
    roles: tuple[str, ...] | None,
    last: bool,
) -> tuple[dict[Site, Tensor], dict[Site, int]]:
    """Float64 ``[head head_width]`` and the number of rows, by site."""
    shapes = {site: subject.layout.site(site) for site in sites}
    sums = {
        site: torch.zeros(one.heads, one.value_width, dtype=torch.float64)
        for site, one in shapes.items()
    }
    count = dict.fromkeys(sites, 0)
    for batch in batches:
        heard = heard_rows(subject, batch, sites, roles)
        for site in sites:
            rows = heard.rows(site)
            if rows is None:
                continue
            if last:
                rows = rows[_last_of_each(batch, site, heard.flat(site)).to(rows.device)]
            count[site] += len(rows)
            sums[site] += rows.cpu().double().sum(0).reshape(sums[site].shape)
    return {site: sums[site] / max(count[site], 1) for site in sites}, count


def _last_of_each(batch: Batch, site: Site, flat: Tensor) -> Tensor:
    """Which of the rows is the last of its example, by place in the token map."""
    example = batch.tokens[site.tower].example[flat]
    best: dict[int, int] = {}
    for number in flat.argsort().tolist():
        best[int(example[number])] = number
    return torch.tensor(sorted(best.values()), dtype=torch.long)
