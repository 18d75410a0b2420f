"""The section of a run that studies filled, on the screen: top heads, their proof, agreement."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

from analysis.precision import plain, rounded
from headscope.cli.screen import print_lines, print_table, wrapped
from headscope.cli.touched_report import touched_lines
from headscope.importance_section import SECTION

if TYPE_CHECKING:
    import pandas as pd

    from analysis.run_folder import Run, Section
    from headscope.summary import SummaryLine

TOP = 10
_EXACT = "importance_"


def told_apart(line: SummaryLine) -> bool:
    """Whether a measure has a table of its own here, and need not stand among the others."""
    return line.measure.startswith((_EXACT, "layer_off_"))


def print_importance(run: Run) -> None:
    """Print what the studies of a run found, if there were any."""
    section = run.sections.get(SECTION)
    if section is None or not section.finished:
        return
    frame = run.heads.frame
    frame = frame[frame["measure"].str.startswith(_EXACT)]
    for (measure, variant), lines in frame.groupby(["measure", "variant"], sort=False):
        _print_top(section, str(measure), str(variant), lines)
    touched = touched_lines((section.manifest or {}).get("touched", []))
    if touched:
        print_lines("", *wrapped(touched))
    if "joint" in section.tables:
        print_lines("", *wrapped(_joint_lines(section.table("joint"))))
    if "agreement" in section.tables:
        _print_agreement(section.table("agreement"))
    others = [name for name in section.tables if name not in ("heads", "agreement", "joint")]
    if others:
        print_lines("", f"More in {section.path}: {', '.join(others)}")


def _print_top(section: Section, measure: str, variant: str, lines: pd.DataFrame) -> None:
    best = lines.dropna(subset="value").nlargest(TOP, "value")
    if best.empty:
        return
    rows = [
        [
            f"{line['tower']}.L{line['layer']}H{line['head']}",
            rounded(line["value"], line["ci_low"], line["ci_high"]),
            f"{plain(line['ci_low'])} to {plain(line['ci_high'])}",
            f"{plain(line['null_low'])} to {plain(line['null_high'])}",
            _against_null(line),
        ]
        for line in best.to_dict("records")
    ]
    unit = str(best["unit"].iloc[0])
    title = f"{measure}, {variant}: what is lost without the head, in {unit}"
    heads, n = len(lines), int(best["n"].max())
    print_lines("")
    print_table(title, ["head", ">lost", "95 % interval", "null", ""], rows, wraps=False)
    print_lines(
        *wrapped(
            [
                f"Highest {len(rows)} of {heads} heads, n = {n}. "
                f"{_reliability(section, measure, variant)}"
            ]
        )
    )


def _against_null(line: dict[str, Any]) -> str:
    if isnan(line["null_high"]) or isnan(line["ci_low"]):
        return ""
    if line["ci_low"] > max(line["null_high"], 0.0):
        return "above its null"
    return "not told from nothing" if line["ci_low"] <= 0 else "not told from its null"


def _reliability(section: Section, measure: str, variant: str) -> str:
    found = {
        line["tower"]: line["reliability"]
        for line in (section.manifest or {}).get("reliability", [])
        if line["measure"] == measure and line["variant"] == variant
    }
    known = [f"{tower} {value:.2f}" for tower, value in found.items() if value is not None]
    if not known:
        return "Too few heads or examples for a split-half reliability."
    return f"Two halves of the examples rank the heads alike: {', '.join(known)} (Spearman)."


def _joint_lines(joint: pd.DataFrame) -> list[str]:
    intro = "Chosen on one half of the examples, judged on the other:"
    return [intro, *(f"  {sentence}" for sentence in dict.fromkeys(joint["sentence"]))]


def _print_agreement(agreement: pd.DataFrame) -> None:
    several = agreement["tower"].nunique() > 1
    for exact, lines in agreement.groupby("exact", sort=False):
        rows = [
            [
                *([line["tower"]] if several else []),
                " ".join(part for part in (line["estimate"], line["variant"]) if part),
                rounded(line["spearman"], line["ci_low"], line["ci_high"]),
                plain(line["spearman_absolute"]),
                plain(line["ceiling"]),
                f"{line['overlap'] * line['top']:.0f} of {line['top']:.0f}",
                f"{line['overlap_chance'] * line['top']:.1f}",
            ]
            for line in lines.to_dict("records")
        ]
        columns = [*(["tower"] if several else []), "estimate", ">Spearman", ">of sizes"]
        columns += [">ceiling", ">top", ">chance"]
        print_lines("")
        print_table(f"Can the estimates of {exact} be trusted here?", columns, rows, wraps=False)
    print_lines(
        *wrapped(
            [
                "Spearman over heads with the exact effect on the same inputs, ± half of its 95 % "
                "interval; of sizes: without sign; ceiling: one half of the examples against the "
                "other; top: heads that both put highest, and by chance."
            ]
        )
    )
