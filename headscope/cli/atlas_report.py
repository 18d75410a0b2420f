"""The pattern atlas of a run on the screen: clusters with their rules, and what each head's are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from analysis.precision import plain
from headscope.cli.screen import print_lines, print_table, wrapped

if TYPE_CHECKING:
    import pandas as pd

    from analysis.run_folder import Run, Section

SECTION, ABOUT = "atlas", "atlas.json"
_HEADS_SHOWN = 12


def print_atlas(run: Run, name: str = SECTION) -> None:
    """Print the atlas of a run, if it has one."""
    section = run.sections.get(name)
    if section is None or not section.finished or not (section.path / ABOUT).is_file():
        return
    about, clusters, mix = _about(section), section.table("clusters"), section.table("head_mix")
    points = section.table("points")
    for tower, told in about["towers"].items():
        _print_tower(
            tower, told, clusters[clusters["tower"] == tower], mix[mix["tower"] == tower],
            int((points["tower"] == tower).sum()),
        )  # fmt: skip
    lines = [f"{tower}: {why}" for tower, why in about["refused"].items()]
    missed = len(section.table("not_drawn"))
    if missed:
        lines.append(f"{missed:,} pairs of a head and an example have no pattern: not_drawn.")
    lines.append(f"More in {section.path}: {', '.join(section.tables)}.")
    print_lines("", *wrapped(lines))


def _print_tower(
    tower: str, told: dict[str, Any], clusters: pd.DataFrame, mix: pd.DataFrame, patterns: int
) -> None:
    rows = [
        [
            str(line.cluster) if line.cluster >= 0 else "none",
            str(line.name),
            f"{100 * line.share:.0f} %",
            _heads(mix[mix["most"] == line.cluster]),
            str(line.sentence).partition(": ")[2],
        ]
        for line in clusters.itertuples(index=False)
    ]
    print_lines("")
    columns = [">cluster", "name", ">share", "heads that are mostly this", "by"]
    title = f"Pattern atlas of {tower}: {patterns:,} patterns of {len(mix)} heads"
    print_table(title, columns, rows)
    seconds = ", ".join(f"{step} {plain(took)}" for step, took in told["seconds"].items())
    lines = [str(told["verdict"]), *_beside(told), *told["notes"], *_verdicts(mix)]
    print_lines("", *wrapped([*lines, f"Seconds: {seconds}."]))


def atlas_record(section: Section) -> dict[str, Any]:
    """What `print_atlas` says, for JSON."""
    return {
        "section": str(section.path),
        "about": _about(section),
        "clusters": section.table("clusters").to_dict("records"),
        "heads": section.table("head_mix").to_dict("records"),
    }


def _about(section: Section) -> dict[str, Any]:
    return json.loads((section.path / ABOUT).read_text(encoding="utf-8"))


def _beside(about: dict[str, Any]) -> list[str]:
    if not about["beside"]:
        return []
    told = ", ".join(f"{name} {plain(value)}" for name, value in about["beside"].items())
    return [f"Other methods find the same clusters to (adjusted Rand index): {told}."]


def _verdicts(mix: pd.DataFrame) -> list[str]:
    steady = int((mix["verdict"] == "steady").sum())
    judged = int((mix["verdict"] != "too few patterns").sum())
    if not judged or mix["most"].nunique() < 2:
        return []
    said = [
        f"{steady} of {judged} heads are steady: 80 % or more of their patterns in one cluster."
    ]
    varied = mix[mix["verdict"] == "content-dependent"].sort_values("entropy_nats")
    if len(varied):
        said.append(f"Content-dependent, most varied last: {_heads(varied)}.")
    return said


def _heads(lines: pd.DataFrame) -> str:
    names = [f"L{layer}H{head}" for layer, head in zip(lines["layer"], lines["head"], strict=True)]
    more = len(names) - _HEADS_SHOWN
    return (" ".join(names[:_HEADS_SHOWN]) or "–") + (f" and {more} more" if more > 0 else "")
