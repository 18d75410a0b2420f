"""What the model loses without the heads that differ most, beside random heads of their layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from analysis.importance.leave_one_out import Ablation
from analysis.importance.matched_sets import matched_sets
from analysis.importance.scans.options import ScanError, ScanOptions
from analysis.importance.scans.two_sets import FEWEST, SETS, Halved
from analysis.importance.set_effects import effects_of_sets, head_counts
from analysis.importance.study import StudyOptions
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.targets import Data
    from probes.subject import Subject


Progress = Callable[[int, int], None]


def begun(subject: Subject, data: dict[str, Data], options: StudyOptions) -> Ablation:
    """The ablation by which sets of heads are judged, ready: its means are over both sets.

    Raises:
        ScanError: the effect is on one block, or what stands in for a head depends on what earlier
            layers do: heads of several layers cannot be judged by it, or replaced together.
        EffectError: an effect that this model or data cannot give.
    """
    ablation = Ablation(options)
    ablation.begin(subject, lambda: chain.from_iterable(data[name]() for name in SETS))
    if all(effect.needs == "block" for effect in ablation.effects):
        raise ScanError(
            "Heads of several layers must be judged by an effect on the output, and "
            f"{ablation.effects[0].name!r} is told by one block. Choose cross_entropy, jsd or "
            "cosine."
        )
    assert ablation.replacement is not None
    if not ablation.replacement.joint:
        raise ScanError(
            "Heads that are taken away together must be replaced by what does not depend on "
            f"earlier layers, and {options.ablation!r} does. Choose the ablation mean, zero or "
            "resample."
        )
    return ablation


def refuse_few_to_judge(sets: Halved) -> None:
    """Raise where a half of a set would be too small to choose heads on, or to judge them on."""
    counts = [len(ids) for ids in sets.ids]
    if min(counts) < FEWEST:
        raise ValueError(
            f"Both sets must have at least {FEWEST} examples, half of them to choose heads on and "
            f"half to judge them on, got {counts[0]} and {counts[1]}. Give more, or take no heads "
            "away with `--top 0` (in Python `top=()`)."
        )


def chosen(heads: pd.DataFrame, how: ScanOptions) -> list[Head]:
    """Heads in the order in which they are taken away: farthest apart on the first half first."""
    values = heads["first_half"].to_numpy(float)
    if how.side != "either":
        values = values if how.side == "more" else -values
        values = np.where(values > 0, values, np.nan)
    lines = heads.assign(order=np.abs(values)).dropna(subset="order")
    lines = lines.sort_values("order", ascending=False, kind="stable")
    return [Head(t, int(n), int(h)) for t, n, h in lines[["tower", "layer", "head"]].values]


def confirmation(
    subject: Subject,
    data: dict[str, Data],
    sets: Halved,
    ranked: Sequence[Head],
    ablation: Ablation,
    how: ScanOptions,
    seed: int,
    progress: Progress | None = None,
) -> tuple[pd.DataFrame, dict[int, int]]:
    """`Scan.confirmation` and `Scan.there_are`, on the second half of the examples.

    Args:
        ranked: chosen on the first half.
        progress: called with how many examples were judged without a set of heads, and of how many.
    """
    import pandas as pd

    places, groups, there_are = [], [], {}
    for k in sizes(how, len(ranked)):
        own = tuple(sorted(ranked[:k]))
        drawn, there_are[k] = matched_sets(own, head_counts(subject), how.randoms, seed)
        for number, one in enumerate([own, *drawn]):
            kind = "random" if number else "chosen"
            places.append({"k": k, "kind": kind, "draw": max(number - 1, 0)})
            groups.append(one)
    assert ablation.replacement is not None
    runs = len(groups) * ablation.replacement.draws
    total = runs * sum(int((~first).sum()) for first in sets.first)
    done = 0

    def judged(examples: int) -> None:
        nonlocal done
        done += examples
        if progress is not None:
            progress(done, total)

    frames = []
    for which, name in enumerate(SETS if groups else ()):
        found = effects_of_sets(
            subject,
            data[name],
            groups,
            ablation,
            only=sets.judged(which),
            replicates=how.replicates,
            seed=seed,
            judged=judged,
        )
        frame = pd.concat([pd.DataFrame(places), found.frame()], axis=1)
        frame.insert(1, "inputs", name)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), there_are


def sizes(how: ScanOptions, heads: int) -> list[int]:
    """How many heads are taken away together, of those asked for and there."""
    return sorted({size for size in how.top if size <= heads})
