"""A constant in the place of a head: nothing, or a mean over the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.replacements.replacement import Plain, roles_of
from probes.head_outputs import head_outputs
from probes.heads import Site
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    from analysis.importance.targets import Data
    from probes.replay import RecordedForward
    from probes.subject import Subject

_PAD = ROLES.index("pad")


class Zero(Plain):
    """Nothing. Off the data: a model may break for the lack of a constant that it relies on."""

    name = "zero"

    def values(self, recorded: RecordedForward, site: Site, draw: int = 0) -> Tensor:
        return recorded.z[site].new_zeros(1)


class Mean(Plain):
    """The head's mean over all real positions of the data, or over those of the same role."""

    pass_name = "means of heads"

    def __init__(self, by_role: bool = False) -> None:
        self.by_role = by_role
        self.name = "mean:role" if by_role else "mean"
        self._sums: dict[Site, Tensor] = {}
        self._counts: dict[Site, Tensor] = {}

    def begin(self, subject: Subject, data: Data) -> None:
        self._sums.clear()
        self._counts.clear()
        for batch in data():
            for site, z in head_outputs(subject, batch).z.items():
                self._add(site, z, roles_of(batch, site, z))

    def _add(self, site: Site, z: Tensor, roles: Tensor | None) -> None:
        if roles is None:
            if self.by_role:
                raise ValueError(
                    f"Mean by role must know what each position of {site.tower} is, and these "
                    "calls do not fit its token map. Choose `--ablation mean`."
                )
            roles = torch.zeros(z.shape[:2], dtype=torch.long)
        flat = roles.reshape(-1).to(z.device)
        kept = flat != _PAD
        rows = z.reshape(-1, *z.shape[2:])[kept].double()
        group = flat[kept] if self.by_role else torch.zeros_like(flat[kept])
        size = len(ROLES) if self.by_role else 1
        if site not in self._sums:
            self._sums[site] = rows.new_zeros(size, *rows.shape[1:])
            self._counts[site] = rows.new_zeros(size)
        self._sums[site].index_add_(0, group, rows)
        self._counts[site] += torch.bincount(group, minlength=size)

    def mean(self, site: Site) -> Tensor:
        """Float64 ``[head value_width]``, or ``[role head value_width]`` by role."""
        if site not in self._sums:
            raise ValueError(
                f"The mean of {site} must be taken before it is used; the data never reached it."
            )
        mean = self._sums[site] / self._counts[site].clamp_min(1)[:, None, None]
        return mean if self.by_role else mean[0]

    def values(self, recorded: RecordedForward, site: Site, draw: int = 0) -> Tensor:
        z = recorded.z[site]
        mean = self.mean(site).to(z.device, z.dtype)
        if not self.by_role:
            return mean
        roles = roles_of(recorded.batch, site, z)
        assert roles is not None
        return mean[roles.to(z.device)]
