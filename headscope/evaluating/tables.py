"""From journals to tables: metrics with intervals, time relative to the baseline, answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from headscope.evaluating.answer_journal import AnswerJournal
from headscope.evaluating.conditions import BASELINE, RANDOM_HEADS, Condition

if TYPE_CHECKING:
    import pandas as pd

    from headscope.evaluating.task import Task

COLUMNS = (
    "task", "edit", "kind", "seed", "metric", "split", "unit", "value", "ci_low", "ci_high",
    "difference", "difference_ci_low", "difference_ci_high", "beyond_control",
    "beyond_control_ci_low", "beyond_control_ci_high", "n",
)  # fmt: skip
_TIME_REPLICATES = 1000
NAN = float("nan")


def evaluation_frame(
    task: Task,
    conditions: Sequence[Condition],
    journals: Mapping[str, AnswerJournal],
    *,
    seed: int,
    replicates: int,
) -> pd.DataFrame:
    """One line per condition and metric, with the columns `COLUMNS`.

    Controls of several seeds are pooled into one line of kind ``control`` (``seed`` -1), beside the
    line of each seed.
    """
    import pandas as pd

    from analysis.hallucination.paired import compare

    sheets = {c.name: [task.sheet(journals[c.name].answers)] for c in conditions}
    lines = {c.name: (c.edit, c.kind, _seed(c)) for c in conditions}
    members = {c.name: [c.name] for c in conditions}
    pooled: dict[str, str] = {}
    for condition in conditions:
        mine = [c.name for c in conditions if c.kind == "control" and c.edit == condition.edit]
        if condition.kind == "edit" and mine:
            name = pooled[condition.name] = f"{condition.edit}, {RANDOM_HEADS}"
            sheets[name] = [sheet for control in mine for sheet in sheets[control]]
            members[name] = mine
            lines[name] = (condition.edit, "control", -1)
    found = compare(sheets, BASELINE, pooled, task.averages, seed=seed, replicates=replicates)
    records = [
        {
            "task": task.name,
            **dict(zip(("edit", "kind", "seed"), lines[item.condition], strict=True)),
            "metric": item.metric[0],
            "split": item.metric[1],
            "unit": task.units.get(item.metric[0], ""),
            "value": item.value.value,
            "ci_low": item.value.low,
            "ci_high": item.value.high,
            "difference": item.difference.value,
            "difference_ci_low": item.difference.low,
            "difference_ci_high": item.difference.high,
            "beyond_control": NAN if item.beyond is None else item.beyond.value,
            "beyond_control_ci_low": NAN if item.beyond is None else item.beyond.low,
            "beyond_control_ci_high": NAN if item.beyond is None else item.beyond.high,
            "n": item.n,
        }
        for item in found
    ]
    records += _time_records(task, lines, members, journals, seed)
    frame = pd.DataFrame(records, columns=list(COLUMNS))
    measured = frame.groupby(["metric", "split"])["n"].transform("max") > 0
    order = {name: place for place, name in enumerate(lines.values())}
    keys = [order[line] for line in zip(frame["edit"], frame["kind"], frame["seed"], strict=True)]
    frame = frame.assign(_order=keys)[measured].sort_values("_order", kind="stable")
    return frame.drop(columns="_order").reset_index(drop=True)


def answers_frame(
    task: Task, conditions: Sequence[Condition], journals: Mapping[str, AnswerJournal]
) -> pd.DataFrame:
    """What was said under each condition, and what is wrong with it."""
    import pandas as pd

    records: list[dict[str, Any]] = []
    for condition in conditions:
        head = {"edit": condition.edit, "kind": condition.kind, "seed": _seed(condition)}
        verdicts = task.verdicts(journals[condition.name].answers)
        records += [head | verdict for verdict in verdicts]
    return pd.DataFrame(records)


def reports_of(
    conditions: Sequence[Condition], journals: Mapping[str, AnswerJournal]
) -> list[dict[str, Any]]:
    """What each edit did: how often it fired, and how many (example, query, head) rows it changed.

    The two tokens of the trial are not in it.
    """
    return [
        {
            "edit": condition.edit,
            "kind": condition.kind,
            "seed": _seed(condition),
            "fired": sum(chunk.fired for chunk in journals[condition.name].chunks.values()),
            "touched": sum(chunk.touched for chunk in journals[condition.name].chunks.values()),
        }
        for condition in conditions
        if condition.kind != "baseline"
    ]


def _time_records(
    task: Task,
    lines: Mapping[str, tuple[str, str, int]],
    members: Mapping[str, Sequence[str]],
    journals: Mapping[str, AnswerJournal],
    seed: int,
) -> list[dict[str, Any]]:
    """Median over chunks of the time under a condition over that of the same chunk without it."""
    base, records = journals[BASELINE], []
    for name, (edit, kind, draw) in lines.items():
        for metric, seconds in (("time_per_token", _later), ("time_to_first_token", _first)):
            ratios = np.array(
                [
                    seconds(journals[member], chunk) / seconds(base, chunk)
                    for member in members[name]
                    for chunk in sorted(base.chunks)
                ]
            )
            ratios = ratios[np.isfinite(ratios)]
            value, low, high = _median_interval(ratios, seed)
            records.append(
                dict.fromkeys(COLUMNS, NAN)
                | {"task": task.name, "edit": edit, "kind": kind, "seed": draw, "metric": metric}
                | {"split": "", "unit": "x baseline", "n": len(ratios)}
                | {"value": value, "ci_low": low, "ci_high": high, "difference": value - 1}
                | {"difference_ci_low": low - 1, "difference_ci_high": high - 1}
            )
    return records


def _first(journal: AnswerJournal, chunk: int) -> float:
    found = journal.chunks[chunk]
    return found.first_seconds if found.answers else NAN


def _later(journal: AnswerJournal, chunk: int) -> float:
    found = journal.chunks[chunk]
    return found.later_seconds / found.later_steps if found.later_steps else NAN


def _median_interval(values: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Median and its percentile bootstrap interval over chunks."""
    if not values.size:
        return NAN, NAN, NAN
    median = float(np.median(values))
    if values.size < 2:
        return median, NAN, NAN
    drawn = np.random.default_rng(seed).choice(values, (_TIME_REPLICATES, values.size))
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    return median, float(low), float(high)


def _seed(condition: Condition) -> int:
    return -1 if condition.seed is None else condition.seed
