"""Head table lines of measures that read no examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from analysis.head_table import COLUMNS
from analysis.scores import BatchScores
from probes.heads import Site

if TYPE_CHECKING:
    import pandas as pd

    from probes.inputs import Batch

_NAN = float("nan")


@dataclass(frozen=True)
class Line:
    """One number of one head, with the range of its null where that is known.

    Attributes:
        n: how many probes it was counted over; 0 where it comes from weights alone.
    """

    site: Site
    head: int
    measure: str
    variant: str
    unit: str
    value: float
    null_low: float = _NAN
    null_high: float = _NAN
    ci_low: float = _NAN
    ci_high: float = _NAN
    n: int = 0


def table_of(lines: Sequence[Line], *, inputs: str) -> pd.DataFrame:
    """The lines in the columns of a head table."""
    import pandas as pd

    rows = [
        (
            line.site.tower,
            line.site.layer,
            line.head,
            line.measure,
            line.variant,
            inputs,
            line.value,
            line.ci_low,
            line.ci_high,
            line.n,
            line.null_low,
            line.null_high,
            line.unit,
        )
        for line in lines
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def nothing_scored(batch: Batch, reasons: Mapping[tuple[str, str], str]) -> BatchScores:
    """A batch that was counted for no column, with the reasons for what is not measured."""
    empty = torch.zeros(batch.size, 0, dtype=torch.float64)
    ids = tuple(example.id for example in batch.examples)
    return BatchScores((), empty, empty, empty, empty, examples=ids, reasons=dict(reasons))
