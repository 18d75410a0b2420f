"""Replacements by the names that users write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from analysis.importance.replacements.constant import Mean, Zero
from analysis.importance.replacements.pattern import KnockedOut, MeanPattern, Uniform
from analysis.importance.replacements.replacement import Replacement
from analysis.importance.replacements.resample import Resample
from probes.tokens.map import ROLES


def replacement_named(name: str, *, draws: int = 5, seed: int = 0) -> Replacement:
    """``zero``, ``mean``, ``mean:role``, ``resample``, ``uniform``, ``mean_pattern``,
    ``knock_out:text->image``.

    Raises:
        ValueError: none of these.

    >>> replacement_named("knock_out:text->image").name
    'knock_out:text->image'
    """
    simple: Mapping[str, Any] = {
        "zero": Zero,
        "mean": Mean,
        "mean:role": lambda: Mean(by_role=True),
        "resample": lambda: Resample(draws, seed),
        "uniform": Uniform,
        "mean_pattern": MeanPattern,
    }
    if name in simple:
        return simple[name]()
    kind, _, edge = name.partition(":")
    queries, arrow, keys = edge.partition("->")
    if kind in ("knock_out", "knockout") and arrow:
        unknown = [role for role in (queries, keys) if role not in ROLES]
        if unknown:
            raise ValueError(
                f"A role must be one of {', '.join(ROLES)}, got {unknown[0]!r}. "
                "Write for example `--ablation knock_out:text->image`."
            )
        return KnockedOut(queries, keys)
    raise ValueError(
        f"An ablation must be one of {', '.join(simple)} or knock_out:QUERY->KEY, got {name!r}."
    )
