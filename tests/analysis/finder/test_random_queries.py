"""Random queries: right by an evaluation of their own, or refused by the finder's own error."""

from __future__ import annotations

import random

import numpy as np
import pandas as pd
import pytest

from analysis.finder import Found, QueryError
from analysis.head_table import HeadTable

HEADS = [(layer, head) for layer in range(3) for head in range(5)]
MEASURES = ("entropy", "vhd", "sink_weight")
WORDS = (
    "entropy", "vhd", "sink_weight[k=1]", "sink_rate[eps=0.3]", "layer", "head", "tower", "and",
    "or", "not", "by", "ascending", "(", ")", "<", "<=", "==", "!=", "=", "1", "-2.5", ".3e2", "@",
    ".", ".ci_low", "[", "]", "`", "words", "language", "ascii\0", "é", "٣", "💡", "__class__",
    "nan", "inf", "'", '"', "\n", "1e400", "{0}", "%s", "\\", "; import os",
)  # fmt: skip


@pytest.fixture(scope="module")
def heads() -> HeadTable:
    """Values in small whole numbers, so that equality happens; a fifth of them missing."""
    rng = np.random.default_rng(5)
    lines = []
    for measure in MEASURES:
        for layer, head in HEADS:
            value = float(rng.integers(0, 5)) if rng.random() > 0.2 else np.nan
            lines.append(("language", layer, head, measure, "", "words", value))
    names = ["tower", "layer", "head", "measure", "variant", "inputs", "value"]
    frame = pd.DataFrame(lines, columns=names)
    return HeadTable(
        frame.assign(
            ci_low=np.nan, ci_high=np.nan, n=3.0, null_low=np.nan, null_high=np.nan, unit="nats"
        )
    )


def _said(rng: random.Random, depth: int) -> tuple[str, object]:
    """A random condition, as text and as a function of one head's values: True, False or None."""
    kind = rng.choice(["compare", "compare", "not", "and", "or"]) if depth else "compare"
    if kind == "not":
        text, inner = _said(rng, depth - 1)
        return f"not ({text})", lambda at: None if inner(at) is None else not inner(at)
    if kind in ("and", "or"):
        parts = [_said(rng, depth - 1) for _ in range(rng.randint(2, 3))]
        decisive = kind == "or"

        def joined(at: dict) -> bool | None:
            found = [part(at) for _, part in parts]
            if decisive in found:
                return decisive
            return None if None in found else not decisive

        return f" {kind} ".join(f"({text})" for text, _ in parts), joined
    left, right = rng.choice([*MEASURES, "layer"]), rng.choice([*MEASURES, str(rng.randint(0, 4))])
    relation = rng.choice(["<", "<=", ">", ">=", "==", "!="])

    def compared(at: dict) -> bool | None:
        a, b = at[left], at[right] if right in at else float(right)
        if a != a or b != b:
            return None
        return {
            "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b, "==": a == b, "!=": a != b,
        }[relation]  # fmt: skip

    return f"{left} {relation} {right}", compared


def test_random_conditions_equal_a_head_by_head_reading(heads: HeadTable) -> None:
    values = {
        place: {"layer": float(place[0])}
        | {
            measure: float(heads.grid(measure)[place])
            for measure in MEASURES
        }
        for place in HEADS
    }  # fmt: skip
    rng, found_some = random.Random(1), 0
    for _ in range(80):
        text, condition = _said(rng, 3)
        answers = {place: condition(values[place]) for place in HEADS}  # type: ignore[operator]
        found = heads.find(text)
        expected = {f"language.L{layer}H{head}" for (layer, head), a in answers.items() if a}
        assert set(found.names) == expected, text
        assert found.undecided == sum(answer is None for answer in answers.values()), text
        ranked = found.frame[found.ranked_by].to_numpy(float)
        if found.ranked_by != "layer":
            ranked = ranked[np.isfinite(ranked)]
            assert (np.diff(ranked) <= 0).all()
        found_some += 0 < len(expected) < len(HEADS)
    assert found_some > 30


def _typed(rng: random.Random) -> str:
    """Anything: words in any order, any signs, or a query with a few places spoiled."""
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(["", " "]).join(rng.choices(WORDS, k=rng.randint(0, 9)))
    if kind == 1:
        signs = (chr(rng.randint(1, rng.choice([127, 70_000]))) for _ in range(30))
        return "".join(signs)[: rng.randint(1, 30)]
    parts = _said(rng, 2)[0].split(" ")
    for _ in range(rng.randint(0, 2)):
        parts[rng.randrange(len(parts))] = rng.choice(WORDS)
    return " ".join(parts)


def test_whatever_is_typed_is_answered_or_refused(heads: HeadTable) -> None:
    rng, answered, refused = random.Random(2), 0, 0
    for _ in range(600):
        text = _typed(rng)
        try:
            answered += isinstance(heads.find(text), Found)
        except QueryError as error:
            refused += 1
            assert 0 <= error.place <= len(text), text
            assert str(error).endswith((".", "?")), str(error)
    assert answered > 50 and refused > 200
