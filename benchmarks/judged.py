"""Ask a describer under many conditions and compare them, image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hallucination_conditions import BASELINE, Row

DATA, BATCH = "scenes-broken", 50
REPLICATES = 20_000
PLANNED = ("chair_s", "chair_i", "absent_partner", "absent_partner_probability")
"""The metrics in which every method is compared with the baseline and with its matched control."""
METRICS = (
    *PLANNED, "other_errors", "recall", "present_partner", "present_partner_probability",
    "objects", "words", "repetition", "unfinished",
)  # fmt: skip


def judged(
    subject: Any,
    rows: Sequence[Row],
    limit: int | None,
    folder: Path,
    say: Any,
    planned: Sequence[str] = PLANNED,
) -> dict[str, Any]:
    """Every row on the same scenes: values, differences to the baseline and to its matched control.

    Each estimate is ``[value, low, high, strict_low, strict_high]``: the 95 % interval and that at
    ``level``, 1 - .05 / number of planned comparisons.

    Args:
        limit: of scenes; None for all.
        folder: where answers are kept as they come, so that an interruption loses little.
    """
    import headscope as hs
    from headscope.evaluating.answer_journal import Answer

    edits = {name: made for row in rows for name, made in row.edits.items()}
    last = [0.0]

    def progress(done: int, total: int, skipped: int) -> None:
        if done >= last[0] + total / 10:
            last[0] = done
            say(f"   {done} of {total} answers")

    found = hs.evaluate(
        subject,
        DATA,
        "chair",
        edits,
        out=folder,
        resume=folder.exists(),
        progress=progress,
        controls=0,
        limit=limit,
        batch_size=BATCH,
        replicates=2,
    )
    answers: dict[str, dict[str, Answer]] = {}
    for name, group in found.answers.groupby("edit", sort=False):
        answers[str(name)] = {
            line["id"]: Answer(
                line["id"],
                line["answer"],
                line["tokens"],
                line["ended"],
                line["log_probability"] if line["log_probability"] <= 0 else None,
            )
            for line in group.to_dict("records")
        }
    sheets = {name: _task(limit).sheet(said) for name, said in answers.items()}
    touched = {report["edit"]: report["touched"] for report in found.reports}
    return _compared(rows, sheets, touched, planned) | {"images": found.images}


def _task(limit: int | None) -> Any:
    from analysis.hallucination.vocabulary import Vocabulary
    from headscope.evaluating.chair_task import chair_task
    from probes.bundled import bundled_sets
    from probes.readers import read_examples

    examples = list(read_examples(DATA, "vision-language", None))
    details = bundled_sets()[DATA].details
    words = Vocabulary.of(details["vocabulary"])
    return chair_task(examples, limit, words, probe=tuple(details["probe"]))


def _compared(
    rows: Sequence[Row],
    sheets: Mapping[str, Any],
    touched: Mapping[str, int],
    planned: Sequence[str],
) -> dict[str, Any]:
    """Rows with their estimates; the draws of a control are pooled."""
    pooled = {BASELINE: [sheets[BASELINE]]}
    pooled |= {row.name: [sheets[name] for name in row.edits] for row in rows}
    counted = sum(row.role in ("method", "matched") for row in rows)
    level = 1 - 0.05 / max(1, len(planned) * counted)
    lines = _estimates(pooled, {}, level)
    found = [{"name": BASELINE, "role": "baseline", "metrics": lines[BASELINE]}]
    for row in rows:
        entry = {
            "name": row.name,
            "role": row.role,
            "of": row.of,
            "about": row.about,
            "touched": sum(touched[name] for name in row.edits),
            "draws": [_ratios(sheets[name]) for name in row.edits],
            "metrics": lines[row.name],
        }
        if row.of:
            # The method minus this control, within the same images.
            three = {name: pooled[name] for name in (BASELINE, row.of, row.name)}
            with_control = _estimates(three, {row.of: row.name}, level)[row.of]
            entry["method_minus"] = {
                metric: line["beyond"] for metric, line in with_control.items() if "beyond" in line
            }
        found.append(entry)
    return {"rows": found, "comparisons": len(planned) * counted, "level": level}


def _estimates(
    pooled: Mapping[str, Any], controls: Mapping[str, str], level: float
) -> dict[str, dict[str, Any]]:
    """Condition -> metric -> ``n`` and estimates."""
    from analysis.hallucination.paired import compare

    usual, strict = (
        compare(pooled, BASELINE, controls, replicates=REPLICATES, level=chosen)
        for chosen in (0.95, level)
    )
    lines: dict[str, dict[str, Any]] = {}
    for one, other in zip(usual, strict, strict=True):
        metric = one.metric[0]
        if metric not in METRICS:
            continue
        line: dict[str, Any] = {"n": one.n}
        for name in ("value", "difference", "beyond"):
            near, far = getattr(one, name), getattr(other, name)
            if near is not None and far is not None:
                line[name] = [near.value, near.low, near.high, far.low, far.high]
        lines.setdefault(one.condition, {})[metric] = line
    return lines


def _ratios(sheet: Any) -> dict[str, float]:
    """Each metric of one condition, for the spread over draws."""
    found = {}
    for column, (metric, _) in enumerate(sheet.metrics):
        below = float(sheet.denominator[:, column].sum())
        if metric in METRICS and below:
            found[metric] = float(sheet.numerator[:, column].sum()) / below
    return found
