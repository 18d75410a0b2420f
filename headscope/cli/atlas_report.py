"""The pattern atlas of a run on the screen: clusters with their rules, and what each head's are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from analysis.atlas.naming import MIXED
from analysis.precision import plain
from headscope.cli.screen import print_lines, print_table, wrapped

if TYPE_CHECKING:
    import pandas as pd

    from analysis.run_folder import Run, Section

SECTION, ABOUT = "atlas", "atlas.json"
_HEADS_SHOWN = 12
_REASONS_SHOWN = 3


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
    lines = [f"No map of {tower}: {why}" for tower, why in about["refused"].items()]
    lines += _missing(section)
    lines.append(f"More in {section.path}: {', '.join(section.tables)}.")
    if about["towers"]:
        points = f"hs.open_run({str(run.path)!r}).sections[{name!r}].table('points')"
        tower = next(iter(about["towers"]))
        lines.append(f"The map in Jupyter: hs.figures.pattern_map({points}, {tower!r})")
    print_lines("", *wrapped(lines))


def _print_tower(
    tower: str, told: dict[str, Any], clusters: pd.DataFrame, mix: pd.DataFrame, patterns: int
) -> None:
    rows = [
        [
            str(line.cluster) if line.cluster >= 0 else "none",
            str(line.name),
            f"{100 * line.share:.0f} %",
            _heads(mix[mix["most"] == line.cluster], str(line.name)),
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
        "not_drawn": [{"reason": why, "pairs": n} for why, n in _not_drawn(section)],
        "without_exemplars": _without_exemplars(section),
        "clusters": section.table("clusters").to_dict("records"),
        "heads": section.table("head_mix").to_dict("records"),
    }


def _about(section: Section) -> dict[str, Any]:
    from analysis.atlas.atlas_files import read_about

    return read_about(section.path)


def _not_drawn(section: Section) -> list[tuple[str, int]]:
    """Reasons why pairs of a head and an example have no pattern, the commonest first."""
    return Counter(section.table("not_drawn")["reason"]).most_common()


def _without_exemplars(section: Section) -> list[dict[str, str]]:
    """Which exemplars a tower has none of, and why."""
    from analysis.atlas.exemplars.result import read_reasons

    found = read_reasons(section.path)
    return [{"tower": tower, "what": what, "reason": why} for (tower, what), why in found.items()]


def _missing(section: Section) -> list[str]:
    """What has no pattern or no exemplars, by reason."""
    reasons = _not_drawn(section)
    shown = [f"{count:,}: {why}" for why, count in reasons[:_REASONS_SHOWN]]
    lines = []
    if reasons:
        total, more = sum(count for _, count in reasons), len(reasons) - len(shown)
        lines.append(f"{total:,} pairs of a head and an example have no pattern (not_drawn):")
        lines += [f"  {line}" for line in shown]
        lines += [f"  and {more} more reasons"] if more > 0 else []
    lines += [
        f"Without {line['what']} in {line['tower']}: {line['reason']}"
        for line in _without_exemplars(section)
    ]
    return lines


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


def _heads(lines: pd.DataFrame, cluster: str = "") -> str:
    """Heads by name, with what the rules call a head's own patterns where its cluster's is another.

    Older atlases do not have them.
    """
    names = [f"L{layer}H{head}" for layer, head in zip(lines["layer"], lines["head"], strict=True)]
    if cluster and "own_name" in lines:
        names = [
            name if own in (cluster, MIXED) else f"{name} ({own})"
            for name, own in zip(names, lines["own_name"], strict=True)
        ]
    more = len(names) - _HEADS_SHOWN
    return (" ".join(names[:_HEADS_SHOWN]) or "–") + (f" and {more} more" if more > 0 else "")
