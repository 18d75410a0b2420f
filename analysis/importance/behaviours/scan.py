"""Which heads work harder on one kind of input than on another, and does it matter that they do.

A transfer of the functional scan of experts (fTRI, arXiv 2502.11096) to heads: compare each head's
activity on inputs that call for a behaviour and on controls, then take the heads that differ most
away together and see whether the behaviour suffers more than from as many random heads of the same
layers. The two sets should differ in nothing but the behaviour: templates with one slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from analysis.importance.behaviours.activity import Activity, head_activity
from analysis.importance.behaviours.difference import (
    PERMUTATIONS,
    effect_size,
    false_discovery,
    permutation_p,
)
from analysis.importance.behaviours.places import LAST, Where
from analysis.importance.leave_one_out import Ablation
from analysis.importance.matched_sets import matched_sets
from analysis.importance.set_effects import effects_of_sets, head_counts, output_effect
from analysis.importance.study import StudyOptions
from analysis.statistics import exceedance
from probes.heads import Head
from probes.inputs import Batch

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.targets import Data
    from probes.subject import Subject

Inputs = Batch | Sequence[Batch] | Callable[[], Iterable[Batch]]
TOP = (1, 2, 4, 8)
RANDOMS = 20
SETS = ("behaviour", "control")


@dataclass(frozen=True, repr=False)
class Scan:
    """What a scan found.

    Attributes:
        heads: a DataFrame, the largest differences first: tower, layer, head, of, mean_behaviour,
            mean_control, effect_size (in pooled standard deviations, positive where the head works
            harder on the behaviour), p, q (false discovery rate).
        confirmation: a DataFrame, one line per k, set of inputs and set of heads: k, inputs, kind
            (``chosen`` or ``random``), draw, heads, value, ci_low, ci_high, n, accuracy,
            accuracy_intact. Value is what the model loses without the k heads.
        examples: how many of behaviour and control.
        splits: how many splits of the examples p rests on; p can be no less than 1 / splits.
        there_are: k -> how many other sets match the chosen one layer by layer.
    """

    heads: pd.DataFrame
    confirmation: pd.DataFrame
    effect: str
    unit: str
    examples: tuple[int, int]
    splits: int
    there_are: dict[int, int]

    def top(self, count: int) -> list[Head]:
        """The heads that differ most."""
        lines = self.heads.head(count)
        return [Head(t, int(n), int(h)) for t, n, h in lines[["tower", "layer", "head"]].values]

    def excess(self, inputs: str = "behaviour") -> pd.DataFrame:
        """One line per k: chosen, random_mean, random_high, p (how often a random set costs more).

        Raises:
            ValueError: ``inputs`` is neither ``behaviour`` nor ``control``.
        """
        import pandas as pd

        if inputs not in SETS:
            raise ValueError(f"`inputs` must be one of {', '.join(SETS)}, got {inputs!r}.")
        lines = []
        for k, mine in self.confirmation.groupby("k"):
            mine = mine[mine["inputs"] == inputs]
            chosen = float(mine.loc[mine["kind"] == "chosen", "value"].iloc[0])
            drawn = mine.loc[mine["kind"] == "random", "value"].to_numpy(float)
            known = len(drawn) > 0
            lines.append(
                {
                    "k": k,
                    "chosen": chosen,
                    "random_mean": drawn.mean() if known else np.nan,
                    "random_high": drawn.max() if known else np.nan,
                    "p": exceedance(chosen, drawn) if known else np.nan,
                }
            )
        return pd.DataFrame(lines)

    def __repr__(self) -> str:
        found = int((self.heads["q"] <= 0.05).sum())
        lines = [
            f"Scan of {len(self.heads)} heads, {self.examples[0]} behaviour against "
            f"{self.examples[1]} control examples: {found} differ at a false discovery rate of 5 %"
        ]
        for head, line in zip(self.top(3), self.heads.itertuples(), strict=False):
            lines.append(
                f"  {head}  d = {line.effect_size:+.2f}, p = {line.p:.2g}, q = {line.q:.2g}"
            )
        for inputs in SETS if len(self.confirmation) else ():
            for line in self.excess(inputs).itertuples():
                lines.append(
                    f"  {inputs}: without the top {line.k}: {self.effect} {line.chosen:.3g} "
                    f"{self.unit}, random sets {line.random_mean:.3g} (p = {line.p:.2g})"
                )
        return "\n".join(lines)


def scan(
    subject: Subject,
    behaviour: Inputs,
    control: Inputs,
    *,
    towers: Sequence[str] | None = None,
    where: Where = "last",
    last: int = LAST,
    top: Sequence[int] = TOP,
    randoms: int = RANDOMS,
    permutations: int = PERMUTATIONS,
    options: StudyOptions | None = None,
) -> Scan:
    """Compare every head's activity on two sets of inputs, and confirm by ablation.

    Activity is the length of what the head writes (z times its output matrix), averaged over the
    last ``last`` positions of the prompt, or over the text (``where="text"``).

    Args:
        behaviour, control: batches, or a function that gives them anew; at least 2 examples each.
        towers: those to scan; by default the one that writes, else all.
        top: how many heads are taken away together; sizes beyond the number of heads are left out.
            With an empty one nothing is confirmed.
        randoms: random sets of heads per size, with as many in each layer.
        options: effect, ablation (by default the mean over both sets), label and seed.

    Raises:
        ValueError: too few examples, an unknown tower, or what an effect needs is missing.
    """
    options = options or StudyOptions()
    data = {"behaviour": _anew(behaviour), "control": _anew(control)}
    chosen = list(towers) if towers is not None else default_towers(subject)
    one, other = (head_activity(subject, data[name], chosen, where, last) for name in SETS)
    heads, splits = compared(one, other, permutations, options.seed)
    sizes = (len(one.examples), len(other.examples))
    ranked = [Head(t, int(n), int(h)) for t, n, h in heads[["tower", "layer", "head"]].values]
    ablation = Ablation(options)
    ablation.begin(subject, lambda: chain(data["behaviour"](), data["control"]()))
    lines, there_are = _confirm(subject, data, ranked, ablation, top, randoms, options.seed)
    effect = output_effect(ablation)
    return Scan(heads, lines, effect.name, effect.unit, sizes, splits, there_are)


def compared(
    one: Activity, other: Activity, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[pd.DataFrame, int]:
    """The lines of `Scan.heads`, and the number of splits that p rests on."""
    import pandas as pd

    p, splits = permutation_p(one.values, other.values, permutations, seed)
    frame = pd.DataFrame(
        {
            "tower": [head.tower for head in one.heads],
            "layer": [head.layer for head in one.heads],
            "head": [head.head for head in one.heads],
            "of": one.of,
            "mean_behaviour": one.values.mean(0),
            "mean_control": other.values.mean(0),
            "effect_size": effect_size(one.values, other.values),
            "p": p,
            "q": false_discovery(p),
        }
    )
    order = frame["effect_size"].abs().sort_values(ascending=False, kind="stable").index
    return frame.loc[order].reset_index(drop=True), splits


def default_towers(subject: Subject) -> list[str]:
    """The tower that writes, where there is one; else all."""
    for name in ("language", "decoder"):
        if name in subject.towers:
            return [name]
    return list(subject.towers)


def _confirm(
    subject: Subject,
    data: dict[str, Data],
    ranked: Sequence[Head],
    ablation: Ablation,
    top: Sequence[int],
    randoms: int,
    seed: int,
) -> tuple[pd.DataFrame, dict[int, int]]:
    import pandas as pd

    places, sets, there_are = [], [], {}
    for k in [size for size in top if 0 < size <= len(ranked)]:
        own = tuple(sorted(ranked[:k]))
        drawn, there_are[k] = matched_sets(own, head_counts(subject), randoms, seed)
        for number, one in enumerate([own, *drawn]):
            kind = "random" if number else "chosen"
            places.append({"k": k, "kind": kind, "draw": max(number - 1, 0)})
            sets.append(one)
    frames = []
    for inputs in SETS if sets else ():
        found = effects_of_sets(subject, data[inputs], sets, ablation, seed=seed)
        frame = pd.concat([pd.DataFrame(places), found.frame()], axis=1)
        frame.insert(1, "inputs", inputs)
        frames.append(frame)
    lines = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    return lines, there_are


def _anew(inputs: Inputs) -> Data:
    if callable(inputs):
        return inputs
    given = [inputs] if isinstance(inputs, Batch) else list(inputs)
    ids = [example.id for batch in given for example in batch.examples]
    if len(set(ids)) < len(ids):
        # Batches of plain texts count their examples from 0 each; one id is resampled as one.
        given = [
            replace(batch, examples=tuple(replace(e, id=f"{n}:{e.id}") for e in batch.examples))
            for n, batch in enumerate(given)
        ]
    return lambda: given
