"""Two runs that differ in one thing, recorded, and what one run's head outputs do in the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.patches.pairs import Direction, Pairs
from analysis.importance.patches.patched_positions import Positions, exchanged
from probes.heads import Site
from probes.replay import RecordedForward, record

if TYPE_CHECKING:
    from probes.subject import Subject


@dataclass
class BothRuns:
    """The clean and the corrupted forward of some pairs, recorded.

    Attributes:
        gap: float64 ``[example]``: the logit difference of the clean run minus that of the
            corrupted one; what there is to lose or to win.
    """

    pairs: Pairs
    clean: RecordedForward
    corrupted: RecordedForward

    @classmethod
    def of(cls, subject: Subject, pairs: Pairs) -> BothRuns:
        clean, corrupted = (
            record(subject, batch, positions=pairs.positions)
            for batch in (pairs.clean, pairs.corrupted)
        )
        return cls(pairs, clean, corrupted)

    def difference(self, run: RecordedForward) -> Tensor:
        """Float64 ``[example]``: correct minus wrong logit of a recorded run."""
        return self.pairs.difference(run.output, run.positions)[0]

    @property
    def gap(self) -> Tensor:
        return self.difference(self.clean) - self.difference(self.corrupted)

    def base(self, direction: Direction) -> RecordedForward:
        """The run into which a head's output is put."""
        return self.clean if direction == "noising" else self.corrupted

    def donor(self, direction: Direction) -> RecordedForward:
        """The run from which it comes."""
        return self.corrupted if direction == "noising" else self.clean

    def change(self, patched: Tensor, direction: Direction) -> Tensor:
        """What a patched logit difference ``[... example]`` means for the head.

        Noising: what is lost, clean minus patched; denoising: what is won, patched minus corrupted.
        """
        before = self.difference(self.base(direction))
        return before - patched if direction == "noising" else patched - before


def head_effects(
    runs: BothRuns,
    direction: Direction,
    donor: Mapping[Site, Tensor],
    heads: Mapping[Site, Sequence[int]],
    at: Positions,
    copies: int = 1,
) -> tuple[dict[Site, Tensor], dict[str, str]]:
    """What putting each head's donor output into the base run does, one head at a time.

    Args:
        donor: ``[batch query head value_width]`` by site; a site that is missing is left out.
        heads: which heads of which sites.
        copies: patched copies of the batch that are run at once.

    Returns:
        Float64 ``[example head]`` by site, heads in the order given: what noising loses (clean
        minus patched), what denoising wins (patched minus corrupted), in logits. And by tower why
        it has no such positions.
    """
    base = runs.base(direction)
    found: dict[Site, Tensor] = {}
    reasons: dict[str, str] = {}
    for site, chosen in heads.items():
        if site not in donor or site not in base.z:
            continue
        mask = at.mask(runs.pairs, base, site)
        if isinstance(mask, str):
            reasons[site.tower] = mask
            continue
        values = exchanged(base.z[site], donor[site], mask)
        variants = [([head], values[:, :, [head]]) for head in chosen]
        found[site] = runs.change(after(runs.pairs, base, site, variants, copies), direction).T
    return found, reasons


def after(
    pairs: Pairs,
    base: RecordedForward,
    site: Site,
    variants: Sequence[tuple[Sequence[int], Tensor]],
    copies: int = 1,
) -> Tensor:
    """Float64 ``[variant example]``: the logit difference of the base run with each variant.

    Args:
        variants: heads of the site and their new ``[batch query head value_width]``.
        copies: variants that are run at once.
    """
    found = []
    for start in range(0, len(variants), copies):
        some = variants[start : start + copies]
        output = base.run({site: some[0]}) if len(some) == 1 else base.run_copies(site, some)
        found.append(pairs.difference(output, base.positions, len(some)))
    return torch.cat(found)
