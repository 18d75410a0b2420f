"""How many rows of z a replacement changes: the count that every ablation reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.readings import ReadingError
from analysis.importance.replacements import Replacement, roles_of
from analysis.importance.score_sheet import examples_of
from analysis.touched import Touched
from probes.heads import Site
from probes.replaying.proof import tolerance_of
from probes.tokens.map import ROLES

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.replay import RecordedForward

_PAD = ROLES.index("pad")


@dataclass(frozen=True)
class ReplacedRows:
    """Rows of one layer's z in one batch, counted in every draw.

    Attributes:
        rows: long ``[example]``: query positions that were replaced, padding left out.
        changed: long ``[example head]``: those of them where z' is not z, rounding aside.
        draws: how many times each was replaced.
    """

    rows: Tensor
    changed: Tensor
    draws: int = 1

    @property
    def examples(self) -> int:
        """Examples in which there was something to replace."""
        return int((self.rows > 0).sum())

    def __add__(self, other: ReplacedRows) -> ReplacedRows:
        """The same rows in other draws."""
        draws = self.draws + other.draws
        return ReplacedRows(self.rows + other.rows, self.changed + other.changed, draws)

    def each(self, heads: Sequence[int] | None = None) -> Touched:
        """Where heads are replaced one at a time; all by default."""
        chosen = range(self.changed.shape[1]) if heads is None else heads
        rows, changed = int(self.rows.sum()), self.changed.sum(0).tolist()
        counts = {head: (rows, changed[head]) for head in chosen}
        return Touched(self.examples, self.examples * self.draws * len(counts), counts)

    def all_others(self) -> Touched:
        """Where all heads of the layer but one are replaced; told for that one."""
        rows, changed = int(self.rows.sum()), self.changed.sum(0).tolist()
        heads = len(changed)
        counts = {
            head: (rows * (heads - 1), sum(changed) - own) for head, own in enumerate(changed)
        }
        return Touched(self.examples, self.examples * self.draws * heads, counts)

    def together(self) -> Touched:
        """Where the whole layer is replaced at once; told for each of its heads."""
        rows, heads = int(self.rows.sum()), self.changed.shape[1]
        counts = dict.fromkeys(range(heads), (rows * heads, int(self.changed.sum())))
        return Touched(self.examples, self.examples * self.draws, counts)


def replaced_by(
    replacement: Replacement,
    recorded: RecordedForward,
    site: Site,
    values: Tensor,
    counted: Tensor | None = None,
) -> ReplacedRows:
    """What one draw of a replacement changes in a layer, in the examples that it reaches.

    Args:
        values: what it gives.
        counted: bool ``[example]``: only these.

    Raises:
        ReadingError: it has no row to replace there.
    """
    mine = replacement.reached(recorded.batch, site)
    mine = mine if counted is None else mine & counted
    found = replaced_rows(recorded.batch, site, recorded.z[site], values, counted=mine)
    if bool(mine.any()) and not int(found.rows.sum()):
        raise ReadingError(
            f"Ablation {replacement.name!r} must have rows of {site} to replace, and all positions "
            "of these inputs are padding there. Check their attention mask."
        )
    return found


def replaced_rows(
    batch: Batch,
    site: Site,
    z: Tensor,
    values: Tensor,
    mask: Tensor | None = None,
    counted: Tensor | None = None,
) -> ReplacedRows:
    """What replacing ``z [row query head value_width]`` by values changes, example by example.

    Where rows cannot be told apart, the batch counts as one example.

    Args:
        values: broadcastable to z.
        mask: bool ``[row query]``: positions that are replaced; all by default.
        counted: bool ``[example]``: only these.
    """
    examples = batch.size
    try:
        owner = examples_of(batch, site, z.shape[:2])
    except ValueError:
        owner, examples, counted = torch.zeros(z.shape[:2], dtype=torch.long), 1, None
    roles = roles_of(batch, site, z)
    there = owner >= 0 if roles is None else (owner >= 0) & (roles != _PAD)
    if mask is not None:
        there = there & mask
    if counted is not None:
        there = there & counted[owner.clamp_min(0)]
    changed = _differ(z, values.to(z.dtype)).cpu() & there[..., None]
    total = torch.zeros(examples, z.shape[2], dtype=torch.long)
    total.index_add_(0, owner[there], changed[there].long())
    return ReplacedRows(torch.bincount(owner[there], minlength=examples), total)


def _differ(z: Tensor, values: Tensor) -> Tensor:
    """Bool ``[row query head]``: where values differ by more than another order of adding up does.

    A pattern that is applied anew gives rows that it does not change back with other last digits.
    """
    tolerance = tolerance_of(z)
    if z.dtype in (torch.float16, torch.bfloat16):
        z, values = z.float(), values.float()
    values = values.expand(z.shape)
    largest = torch.maximum(z.abs().amax(-1), values.abs().amax(-1))
    near = (values - z).abs().amax(-1) <= tolerance * largest  # not so where a value is NaN
    return ~near
