"""A scan in a run folder: its plan, its section, and reading it back."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.plan import Options, inputs_name, make_plan
from headscope.scanning import read_set, run_scan

if TYPE_CHECKING:
    from analysis.importance.scans.options import ScanOptions
    from analysis.importance.scans.result import Scan
    from analysis.progress import Listener
    from analysis.run_folder import Run, Section
    from headscope.scanning import PreparedSet
    from probes.subject import Subject

SECTION = "scan"
_FRAMES = {"heads": "differences", "confirmation": "confirmation"}
"""Frame of a `Scan` -> its table in the section; `heads` there is the head table."""


def scan_run(
    subject: Subject,
    behaviour: str,
    control: str,
    out: Path,
    how: ScanOptions,
    options: Options,
    listener: Listener | None = None,
) -> Run:
    """Scan two data sets into the run folder ``out`` and open it.

    The section ``scan`` holds the head table, ``differences`` and ``confirmation``. Nothing is
    written before all is known; a scan that was interrupted is started anew.

    Raises:
        RunError, RunLocked: ``out`` cannot be used.
        ValueError: see `hs.scan`.
    """
    from analysis.run_folder import RunFolder, open_run

    started = time.monotonic()
    RunFolder.refuse_taken(out)
    sets = [
        read_set(subject, data, name, how, options)
        for name, data in (("behaviour", behaviour), ("control", control))
    ]
    for prepared in sets:
        prepared.listener = listener
    found = run_scan(subject, sets[0], sets[1], how, options, listener)
    plan = _plan(subject, (behaviour, control), sets, how, options)
    with RunFolder.begin(out, plan, resume=False) as folder:
        _write(folder, found, sets, started)
    return open_run(out)


def read_scan(section: Section) -> Scan:
    """The scan that a section holds."""
    from analysis.importance.scans.options import ScanOptions
    from analysis.importance.scans.result import Scan

    about = dict((section.manifest or {})["scan"])
    frames = {name: section.table(file) for name, file in _FRAMES.items() if file in section.tables}
    frames.setdefault("confirmation", frames["heads"].iloc[:0, :0])
    about["there_are"] = {int(k): number for k, number in about["there_are"].items()}
    how = ScanOptions(**_with_tuples(about.pop("how")))
    return Scan(**frames, how=how, **_with_tuples(about))


def _plan(
    subject: Subject,
    names: tuple[str, str],
    sets: list[PreparedSet],
    how: ScanOptions,
    options: Options,
) -> dict[str, Any]:
    from probes.readers import data_digest

    behaviour, control = sets
    plan = make_plan(subject, names[0], behaviour.examples, [], [], options)
    plan["data"]["inputs"] = " against ".join(map(inputs_name, names))
    plan["control"] = {
        "name": names[1],
        "n": len(control.examples),
        "digest": data_digest(control.examples),
    }
    study = {name: getattr(options, name) for name in ("effect", "ablation", "label", "draws")}
    return plan | {"scan": asdict(how), "study_options": study, "shards": 0}


def _write(folder: Any, found: Scan, sets: list[PreparedSet], started: float) -> None:
    from analysis.atomic_file import written_atomically
    from analysis.head_table import HeadTable
    from analysis.run_folder import new_section
    from analysis.tally import Tally
    from headscope.kept_examples import keep_examples

    plan = folder.plan
    subject = sets[0].subject
    lost = {line["id"] for prepared in sets for line in prepared.skipped}
    good = [e for e in sets[0].examples if f"{sets[0].name}:{e.id}" not in lost]
    keep_examples(folder.path, subject, good)
    heads = found.table(plan["data"]["inputs"])
    with new_section(folder.path, SECTION, {"scan": _about(found)}) as path:
        HeadTable(heads.frame, plan["layers"]).to_parquet(path / "heads.parquet")
        for frame, table in _FRAMES.items():
            lines = getattr(found, frame)
            if len(lines):
                with written_atomically(path / f"{table}.parquet") as temporary:
                    lines.to_parquet(temporary, index=False)
    nothing = Tally(replicates=1)
    folder.finish(
        nothing.heads(layers=plan["layers"]),
        nothing.profiles(),
        {
            "n": sum(found.examples),
            "skipped": [line for prepared in sets for line in prepared.skipped],
            "measures": heads.measures,
            "studies": {},
            "not_measured": [],
            "refused": [
                {"path": refusal.path, "reason": refusal.reason}
                for refusal in subject.layout.refusals
            ],
            "reliability": [],
            "elapsed_seconds": round(time.monotonic() - started, 3),
        },
    )


def _about(found: Scan) -> dict[str, Any]:
    """What a scan holds beside its frames."""
    about = {name: value for name, value in vars(found).items() if name not in _FRAMES}
    return about | {"how": asdict(found.how)}


def _with_tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's lists as the tuples that they were."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
