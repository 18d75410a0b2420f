"""Names of clusters from what the measures say of their members, each with its rule and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

MIXED = "mixed"


@dataclass(frozen=True)
class Rule:
    """A name, and the measure that earns it.

    The strength of a measure is what it is beyond uniform attention, as a share of what it could
    be beyond it: ``(value - null) / (1 - null)``; of several columns, such as the patches above
    and below, values and nulls are added up.

    Attributes:
        name: what the pattern is called.
        columns: of the features; all must be measured.
        least: strength from which the rule holds.
        level: rules of a lower level are more particular, and go first.
        even: the rule holds instead where the value is at least ``least`` of its null.
    """

    name: str
    columns: tuple[str, ...]
    least: float
    level: int = 0
    even: bool = False

    def judge(self, value: float, null: float) -> tuple[float, bool]:
        """Strength, and whether the rule holds."""
        if self.even:
            strength = value / null if null > 0 else float("nan")
        else:
            strength = (value - null) / (1 - null) if null < 1 else float("nan")
        return strength, bool(strength >= self.least)


NEAR_TOKENS = tuple(f"distance_profile[d={far}]" for far in ("0", "1", "2-3"))

RULES = (
    # Queries without an earlier copy of their token count with 0, so these stay far below 1.
    Rule("induction", ("induction",), 0.15),
    Rule("duplicate token", ("duplicate_token",), 0.15),
    Rule("previous token", ("previous_token",), 0.25),
    Rule("next token", ("next_token",), 0.25),
    Rule("itself", ("self_attention",), 0.25),
    Rule("patch above", ("row_band[up]",), 0.4),
    Rule("patch below", ("row_band[down]",), 0.4),
    Rule("patch on the left", ("row_band[left]",), 0.4),
    Rule("patch on the right", ("row_band[right]",), 0.4),
    Rule("first key", ("first_key",), 0.5),
    Rule("rows above and below", ("row_band[up]", "row_band[down]"), 0.4),
    Rule("patches left and right", ("row_band[left]", "row_band[right]"), 0.4),
    Rule("one offset", ("best_offset[tokens]",), 0.4, 1),
    Rule("one displacement", ("best_offset[patches]",), 0.4, 1),
    Rule("near tokens", NEAR_TOKENS, 0.5, 1),
    Rule("stripe", ("stripe",), 0.3, 1),
    Rule("block", ("block",), 0.25, 1),
    Rule("uniform", ("entropy_normalised",), 0.95, 1, even=True),
    Rule("near patches", ("local_share",), 0.5, 2),
)
"""Tried level by level: in the first level where any holds, the strongest gives the name, and of
those within 0.1 of it the first.

Strengths are ours. From 0.25 on a single token holds a quarter of what chance leaves it; from 0.4
on a patch holds about as much as all others together."""

_MEASURED = 0.5
_CLOSE = 0.1


@dataclass(frozen=True)
class Judged:
    """What a rule says of a group of patterns."""

    rule: Rule
    value: float
    null: float
    strength: float
    holds: bool
    members: float

    def __str__(self) -> str:
        columns = " + ".join(self.rule.columns)
        numbers = f"{self.value:.2f} against {self.null:.2f} under uniform attention"
        return f"{self.rule.name}: {columns} {numbers}"


@dataclass(frozen=True)
class PatternName:
    """The name of a group of patterns, and how it came about.

    Attributes:
        name: of the rule that held, or ``mixed``.
        sentence: the rule and its numbers; where none holds, what came nearest.
        strength: of the rule, 0 for ``mixed``.
        members: share of the members of which the rule holds one by one.
        also: other rules that hold of the group, strongest first.
        not_judged: names of rules whose measures are there for too few members.
    """

    name: str
    sentence: str
    strength: float
    members: float
    also: tuple[str, ...]
    not_judged: tuple[str, ...]


def name_patterns(
    features: pd.DataFrame, nulls: pd.DataFrame, rules: Sequence[Rule] = RULES
) -> PatternName:
    """The name of the patterns whose features these are, a line each.

    A rule judges means over the members on which all its columns are measured, and is not tried
    where that is less than half of them.
    """
    judged = [_judge(rule, features, nulls) for rule in rules]
    known = [one for one in judged if one is not None]
    absent = tuple(rule.name for rule, one in zip(rules, judged, strict=True) if one is None)
    held = sorted(
        (one for one in known if one.holds), key=lambda one: (one.rule.level, -one.strength)
    )
    if held:
        # The weight on the token before and on the patch on the left may be one and the same.
        close = [
            one
            for one in held
            if one.rule.level == held[0].rule.level and one.strength >= held[0].strength - _CLOSE
        ]
        first = min(close, key=lambda one: rules.index(one.rule))
        held = [first, *(one for one in held if one is not first)]
        return PatternName(
            first.rule.name, str(first), first.strength, first.members,
            tuple(one.rule.name for one in held[1:]), absent,
        )  # fmt: skip
    if not known:
        why = f"{MIXED}: no rule could be tried, because none of their measures is there."
        return PatternName(MIXED, why, 0.0, float("nan"), (), absent)
    nearest = max(known, key=lambda one: one.strength / one.rule.least)
    why = (
        f"{MIXED}: no rule holds; the nearest is {nearest}, strength {nearest.strength:.2f} of "
        f"{nearest.rule.least:g}"
    )
    return PatternName(MIXED, why, 0.0, float("nan"), (), absent)


def name_clusters(
    labels: np.ndarray, features: pd.DataFrame, nulls: pd.DataFrame, rules: Sequence[Rule] = RULES
) -> dict[int, PatternName]:
    """The name of each cluster of ``labels [sample]``, of those in no cluster (-1) too."""
    return {
        int(label): name_patterns(features[labels == label], nulls[labels == label], rules)
        for label in np.unique(labels)
    }


def name_heads(
    samples: pd.DataFrame,
    features: pd.DataFrame,
    nulls: pd.DataFrame,
    rules: Sequence[Rule] = RULES,
) -> pd.DataFrame:
    """The name of each head's own patterns, whatever cluster they lie in.

    A cluster is named by the mean of all its members: a head that stands out among them may bear
    another name by itself.

    Returns:
        A line per head: ``tower layer head own_name own_sentence``.
    """
    import pandas as pd

    keys = ["tower", "layer", "head"]
    lines = []
    for head, rows in samples.groupby(keys, sort=True).indices.items():
        own = name_patterns(features.iloc[rows], nulls.iloc[rows], rules)
        lines.append((*head, own.name, own.sentence))  # pyright: ignore
    return pd.DataFrame(lines, columns=[*keys, "own_name", "own_sentence"])


def _judge(rule: Rule, features: pd.DataFrame, nulls: pd.DataFrame) -> Judged | None:
    columns = list(rule.columns)
    if any(name not in features for name in columns) or features.empty:
        return None
    value = features[columns].to_numpy(np.float64).sum(1)
    null = nulls[columns].to_numpy(np.float64).sum(1)
    known = np.isfinite(value) & np.isfinite(null)
    if known.mean() < _MEASURED:
        return None
    mean, even = float(value[known].mean()), float(null[known].mean())
    strength, holds = rule.judge(mean, even)
    if not np.isfinite(strength):
        return None
    each = [rule.judge(v, n)[1] for v, n in zip(value[known], null[known], strict=True)]
    return Judged(rule, mean, even, strength, holds, float(np.mean(each)))
