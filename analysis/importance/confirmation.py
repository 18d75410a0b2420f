"""Is the ranking of leave-one-out worth anything? Its highest heads together, its pruning curve.

Heads are chosen on one half of the examples and judged on the other, so that a lucky head does
not confirm itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from analysis.importance.greedy import greedy_set
from analysis.importance.joint import RANDOMS, joint_effect, pruning_curve
from analysis.statistics import half_of
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.leave_one_out import Ablation
    from analysis.importance.targets import Data
    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

TOP_SHARES = (0.1, 0.25)
"""How many of the heads are taken away together, as shares of all."""
GREEDY_HEADS = 6
GREEDY_CANDIDATES = 32
"""Limits of the search for heads that matter together: at most 160 forwards of half the data."""
PRUNED = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
RANDOM_ORDERS = 3


def runs_of_sets(heads: int) -> float:
    """Forwards of the whole data that `confirmation` takes, about; each runs on half of it."""
    searched = (GREEDY_HEADS - 1) * min(heads, GREEDY_CANDIDATES)
    judged = 3 * (1 + RANDOMS) + len(PRUNED) * (1 + RANDOM_ORDERS)
    return (searched + judged) / 2


def confirmation(
    subject: Subject, data: Data, tally: Tally, ablation: Ablation
) -> Mapping[str, pd.DataFrame]:
    """Tables ``joint`` and ``pruning``; empty where sets of heads cannot be judged.

    ``joint``: the highest tenth and quarter of the heads by leave-one-out, and up to 6 heads that
    were taken one after the other (`greedy_set`), each against 20 random sets with as many heads
    in each layer. ``pruning``: heads taken away from the least important on, and in random orders.

    They cannot be judged where the replacement of a later head depends on earlier ones (uniform,
    knock-out), where all effects are on blocks, or with fewer than two examples in a half.
    """
    import pandas as pd

    output = [effect for effect in ablation.effects if effect.needs != "block"]
    assert ablation.replacement is not None
    if not output or not ablation.replacement.joint:
        return {}
    ranked = _ranked_on_first_half(tally, f"importance_{output[0].name}")
    if len(ranked) < 2:
        return {}
    seed = tally.seed

    chosen_on, judged = (of_half(subject, data, half, seed) for half in (0, 1))
    counts = sorted({max(1, round(share * len(ranked))) for share in TOP_SHARES})
    sets = [("leave one out", ranked[:count]) for count in counts]
    many = min(GREEDY_HEADS, counts[-1])
    if many > 1:
        some = ranked[:GREEDY_CANDIDATES]
        taken = greedy_set(subject, chosen_on[0], ablation, some, many, only=chosen_on[1])
        sets.append(("one after the other", taken))
    frames = []
    for how, heads in sets:
        found = joint_effect(subject, judged[0], heads, ablation, only=judged[1], seed=seed)
        sentence = f"{how}: {found!r}"
        frames.append(
            found.lines.assign(chosen_by=how, top=len(heads), p=found.p, sentence=sentence)
        )
    order = ranked[::-1]
    curve = pruning_curve(
        subject,
        judged[0],
        order,
        ablation,
        only=judged[1],
        fractions=PRUNED,
        randoms=RANDOM_ORDERS,
        seed=seed,
    )
    return {"joint": pd.concat(frames, ignore_index=True), "pruning": curve}


def of_half(
    subject: Subject, data: Data, half: int, seed: int
) -> tuple[Data, Callable[[str], bool]]:
    """The batches that hold one half of the examples, and which of their examples count.

    Batches are prepared anew without the other half, where that can be done.
    """

    def counts(name: str) -> bool:
        return half_of(name, seed) == half

    def mine() -> Iterator[Batch]:
        for batch in data():
            chosen = [example for example in batch.examples if counts(example.id)]
            known = subject.processor is not None and all(e.prompt or e.pictures for e in chosen)
            if chosen and known and len(chosen) < batch.size:
                yield subject.prepare(examples=chosen)
            elif chosen:
                yield batch

    return mine, counts


def _ranked_on_first_half(tally: Tally, measure: str) -> list[Head]:
    """Heads from the most important on one half of the examples; empty if a half is too small."""
    values = {
        Head(column.tower, column.layer, column.head): halves[0]
        for column, halves in tally.halves.items()
        if column.measure == measure and all(half == half for half in halves)
    }
    return sorted(values, key=lambda head: -values[head])
