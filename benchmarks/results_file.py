"""The JSON file of one script on one device: parts that are not measured again stay in it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

ALIKE = ("system", "cores", "processor", "versions")
"""What of the machine has to be the same for an earlier part to stay."""


def kept_entries(
    path: Path, machine: Mapping[str, Any], settings: Mapping[str, Any], parts: Collection[str]
) -> list[dict[str, Any]]:
    """Entries of parts that are not asked for, if measured alike: same settings, same machine.

    Each carries its ``date``, that of the file where it had none.
    """
    if not path.exists():
        return []
    known = json.loads(path.read_text())
    before = known["machine"]
    if known.get("settings") != dict(settings) or any(before[it] != machine[it] for it in ALIKE):
        return []
    return [
        {"date": before["date"]} | entry for entry in known["entries"] if entry["part"] not in parts
    ]


def earlier_lines(result: Mapping[str, Any]) -> str:
    """What of a page's section was measured before its date; empty where nothing was."""
    dates = {entry["part"]: entry.get("date") for entry in result["entries"]}
    said = [
        f"`{part}` {date}" for part, date in dates.items() if date not in (None, _today(result))
    ]
    return f"Measured earlier: {', '.join(said)}.\n" if said else ""


def _today(result: Mapping[str, Any]) -> Any:
    return result["machine"]["date"]
