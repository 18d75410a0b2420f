"""The tables of `docs/hallucination.md`, put between its markers; its text is written by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from page_parts import table

NAMES = {
    "chair_s": "CHAIR_S",
    "chair_i": "CHAIR_I",
    "absent_partner": "absent partner",
    "absent_partner_probability": "p(absent partner)",
    "present_partner_probability": "p(present partner)",
    "other_errors": "other errors",
}
MADE_UP = ("chair_s", "chair_i", "absent_partner", "absent_partner_probability", "other_errors")
PRICE = ("recall", "present_partner_probability", "words", "repetition", "unfinished")
COMPARED = ("chair_s", "chair_i", "absent_partner", "absent_partner_probability", "recall")
_HEADS_SHOWN = 8


def write_tables(results: Mapping[str, Any], page: Path) -> None:
    """Put every table whose numbers are there between its markers on the page.

    ``<!-- table: NAME -->`` begins and ``<!-- end of table -->`` ends what is replaced. Where there
    is no page, one of nothing but tables is written.
    """
    made = {name: make(results) for name, (part, make) in TABLES.items() if part in results}
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text("\n".join(f"{_marker(name)}\n{_END}\n" for name in TABLES))
    text = page.read_text()
    for name, lines in made.items():
        begin = re.escape(_marker(name))
        text = re.sub(
            f"({begin}\n).*?({re.escape(_END)})",
            lambda match, lines=lines: f"{match[1]}{lines}{match[2]}",
            text,
            flags=re.DOTALL,
        )
    page.write_text(text)


_END = "<!-- end of table -->"


def _marker(name: str) -> str:
    return f"<!-- table: {name} -->"


def _setup(results: Mapping[str, Any]) -> str:
    machine, plain = results["machine"], results["plain"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    shown = sum(bool(row.get("of")) + 1 for row in _worth(plain["rows"])) - 1
    return (
        f"{machine['date']}, {versions}. {plain['images']} scenes are judged. "
        f"{plain['comparisons']} comparisons were planned on `shapes-llava` (every method with the "
        f"baseline and with its norm-matched control, in four metrics); ** leaves 0 out at the "
        f"level {100 * plain['level']:.2f} %, so that all of them hold together at 95 % "
        f"(Bonferroni); * at 95 % alone. The tables of this model hold {shown} comparisons in five "
        "metrics each: read a lone * as a hint.\n"
    )


def _heads(results: Mapping[str, Any]) -> str:
    found = results["heads"]
    lines = sorted(found["effects"], key=lambda line: -line["zero"]["probability"]["value"])
    heading = ["", "p falls by, zeroed", "p falls by, averaged", "nats, zeroed"]
    heading += ["null, nats", "p(present) falls by", "caption loses, nats per word"]
    rows = []
    for line in lines[:_HEADS_SHOWN]:
        zero, mean = line["zero"], line["mean"]
        name = f"{line['head']}{' ← carries the prior' if line['carries'] else ''}"
        rows.append(
            [
                name,
                _head_cell(zero["probability"]),
                _head_cell(mean["probability"]),
                _head_cell(zero["nats"], 2),
                _head_cell(zero["null"], 2),
                _head_cell(zero["present"]),
                _head_cell(zero["caption"]),
            ]
        )
    rest = lines[_HEADS_SHOWN:]
    largest = max(line["zero"]["probability"]["value"] for line in rest)
    least = min(line["zero"]["probability"]["value"] for line in rest)
    intact = found["intact"]
    return (
        table(heading, rows)
        + f"\nThe other {len(rest)} heads: {_signed(least, 3)} to {_signed(largest, 3)}. Intact: "
        f"p(absent partner) {intact['probability']:.3f}, p(present partner) "
        f"{intact['present']:.3f}. {found['absent']} of {found['scenes']} fresh scenes have no "
        "partner.\n"
    )


def _order(results: Mapping[str, Any]) -> str:
    found = results["heads"]
    rows = [["none", f"{found['intact']['probability']:.3f}"]]
    for number, step in enumerate(found["chosen"], start=1):
        heads = " + ".join(one["head"] for one in found["chosen"][:number])
        taken = " ← the prior heads" if number == len(found["prior"]) else ""
        rows.append([heads + taken, f"{step['left']:.4f}"])
    return table(["zeroed, on fresh scenes", "p(absent partner)"], rows)


def _values(part: str, metrics: Sequence[str], draws: bool) -> Callable[[Mapping[str, Any]], str]:
    def make(results: Mapping[str, Any]) -> str:
        heading = ["", *(NAMES.get(metric, metric) for metric in metrics)]
        heading += ["p, range over draws"] if draws else []
        rows = []
        for row in _worth(results[part]["rows"]):
            cells = [_value(row["metrics"].get(metric)) for metric in metrics]
            rows.append([_name(row), *cells, *([_range(row)] if draws else [])])
        return table(heading, rows)

    return make


def _differences(
    part: str, of_controls: bool, roles: Sequence[str] = ()
) -> Callable[[Mapping[str, Any]], str]:
    """Each row minus the baseline or, ``of_controls``, each method minus each of its controls."""

    def make(results: Mapping[str, Any]) -> str:
        rows = []
        for row in _worth(results[part]["rows"]):
            if row["role"] == "baseline" or (roles and row["role"] not in roles):
                continue
            if of_controls and not row["of"]:
                continue
            found = [_found(row, metric, of_controls) for metric in COMPARED]
            name = f"{row['of']} − {row['name'].partition(': ')[2]}" if of_controls else _name(row)
            rows.append([name, *(_difference(one) for one in found)])
        return table(["", *(NAMES.get(metric, metric) for metric in COMPARED)], rows)

    return make


def _worth(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without the controls of methods that touched nothing."""
    idle = {row["name"] for row in rows if row["role"] == "method" and not row["touched"]}
    return [row for row in rows if row.get("of") not in idle]


def _found(row: Mapping[str, Any], metric: str, of_controls: bool) -> list[float] | None:
    if of_controls:
        return row["method_minus"].get(metric)
    return row["metrics"].get(metric, {}).get("difference")


def _words(results: Mapping[str, Any]) -> str:
    against = {
        "mentions": "all true ones",
        "mentions of one text": "true ones of the same text",
        "mentions of one kind": "true ones of the same kind of object",
        "mentions at one place": "true ones at the same place in the text",
        "texts": "whole texts: with a hallucinated object, against without",
    }
    heading = ["hallucinated object words against", "T-VHD", "theirs", "difference"]
    heading += ["lower in", "n"]
    rows = []
    for line in results["words"]["lines"]:
        if line["measure"] != "t_vhd":
            continue
        gap = [line[f"difference{end}"] for end in ("", "_low", "_high")]
        share = [line[f"lower{end}"] for end in ("", "_low", "_high")]
        rows.append(
            [
                against.get(line["compared"], line["compared"]),
                f"{line['hallucinated']:.1f}",
                f"{line['true']:.1f}",
                f"{_signed(gap[0], 1)} [{_signed(gap[1], 1)}, {_signed(gap[2], 1)}]",
                f"{share[0]:.0%} [{share[1]:.0%}, {share[2]:.0%}]",
                f"{line['n_hallucinated']}, {line['n_true']}",
            ]
        )
    return table(heading, rows)


def _name(row: Mapping[str, Any]) -> str:
    nothing = row["role"] != "baseline" and not row["touched"]
    about = row.get("about") or ""
    about = f" ({about})" if about and row["role"] == "method" else ""
    return f"{row['name']}{about}{', touched nothing' if nothing else ''}"


def _value(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return ""
    value, low, high = line["value"][:3]
    places = 1 if value >= 10 else 3
    known = f" ± {(high - low) / 2:.{places}f}" if isfinite(high - low) else ""
    return f"{value:.{places}f}{known}" if isfinite(value) else ""


def _range(row: Mapping[str, Any]) -> str:
    found = [draw["absent_partner_probability"] for draw in row.get("draws", ())]
    return f"{min(found):.3f} to {max(found):.3f}" if len(found) > 1 else ""


def _difference(found: Sequence[float] | None, places: int = 3) -> str:
    if found is None:
        return ""
    value, low, high, strict_low, strict_high = found
    sure = "**" if strict_low > 0 or strict_high < 0 else "*" if low > 0 or high < 0 else ""
    stars = sure.replace("*", "\\*")
    return f"{_signed(value, places)} [{_signed(low, places)}, {_signed(high, places)}]{stars}"


def _head_cell(line: Mapping[str, float], places: int = 3) -> str:
    keys = ("value", "low", "high", "strict_low", "strict_high")
    return _difference([line[key] for key in keys], places)


def _signed(value: float, places: int) -> str:
    text = f"{abs(value):.{places}f}"
    return text if float(text) == 0 else f"{'+' if value > 0 else '−'}{text}"


TABLES: dict[str, tuple[str, Callable[[Mapping[str, Any]], str]]] = {
    "setup": ("plain", _setup),
    "heads": ("heads", _heads),
    "order": ("heads", _order),
    "made up": ("plain", _values("plain", MADE_UP, True)),
    "price": ("plain", _values("plain", PRICE, False)),
    "differences": ("plain", _differences("plain", False)),
    "beyond controls": ("plain", _differences("plain", True)),
    "places": ("places", _differences("places", False)),
    "strengths": ("strengths", _values("strengths", (*MADE_UP[:4], "recall", "words"), False)),
    "words": ("words", _words),
    "sinks made up": ("sinks", _values("sinks", (*MADE_UP, "recall", "words"), False)),
    "sinks differences": ("sinks", _differences("sinks", False, ("method",))),
    "sinks beyond controls": ("sinks", _differences("sinks", True)),
}
"""Name of a table -> the part whose numbers it needs, and what makes it."""
