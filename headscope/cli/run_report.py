"""A run on the screen or as JSON, finished or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from headscope.cli.atlas_report import SECTION as ATLAS
from headscope.cli.atlas_report import atlas_record, print_atlas
from headscope.cli.importance_report import print_importance, told_apart
from headscope.cli.scan_report import is_difference, print_scan, scan_of, scan_record
from headscope.cli.screen import (
    columns_of_terminal,
    print_json,
    print_lines,
    print_table,
    wrapped,
)
from headscope.cli.sinks_report import print_sinks
from headscope.cli.vhd_report import print_vhd

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from analysis.run_folder import Run
    from headscope.summary import SummaryLine

_REASONS_SHOWN = 3
FEW_EXAMPLES = 20
"""Below, percentile intervals cover the truth in less than 91 % of cases (see the statistics)."""


def print_run(run: Run, as_json: bool, every_variant: bool = False) -> None:
    """Print what a run holds: its state, a table per tower, what was left out and why."""
    if as_json:
        print_json(_record(run))
        return
    from headscope.summary import columns, heads_that_fit, shortened, summarise, tower_title

    plan = run.plan
    model = plan["model"]
    print_lines(
        f"{model['name']} ({model['class']}, {model['dtype']}) on {_data(plan)}, "
        f"seed {plan['seed']}",
        f"run    {run.path}  ({_state(run)})",
    )
    lines = summarise(run.heads) if run.shards[0] or run.finished else {}
    if run.finished:
        lines = {
            tower: [r for r in rows if not told_apart(r) and not is_difference(r.measure)]
            for tower, rows in lines.items()
        }
    if not every_variant:
        lines = {tower: shortened(rows) for tower, rows in lines.items()}
    for tower, rows in lines.items():
        if not rows:
            continue
        print_lines("")
        shown = heads_that_fit(rows, columns_of_terminal())
        cells = [row.cells(shown) for row in rows]
        print_table(tower_title(run.heads, tower), columns(shown), cells, wraps=False)
    print_importance(run)
    print_vhd(run)
    print_sinks(run)
    print_atlas(run)
    print_scan(run)
    if any(lines.values()):
        print_lines("", *_legend(run, [row for rows in lines.values() for row in rows]))
    print_lines(*wrapped(_left_out(run)))


def _data(plan: Mapping[str, Any]) -> str:
    control = f" against {plan['control']['name']}" if "scan" in plan else ""
    return f"{plan['data']['name']}{control}"


def _legend(run: Run, rows: Sequence[SummaryLine]) -> list[str]:
    lines = [
        "± is half of the 95 % bootstrap interval over examples. The null is the same measure",
        "with equal weight on every allowed key, or what its page in docs/measures says.",
    ]
    if any(0 < row.n < FEW_EXAMPLES for row in rows):
        lines.append(f"With fewer than {FEW_EXAMPLES} examples these intervals are too narrow.")
    if any(row.more for row in rows):
        lines.append(f"(+N): N more variants, with `headscope show {run.path} --all`.")
    return lines


def _state(run: Run) -> str:
    done, total = run.shards
    if run.finished:
        return "finished"
    if not total:
        return "unfinished, start it again"
    doing = "being written" if run.being_written else "unfinished, go on with --resume"
    return f"{doing}: {done} of {total} shards"


def _left_out(run: Run) -> list[str]:
    lines: list[str] = []
    skipped = run.skipped
    if skipped:
        lines.append(f"Skipped {len(skipped)} example{'s' if len(skipped) > 1 else ''}:")
        lines += [f"  {item['id']}: {item['reason']}" for item in skipped[:_REASONS_SHOWN]]
        if len(skipped) > _REASONS_SHOWN:
            lines.append(f"  and {len(skipped) - _REASONS_SHOWN} more, in manifest.json")
    by_reason: dict[tuple[str, str], list[str]] = {}
    for entry in (run.manifest or {}).get("not_measured", []):
        # Measures that share a reason begin its sentence with their own name.
        why = entry["reason"].removeprefix(entry["measure"]).strip()
        by_reason.setdefault((entry["tower"], why), []).append(entry["measure"])
    for (tower, why), names in by_reason.items():
        lines.append(f"Not measured in {tower}: {', '.join(names)}: {why}")
    refused = (run.manifest or {}).get("refused", [])
    for entry in refused[:_REASONS_SHOWN]:
        lines.append(f"Not captured: {entry['path'] or 'the model'}: {entry['reason']}")
    if len(refused) > _REASONS_SHOWN:
        lines.append(f"  and {len(refused) - _REASONS_SHOWN} more, in manifest.json")
    for name, section in run.sections.items():
        lines.append(f"Section {name}: {'finished' if section.finished else 'unfinished'}.")
    altered = run.altered()
    if altered:
        lines.append(
            f"Changed since the run was finished: {', '.join(altered)}. Trust these at your own "
            "risk."
        )
    return ["", *lines] if lines else []


def _touched(run: Run) -> list[dict[str, Any]]:
    """What studies say that they changed in the model."""
    manifests = [section.manifest or {} for section in run.sections.values()]
    return [record for manifest in manifests for record in manifest.get("touched", [])]


def _atlas(run: Run) -> dict[str, Any]:
    section = run.sections.get(ATLAS)
    return {"atlas": atlas_record(section)} if section is not None and section.finished else {}


def _record(run: Run) -> dict[str, Any]:
    from headscope.summary import summarise

    done, total = run.shards
    measured = run.finished or done > 0
    manifest = run.manifest or {}
    found = scan_of(run)
    return {
        "run": str(run.path),
        "finished": run.finished,
        "shards": {"done": done, "total": total},
        "model": run.plan["model"],
        "data": run.plan["data"],
        "n": manifest.get("n"),
        "skipped": run.skipped,
        "not_measured": manifest.get("not_measured", []),
        "sections": {name: section.finished for name, section in run.sections.items()},
        "touched": _touched(run),
        "altered": run.altered(),
        "summary": [line.record() for lines in summarise(run.heads).values() for line in lines]
        if measured
        else [],
        **_atlas(run),
        **({} if found is None else {"control": run.plan["control"], "scan": scan_record(found)}),
    }
