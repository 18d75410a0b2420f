"""What ablations and patches changed, in a line for each kind of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NAMED = 3
_KINDS = {
    "importance_": "",
    "keep_one_": " of all other heads of the layer",
    "patch_noising": "noising",
    "patch_denoising": "denoising",
}
"""How measures begin, and what their line adds. `layer_off_` changes what `importance_` changes."""


def touched_lines(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences such as ``mean ablation: 8 heads x 50 examples, 2,400 rows of z changed for each``.

    Args:
        records: as `analysis.touched.by_tower` gives them. Measures of one kind share a line, and
            so do towers.
    """
    by_kind: dict[str, dict[str, str]] = {}
    for record in records:
        kind = next((kind for kind in _KINDS if record["measure"].startswith(kind)), None)
        if kind is not None and record["heads"]:
            towers = by_kind.setdefault(_title(kind, record["variant"]), {})
            towers.setdefault(record["tower"], _sentence(record))
    return [_line(title, towers) for title, towers in by_kind.items()]


def _line(title: str, towers: Mapping[str, str]) -> str:
    several = len(towers) > 1
    return f"{title}: " + "; ".join(
        f"{tower} {text}" if several else text for tower, text in towers.items()
    )


def _title(kind: str, variant: str) -> str:
    if kind.startswith("patch_"):
        return " ".join(["patching,", _KINDS[kind], *([variant] if variant else [])])
    return f"{variant.removeprefix('ablation=')} ablation{_KINDS[kind]}"


def _sentence(record: Mapping[str, Any]) -> str:
    heads, examples = record["heads"], record["examples"]
    draws = round(record["ablations"] / max(heads * examples, 1))
    times = f" x {draws} draws" if draws > 1 else ""
    start = f"{_counted(heads, 'head')} x {_counted(examples, 'example')}{times}, "
    rows, changed = record["rows"], record["changed"]
    if not changed[1]:
        why = record["reason"][0].lower() + record["reason"][1:].rstrip(".")
        return f"{start}none of {_between(rows)} rows of z changed: {why}"
    counts = _between(changed) if rows == changed else f"{_between(changed)} of {_between(rows)}"
    text = f"{start}{counts} rows of z changed for each"
    same = record["unchanged"]
    if same:
        more = f" and {len(same) - _NAMED} more" if len(same) > _NAMED else ""
        text += f" (for {', '.join(same[:_NAMED])}{more} what was put in equals what was there)"
    return text


def _counted(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _between(ends: Sequence[int]) -> str:
    low, high = ends
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
