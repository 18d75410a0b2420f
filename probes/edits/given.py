"""Replace what heads give out: by a fixed vector such as a mean, or by a given z."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from probes.edits.edit import EditPlace
from probes.heads import Head, Site


@dataclass(frozen=True)
class Given:
    """``z`` of the chosen heads replaced by given values.

    Attributes:
        values: by head or site (or their names). For a head ``[head_width]`` (the same at every
            position) or ``[batch query head_width]``; for a site the same with a head axis before
            the last.
    """

    heads: Any
    values: Mapping[Any, Tensor]
    label: str
    stage: Literal["z"] = "z"

    def apply(self, values: Tensor, place: EditPlace) -> Tensor:
        named = {str(name): value for name, value in self.values.items()}
        columns = [
            self._column(named, place.site, head, values[:, :, i])
            for i, head in enumerate(place.heads)
        ]
        return torch.stack(columns, dim=2)

    def _column(self, named: Mapping[str, Tensor], site: Site, head: int, old: Tensor) -> Tensor:
        name = str(Head(site.tower, site.layer, head))
        if name in named:
            given = named[name]
        elif str(site) in named:
            given = named[str(site)][..., head, :]
        else:
            raise ValueError(
                f"{self.label} must have values for {name} or {site}, got values for "
                f"{', '.join(named) or 'nothing'}. Add it, or leave the head out."
            )
        given = given.to(old.device, old.dtype)
        if given.ndim == 1 and given.shape[0] == old.shape[-1]:
            return given.expand_as(old)
        if given.shape == old.shape:
            return given
        raise ValueError(
            f"{self.label} of {name} must have shape [{old.shape[-1]}] or {list(old.shape)} "
            f"(batch, query, head_width), got {list(given.shape)}."
        )


def replace(heads: Any, z: Mapping[Any, Tensor]) -> Given:
    """Replace ``z`` of heads by given values, by head or site name.

    Args:
        z: ``[batch query head_width]`` by head, or ``[batch query head head_width]`` by site, as
            `headscope.capture` gives it.
    """
    return Given(heads, z, "replace")


def mean(heads: Any, means: Mapping[Any, Tensor]) -> Given:
    """Replace ``z`` of heads by their mean over a data set (mean ablation).

    Args:
        means: ``[head_width]`` by head, or ``[head head_width]`` by site.
    """
    return Given(heads, means, "mean")
