"""Take several heads away together: what the model loses, against random sets of heads.

Heads can stand in for one another, so the effect of a set is not the sum of its heads' effects
(self-repair). Whether a ranking means something is seen when what it ranks first is taken away
together and costs more than as many heads drawn at random from the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.importance.matched_sets import matched_sets
from analysis.importance.set_effects import effects_of_sets, head_counts
from analysis.precision import rounded
from analysis.statistics import REPLICATES, exceedance
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.leave_one_out import Ablation
    from analysis.importance.targets import Data
    from probes.subject import Subject

RANDOMS = 20
FRACTIONS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, repr=False)
class JointEffect:
    """What a model loses without a set of heads, and without random sets like it.

    Attributes:
        heads: the set.
        lines: a DataFrame: kind (``chosen`` or ``random``), draw, heads, value, ci_low, ci_high,
            n, accuracy, accuracy_intact, rows_changed; the chosen set first.
        there_are: how many other sets match it layer by layer.
        p: how often a random set costs as much, ``(1 + #) / (1 + draws)``; NaN where there is no
            other set.
    """

    heads: tuple[Head, ...]
    effect: str
    unit: str
    lines: pd.DataFrame
    there_are: int
    p: float

    @property
    def value(self) -> float:
        return float(self.lines["value"].iloc[0])

    @property
    def random(self) -> np.ndarray:
        """Float ``[draw]``: the effects of the random sets."""
        return self.lines.loc[self.lines["kind"] == "random", "value"].to_numpy(float)

    def __repr__(self) -> str:
        first = self.lines.iloc[0]
        named = ", ".join(str(head) for head in self.heads[:4])
        more = f" and {len(self.heads) - 4} more" if len(self.heads) > 4 else ""
        lost = rounded(first["value"], first["ci_low"], first["ci_high"])
        text = f"Without {named}{more} together: {self.effect} {lost} {self.unit}"
        if np.isfinite(first["accuracy"]):
            text += f", accuracy {first['accuracy_intact']:.3f} -> {first['accuracy']:.3f}"
        if not len(self.random):
            return text + "; no other set has as many heads in each layer"
        text += (
            f"; {len(self.random)} of {self.there_are} sets with as many heads in each layer: "
            f"mean {self.random.mean():.3g}, largest {self.random.max():.3g}"
        )
        accuracy = self.lines.loc[self.lines["kind"] == "random", "accuracy"].to_numpy(float)
        if np.isfinite(accuracy).all():
            text += f", accuracy mean {accuracy.mean():.3f}, lowest {accuracy.min():.3f}"
        return f"{text}, p = {self.p:.3g}"


def joint_effect(
    subject: Subject,
    data: Data,
    heads: Sequence[Head],
    ablation: Ablation,
    *,
    only: Callable[[str], bool] | None = None,
    randoms: int = RANDOMS,
    replicates: int = REPLICATES,
    seed: int = 0,
    judged: Callable[[int], None] | None = None,
) -> JointEffect:
    """The effect of taking heads away together, against layer-matched random sets.

    Args:
        data: must not be what the heads were chosen on, or the set looks better than it is.
        only: says by its id whether an example counts; all by default.
        randoms: most random sets; fewer where fewer exist.
        judged: as `effects_of_sets` takes it.

    Raises:
        ValueError: no heads, or see `effects_of_sets`.
    """
    import pandas as pd

    if not heads:
        raise ValueError("At least one head must be taken away, got none. Name some.")
    sets, there_are = matched_sets(heads, head_counts(subject), randoms, seed)
    own = tuple(sorted(set(heads)))
    found = effects_of_sets(
        subject,
        data,
        [own, *sets],
        ablation,
        only=only,
        replicates=replicates,
        seed=seed,
        judged=judged,
    )
    kinds = pd.DataFrame(
        {
            "kind": ["chosen"] + ["random"] * len(sets),
            "draw": [0, *range(len(sets))],
        }
    )
    lines = pd.concat([kinds, found.frame()], axis=1)
    values = found.change.value
    p = exceedance(float(values[0]), values[1:]) if sets else float("nan")
    return JointEffect(own, found.effect.name, found.effect.unit, lines, there_are, p)


def pruning_curve(
    subject: Subject,
    data: Data,
    order: Sequence[Head],
    ablation: Ablation,
    *,
    only: Callable[[str], bool] | None = None,
    fractions: Sequence[float] = FRACTIONS,
    randoms: int = 5,
    replicates: int = REPLICATES,
    seed: int = 0,
    judged: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Take heads away one after the other in an order, and in random orders of the same heads.

    Args:
        order: the head that goes first comes first.
        fractions: shares of the heads at which the model is run, 0 to 1.
        judged: as `effects_of_sets` takes it.

    Returns:
        Columns step, fraction, removed, kind (``order`` or ``random``), draw, value, ci_low,
        ci_high, n, accuracy, accuracy_intact, rows_changed.
    """
    import pandas as pd

    if len(set(order)) != len(order) or not order:
        raise ValueError(f"An order must name each of its heads once, got {len(order)} names.")
    if any(not 0 <= fraction <= 1 for fraction in fractions):
        raise ValueError(f"`fractions` must lie between 0 and 1, got {list(fractions)}.")
    generator = np.random.default_rng([seed, len(order)])
    orders = [list(order)]
    orders += [[order[i] for i in generator.permutation(len(order))] for _ in range(randoms)]
    lines, sets = [], []
    for number, one in enumerate(orders):
        for step, fraction in enumerate(fractions):
            removed = round(fraction * len(order))
            sets.append(one[:removed])
            kind = "random" if number else "order"
            place = {"step": step, "fraction": fraction, "removed": removed}
            lines.append(place | {"kind": kind, "draw": max(number - 1, 0)})
    found = effects_of_sets(
        subject,
        data,
        sets,
        ablation,
        only=only,
        replicates=replicates,
        seed=seed,
        judged=judged,
    )
    return pd.concat([pd.DataFrame(lines), found.frame().drop(columns="heads")], axis=1)
