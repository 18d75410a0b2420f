"""Activation patching position by position: where a head's output carries the difference."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from analysis.importance.patches.both_runs import BothRuns, after
from analysis.importance.patches.pairs import Direction, Pairs
from probes.alignment import flat_positions
from probes.heads import Head, Site

if TYPE_CHECKING:
    import pandas as pd

    from probes.replay import RecordedForward
    from probes.subject import Subject


def patch_map(
    subject: Subject,
    pairs: Iterable[Pairs],
    heads: Iterable[Head],
    direction: Direction = "noising",
    copies: int = 1,
) -> pd.DataFrame:
    """One line per pair, head and position: what exchanging that one position's output does.

    Args:
        heads: chosen ones; each takes one run per position.
        copies: positions that are exchanged in one run, each in a copy of the batch of its own.

    Returns:
        Columns ``example tower layer head position role text row column value``. ``value`` is in
        logits and signed as in `analysis.importance.patches.both_runs.head_effects`. ``position``
        counts within the row of the tower, padding included; ``row`` and ``column`` are those of a
        patch, else -1. Padding has no line.
    """
    import pandas as pd

    chosen = list(heads)
    frames = []
    for one in pairs:
        runs = BothRuns.of(subject, one)
        frames += [_map_of(runs, head, direction, copies) for head in chosen]
    return pd.concat(frames, ignore_index=True)


def _map_of(runs: BothRuns, head: Head, direction: Direction, copies: int) -> pd.DataFrame:
    base, donor = runs.base(direction), runs.donor(direction)
    site = head.site
    if site not in base.z or base.z[site].shape[0] != runs.pairs.size:
        raise ValueError(
            f"Patching by position must have one sequence per pair in {site}, and these inputs "
            "give none or several. Choose heads of another tower, or one image per example."
        )
    own, other = base.z[site][:, :, [head.head]], donor.z[site][:, :, [head.head]]
    found, length = [], own.shape[1]
    for start in range(0, length, copies):
        places = range(start, min(start + copies, length))
        variants = [([head.head], _at(own, other, place)) for place in places]
        found.append(after(runs.pairs, base, site, variants, copies))
    change = runs.change(torch.cat(found), direction)
    return _lines(runs.pairs, base, head, site, change.T)


def _at(own: Tensor, other: Tensor, place: int) -> Tensor:
    changed = own.clone()
    changed[:, place] = other[:, place]
    return changed


def _lines(
    pairs: Pairs, base: RecordedForward, head: Head, site: Site, change: Tensor
) -> pd.DataFrame:
    """``change [example position]`` with what is known of each position, padding left out."""
    import pandas as pd

    rows, length = change.shape
    frame = pd.DataFrame(
        {
            "example": [name for name in pairs.ids for _ in range(length)],
            "tower": site.tower,
            "layer": site.layer,
            "head": head.head,
            "position": list(range(length)) * rows,
            "role": "",
            "text": "",
            "row": -1,
            "column": -1,
            "value": change.flatten().numpy(),
        }
    )
    if site.tower not in base.batch.tokens:
        return frame
    tokens = base.batch.tokens[site.tower]
    index = flat_positions(tokens, rows, length, packed=True)
    if index is None:
        return frame
    known = tokens.to_frame().iloc[index.flatten().numpy()]
    for name in ("role", "text", "row", "column"):
        frame[name] = known[name].to_numpy()
    return frame[frame["role"] != "pad"].reset_index(drop=True)
