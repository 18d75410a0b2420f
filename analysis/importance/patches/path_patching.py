"""Path patching: how much of one head's difference reaches the output through another head.

Goldowsky-Dill et al. (2023, "Localizing Model Behavior with Path Patching"), in the four passes
of Wang et al. (2022, "Interpretability in the Wild", appendix B). MLPs are recomputed between the
sender and the receiver, so that a path may lead through them, unless they are frozen too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from analysis.importance.patches.pairs import Direction, Pairs
from analysis.importance.patches.patched_positions import Positions
from analysis.importance.patches.path_passes import VIAS, Passes, Via
from analysis.statistics import REPLICATES, RatioSums
from probes.heads import Head, Site

if TYPE_CHECKING:
    import pandas as pd

    from probes.subject import Subject

OUTPUT = "output"
"""As a receiver: what reaches the output without passing through another head."""
DIRECT = "direct"
"""The `via` of the receiver `OUTPUT`."""

Path = tuple[str, str, str]
"""Sender, receiver, via."""


@dataclass(frozen=True)
class Paths:
    """What was asked for: senders, receivers by layer, which inputs of them, and the output."""

    senders: tuple[Head, ...]
    receivers: Mapping[Site, tuple[int, ...]]
    via: tuple[Via, ...]
    output: bool

    @classmethod
    def chosen(
        cls, senders: Iterable[Head], receivers: Iterable[Head | str], via: Via | Sequence[Via]
    ) -> Paths:
        """The same, each once.

        Raises:
            ValueError: something that is no receiver, or no input of one.
        """
        names = (via,) if isinstance(via, str) else tuple(via)
        unknown = [name for name in names if name not in VIAS]
        if unknown or not names:
            raise ValueError(f"`via` must be one or several of {', '.join(VIAS)}, got {via!r}.")
        by_site: dict[Site, list[int]] = defaultdict(list)
        output = False
        for receiver in receivers:
            if isinstance(receiver, Head):
                by_site[receiver.site].append(receiver.head)
            elif receiver == OUTPUT:
                output = True
            else:
                raise ValueError(f"A receiver must be a head or {OUTPUT!r}, got {receiver!r}.")
        sites = {site: tuple(dict.fromkeys(heads)) for site, heads in by_site.items()}
        return cls(tuple(dict.fromkeys(senders)), sites, names, output)


def path_patch(
    subject: Subject,
    pairs: Iterable[Pairs],
    senders: Iterable[Head],
    receivers: Iterable[Head | str],
    via: Via | Sequence[Via] = ("query", "key", "value"),
    direction: Direction = "noising",
    *,
    at: Positions | None = None,
    freeze_mlps: bool = False,
    copies: int = 1,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """The effect of every path from a sender to a receiver, one line per path.

    Args:
        pairs: batches of pairs, from `analysis.importance.patches.pairs.pair_up`.
        receivers: heads that run after a sender, and ``"output"`` for what goes past all heads.
        via: which input of the receivers the path takes; ``all`` exchanges the three together.
        direction: ``noising`` puts the corrupted sender into the clean run, ``denoising`` the
            clean one into the corrupted run.
        at: at which positions the sender's output is exchanged; everywhere by default.
        freeze_mlps: hold the feed-forward parts of all blocks at what they were, so that only the
            path straight along the residual stream is left.
        copies: receivers that are exchanged in one run, each in a copy of the batch of its own.

    Returns:
        Columns ``sender receiver via direction value ci_low ci_high share n``. ``value`` in logits,
        positive where the path carries what tells the answers apart: what noising loses of the
        logit difference, what denoising wins. ``share`` divides by clean minus corrupted, as a
        ratio of sums. Intervals: 95 %, bootstrap over pairs.

    Raises:
        ValueError: no receiver runs after a sender, a layer whose queries and keys cannot be had,
            or MLPs that cannot be frozen.
    """
    import pandas as pd

    asked = Paths.chosen(senders, receivers, via)
    at = Positions() if at is None else at
    change: RatioSums | None = None
    share: RatioSums | None = None
    paths: list[Path] = []
    for batch in pairs:
        lost, gap = _lost(subject, batch, direction, asked, at, freeze_mlps, copies)
        paths = paths or list(lost)
        if change is None or share is None:
            change, share = (
                RatioSums.empty(len(paths), replicates=replicates, seed=seed) for _ in range(2)
            )
        values = torch.stack([lost[path] for path in paths], dim=1).numpy()
        change.add(batch.ids, values, np.ones_like(values))
        share.add(batch.ids, values, np.repeat(gap.numpy()[:, None], len(paths), axis=1))
    if change is None or share is None:
        raise ValueError("Path patching must have at least one pair, got none. Give some data.")
    low, high = change.interval()
    frame = pd.DataFrame(paths, columns=["sender", "receiver", "via"])
    return frame.assign(
        direction=direction,
        value=change.value,
        ci_low=low,
        ci_high=high,
        share=share.value,
        n=change.n,
    )


def _lost(
    subject: Subject,
    pairs: Pairs,
    direction: Direction,
    asked: Paths,
    at: Positions,
    freeze_mlps: bool,
    copies: int,
) -> tuple[dict[Path, Tensor], Tensor]:
    """Float64 ``[example]``: the effect by path, and clean minus corrupted."""
    # Denoising is the same on the pair with its halves exchanged: there every sign is the other.
    sign = 1 if direction == "noising" else -1
    pairs = pairs if direction == "noising" else pairs.exchanged()
    passes = Passes(subject, pairs, list(asked.receivers), asked.via, freeze_mlps)
    found: dict[Path, Tensor] = {}
    for sender in asked.senders:
        later = passes.later(sender.site)
        if not later and not asked.output:
            continue
        third = passes.third(sender, at)
        if asked.output:
            after = pairs.difference(third.output, passes.base.positions)[0]
            found[str(sender), OUTPUT, DIRECT] = sign * (passes.before - after)
        heads = {site: asked.receivers[site] for site in later}
        for receiver, name, after in passes.fourth(third, heads, copies):
            found[str(sender), str(receiver), name] = sign * (passes.before - after)
    if not found:
        raise ValueError(
            "A receiver must run after a sender, none does. Choose receivers of later layers, or "
            f"{OUTPUT!r}."
        )
    return found, sign * passes.gap
