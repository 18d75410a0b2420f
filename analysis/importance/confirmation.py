"""Is the ranking of leave-one-out worth anything? Its highest heads together, its pruning curve.

Heads are chosen on one half of the examples and judged on the other, so that a lucky head does
not confirm itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.importance.greedy import greedy_set, sets_tried
from analysis.importance.joint import RANDOMS, joint_effect, pruning_curve
from analysis.importance.matched_sets import how_many
from analysis.importance.set_effects import head_counts, output_effect
from analysis.progress import RUNS
from analysis.statistics import half_of
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.leave_one_out import Ablation
    from analysis.importance.targets import Data
    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

Half = tuple[Callable[[], Iterable["Batch"]], Callable[[str], bool]]
"""Batches with examples of one half, and which of their examples count, by id."""

TOP_SHARES = (0.1, 0.25)
"""How many of the heads are taken away together, as shares of all."""
GREEDY_HEADS = 6
GREEDY_CANDIDATES = 32
"""Limits of the search for heads that matter together: at most 145 sets on half of the data."""
PRUNED = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
RANDOM_ORDERS = 3


@dataclass(frozen=True)
class Effort:
    """How often the model is run by `confirmation`, on the half that chooses and that judges.

    Attributes:
        passes: times that a half is gone through, each with an intact forward.
        sets: sets of heads that it is run without; fewer where there are not as many others.
    """

    passes: tuple[int, int]
    sets: tuple[int, int]


def effort(heads: int) -> Effort:
    """What it takes for a model of so many heads.

    >>> effort(16)
    Effort(passes=(3, 4), sets=(42, 87))
    """
    counts = _set_sizes(heads)
    many = min(GREEDY_HEADS, counts[-1])
    joint = len(counts) + (many > 1)
    curve = len(PRUNED) * (1 + RANDOM_ORDERS)
    tried = sets_tried(min(heads, GREEDY_CANDIDATES), many)
    return Effort((many - 1, joint + 1), (tried, joint * (1 + RANDOMS) + curve))


def _set_sizes(heads: int) -> list[int]:
    return sorted({max(1, round(share * heads)) for share in TOP_SHARES})


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
    if not can_be_confirmed(ablation):
        return {}
    ranked = _ranked_on_first_half(tally, f"importance_{output_effect(ablation).name}")
    if len(ranked) < 2:
        return {}
    seed = tally.seed
    chooses, judges = _examples_by_draws(tally, ablation)
    first, second = (of_half(subject, data, half, seed) for half in (0, 1))
    sets = _chosen_sets(subject, first, ranked, ablation, chooses)
    joint = _judged_sets(subject, second, sets, ablation, judges, seed)
    number = len(PRUNED) * (1 + RANDOM_ORDERS)
    stage = ablation.progress.stage("pruning", number * judges, RUNS)
    curve = pruning_curve(
        subject,
        second[0],
        ranked[::-1],
        ablation,
        only=second[1],
        fractions=PRUNED,
        randoms=RANDOM_ORDERS,
        seed=seed,
        judged=stage.step,
    )
    stage.end()
    return {"joint": joint, "pruning": curve}


def _chosen_sets(
    subject: Subject, half: Half, ranked: Sequence[Head], ablation: Ablation, runs: int
) -> list[tuple[str, Sequence[Head]]]:
    """Sets of heads to be judged, and how each was chosen.

    Args:
        runs: that one set takes on this half.
    """
    counts = _set_sizes(len(ranked))
    sets: list[tuple[str, Sequence[Head]]] = [("leave one out", ranked[:n]) for n in counts]
    many = min(GREEDY_HEADS, counts[-1])
    if many > 1:
        data, counted = half
        some = ranked[:GREEDY_CANDIDATES]
        tried = sets_tried(len(some), many)
        stage = ablation.progress.stage("one after the other", tried * runs, RUNS)
        taken = greedy_set(subject, data, ablation, some, many, only=counted, judged=stage.step)
        stage.end()
        sets.append(("one after the other", taken))
    return sets


def _judged_sets(
    subject: Subject,
    half: Half,
    sets: Sequence[tuple[str, Sequence[Head]]],
    ablation: Ablation,
    runs: int,
    seed: int,
) -> pd.DataFrame:
    """Table ``joint``."""
    import pandas as pd

    data, counted = half
    frames, there = [], head_counts(subject)
    number = sum(1 + min(RANDOMS, how_many(heads, there)) for _, heads in sets)
    stage = ablation.progress.stage("sets of heads", number * runs, RUNS)
    for how, heads in sets:
        found = joint_effect(
            subject,
            data,
            heads,
            ablation,
            only=counted,
            randoms=RANDOMS,
            seed=seed,
            judged=stage.step,
        )
        sentence = f"{how}: {found!r}"
        frames.append(
            found.lines.assign(chosen_by=how, top=len(heads), p=found.p, sentence=sentence)
        )
    stage.end()
    return pd.concat(frames, ignore_index=True)


def _examples_by_draws(tally: Tally, ablation: Ablation) -> tuple[int, int]:
    """Runs that one set of heads takes on each half."""
    assert ablation.replacement is not None
    first, second = (count * ablation.replacement.draws for count in tally.in_half)
    return first, second


def can_be_confirmed(ablation: Ablation) -> bool:
    """Whether sets of heads of several layers can be judged by what was asked for."""
    assert ablation.replacement is not None
    on_output = any(effect.needs != "block" for effect in ablation.effects)
    return on_output and ablation.replacement.joint


def of_half(subject: Subject, data: Data, half: int, seed: int) -> Half:
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
