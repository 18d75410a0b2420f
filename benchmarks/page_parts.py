"""What sections of the page are made of: tables, a median with its quartiles, the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from measuring import quartiles


def machine_name(machine: dict[str, Any]) -> str:
    """What a section is called after."""
    return machine.get("gpu") or f"CPU, {machine['cores']} cores"


def machine_lines(machine: dict[str, Any]) -> str:
    """Date, machine class and versions."""
    versions = [f"{name} {number}" for name, number in machine["versions"].items()]
    lines = [
        f"{machine['date']}; {machine['system']}, {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory']} GiB; "
        f"load of the machine at the start {machine['load']}.",
        f"Python {machine['python']}, {', '.join(versions)}.",
    ]
    if machine["peers"]:
        peers = ", ".join(f"{name} {number}" for name, number in machine["peers"].items())
        lines.append(f"Peers: {peers}.")
    return "\n".join(lines) + "\n"


def spread(values: Iterable[float], digits: int = 2) -> str:
    """Median and, in brackets, the quartiles.

    >>> spread([1.0, 1.5, 1.25, 1.125, 2.0])
    '1.25 (1.12 to 1.50)'
    """
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, numbers to the right.

    >>> print(table(["", "s"], [["a", "1"]]), end="")
    |  | s |
    |---|---:|
    | a | 1 |
    """
    lines = [heading, ["---", *["---:"] * (len(heading) - 1)], *rows]
    text = ["| " + " | ".join(line) + " |" for line in lines]
    text[1] = "|" + "|".join(lines[1]) + "|"
    return "\n".join(text) + "\n"
