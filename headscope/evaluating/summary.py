"""An evaluation as text: what was made up, at what price, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from analysis.precision import plain, rounded
from headscope.evaluating.conditions import BASELINE, RANDOM_HEADS

if TYPE_CHECKING:
    from headscope.evaluating.result import Evaluation

NAMES = {
    "chair_s": "CHAIR_S",
    "chair_i": "CHAIR_I",
    "absent_partner": "absent partner",
    "absent_partner_probability": "p(absent partner)",
    "present_partner_probability": "p(present partner)",
    "continuation_probability": "p(continuation)",
    "present_partner": "present partner",
    "other_errors": "other errors",
    "yes_ratio": "yes ratio",
    "f1": "F1",
    "time_per_token": "time/token",
    "time_to_first_token": "time to first",
}
ERRORS = (
    "chair_s", "chair_i", "absent_partner", "other_errors", "absent_partner_probability",
    "continuation_probability",
)  # fmt: skip
PRICE = (
    "recall", "present_partner", "present_partner_probability", "objects", "words", "repetition",
    "unfinished", "time_per_token", "time_to_first_token",
)  # fmt: skip
POLL = ("accuracy", "f1", "yes_ratio", "precision", "recall", "unclear", "time_to_first_token")
_GAP = 2
_NAME_LENGTH = 26


@dataclass(frozen=True)
class Part:
    """One table: its title, columns (``>`` aligns to the right) and rows of text."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def split(self, width: int, gap: int = _GAP) -> list[Part]:
        """The same in as many tables as are needed to fit a width, each with the first column.

        Args:
            gap: characters between two columns.
        """
        widths = [
            max(len(cells[i].lstrip(">")) for cells in (self.columns, *self.rows)) + gap
            for i in range(len(self.columns))
        ]
        groups: list[list[int]] = [[]]
        for index in range(1, len(self.columns)):
            used = widths[0] + sum(widths[i] for i in groups[-1])
            if groups[-1] and used + widths[index] > width:
                groups.append([])
            groups[-1].append(index)
        return [
            Part(self.title if number == 0 else f"{self.title}, continued", *self._picked(group))
            for number, group in enumerate(groups)
        ]

    def _picked(self, group: Sequence[int]) -> tuple[list[str], list[list[str]]]:
        return (
            [self.columns[i] for i in (0, *group)],
            [[row[i] for i in (0, *group)] for row in self.rows],
        )


def parts(found: Evaluation) -> list[Part]:
    """The tables of an evaluation, those about differences behind those about values."""
    if found.plan["task"] == "pope":
        return _pope_parts(found)
    tables = [
        _values(found, "What is made up", ERRORS),
        _values(found, "At what price", PRICE),
        _differences(found, "Difference to the baseline", "difference", (*ERRORS, "recall")),
        _differences(
            found, "Beyond its random-head control", "beyond_control", (*ERRORS, "recall")
        ),
    ]
    return [table for table in tables if table is not None]


def legend(found: Evaluation) -> list[str]:
    """What the numbers mean, and what one should know of these."""
    lines = [
        "± is half of the 95 % bootstrap interval over images, [low, high] the interval of a "
        "difference within the same images; * where it leaves 0 out."
    ]
    if (found.frame["kind"] == "control").any():
        lines.append(
            "Random heads: at the same layers and queries, as many heads drawn at random are "
            "scaled so that z moves by the same length."
        )
    if (found.frame["n"][found.frame["metric"] == "time_per_token"] < 10).any():
        lines.append("Times are of few batches.")
    short = _short_names(found)
    lines += [f"{name} is {edit}" for edit, name in short.items() if name != edit]
    return [*lines, *found.notes, *_skipped(found)]


def as_text(found: Evaluation, width: int = 100) -> str:
    """The tables, one below the other."""
    lines = [headline(found)]
    for part in parts(found):
        for piece in part.split(width):
            lines += ["", piece.title, *_aligned(piece)]
    return "\n".join([*lines, "", *legend(found)])


def headline(found: Evaluation) -> str:
    plan = found.plan
    model, data = plan["model"], plan["data"]["name"] or "examples"
    return (
        f"{model['name']} ({model['class']}, {model['dtype']}) on {data}: {plan['task']}, "
        f"{found.images} images, seed {plan['seed']}"
    )


def _values(found: Evaluation, title: str, metrics: Sequence[str], split: str = "") -> Part | None:
    known = _known(found, metrics, split)
    if not known:
        return None
    rows = [
        [name, *(_value(lines.get((metric, split))) for metric in known)]
        for name, lines in _conditions(found)
    ]
    return Part(title, ["", *(f">{NAMES.get(metric, metric)}" for metric in known)], rows)


def _differences(
    found: Evaluation, title: str, column: str, metrics: Sequence[str], split: str = ""
) -> Part | None:
    known = _known(found, metrics, split)
    rows = []
    for name, lines in _conditions(found):
        cells = [_difference(lines.get((metric, split)), column) for metric in known]
        if name != BASELINE and any(cell != "" for cell in cells):
            rows.append([name, *cells])
    columns = ["", *(f">{NAMES.get(metric, metric)}" for metric in known)]
    return Part(title, columns, rows) if rows else None


def _pope_parts(found: Evaluation) -> list[Part]:
    splits = [split for split in dict.fromkeys(found.frame["split"]) if split]
    tables: list[Part | None] = []
    for split in sorted(splits, key=lambda name: name == "mean", reverse=True):
        title = "Mean over the splits" if split == "mean" else f"Split {split}"
        tables.append(_values(found, title, POLL, split))
    tables.append(_values(found, "Time", ("time_to_first_token",)))
    main = "mean" if "mean" in splits else splits[0]
    for title, column in (
        ("Difference to the baseline", "difference"),
        ("Beyond its random-head control", "beyond_control"),
    ):
        where = f"{title} ({main})"
        tables.append(_differences(found, where, column, ("accuracy", "f1", "yes_ratio"), main))
    return [table for table in tables if table is not None]


def _known(found: Evaluation, metrics: Sequence[str], split: str) -> list[str]:
    frame = found.frame[(found.frame["split"] == split) & (found.frame["n"] > 0)]
    there = set(frame["metric"])
    return [metric for metric in metrics if metric in there]


def _conditions(found: Evaluation) -> list[tuple[str, dict[tuple[str, str], Mapping[str, Any]]]]:
    """Short name and lines of each condition; every edit is followed by its pooled control."""
    short = _short_names(found)
    named: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    frame = found.frame[(found.frame["kind"] != "control") | (found.frame["seed"] == -1)]
    for edit in dict.fromkeys(frame["edit"]):
        for line in frame[frame["edit"] == edit].to_dict("records"):
            name = short[edit] if line["kind"] != "control" else f"  {short[edit]}: {RANDOM_HEADS}"
            named.setdefault(name, {})[line["metric"], line["split"]] = line
    return list(named.items())


def _short_names(found: Evaluation) -> dict[str, str]:
    """Names that leave room for numbers, told apart by a number where their beginnings agree."""
    short: dict[str, str] = {}
    for edit in dict.fromkeys(found.frame["edit"]):
        name = edit if len(edit) <= _NAME_LENGTH else f"{edit[: _NAME_LENGTH - 1]}…"
        twins = sum(other.split(" (")[0] == name for other in short.values())
        short[edit] = f"{name} ({twins + 1})" if twins else name
    return short


def _value(line: Mapping[str, Any] | None) -> str:
    return "–" if line is None else rounded(line["value"], line["ci_low"], line["ci_high"])


def _difference(line: Mapping[str, Any] | None, column: str) -> str:
    if line is None or not isfinite(line[column]):
        return ""
    low, high = line[f"{column}_ci_low"], line[f"{column}_ci_high"]
    sure = "*" if low > 0 or high < 0 else " "
    return f"{_signed(line[column])} [{_signed(low)}, {_signed(high)}]{sure}"


def _signed(value: float) -> str:
    if not isfinite(value):
        return "n/a"
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{plain(abs(value), 2)}"


def _skipped(found: Evaluation) -> list[str]:
    if not found.skipped:
        return []
    first = found.skipped[0]
    count = len(found.skipped)
    return [
        f"Skipped {count} example{'s' if count > 1 else ''}; the first: {first['id']}: "
        f"{first['reason']}"
    ]


def _aligned(part: Part) -> list[str]:
    table = [part.columns, *part.rows]
    right = [name.startswith(">") for name in part.columns]
    cells = [[cell.removeprefix(">") for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        (" " * _GAP)
        .join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(row, widths, right, strict=True)
        )
        .rstrip()
        for row in cells
    ]
