"""The section of the page about what edits cost, written from the measured figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from measuring import quartiles, ratios
from page_parts import machine_lines, machine_name, spread, table
from results_file import earlier_lines

_METHOD = """\
A LLaVA with random weights: {model} prompts of {prompt} tokens, {image} of them the image's;
{many}{dtype}. Two generations run in one process, one plain and one under the edit, token by token
in turn, so that what slows the machine slows both: `x plain` is the median over pairs of
neighbouring tokens, in brackets the quartiles; `CPU` the same in CPU time of the process. `first
token`: until the first token is there (the prompt, and what a method looks at before it), median
over turns. In the random model no sinks form: for methods that move them, tokens count as sinks
that have much of themselves in two dimensions, and ACT has a lower threshold, so that all of them
have work to do (`touched`: rows changed in the last turn)."""

_VHD = """\
The study `vhd` on one batch of {rows} prompts with answers of 16 words ({prompt} tokens with
padding), all layers and heads, against the model's plain forward that computes no logits but the
last. The second forward is short where the image's positions are deleted, and as long as the first
where a blank image stands in for it."""


def edits_section(result: dict[str, Any]) -> str:
    """Everything that `edits.py` measured on one device."""
    machine, settings = result["machine"], result["settings"]
    parts = [f"## Edits: {machine_name(machine)}\n", machine_lines(machine) + earlier_lines(result)]
    timed = [entry for entry in result["entries"] if entry["part"] == "edits"]
    done = [entry for entry in timed if "failed" not in entry]
    if timed:
        toy = settings["toy"]
        size = "a toy." if toy else "12 layers x 12 heads x 64, 32,000 words (GPT-2 small's size);"
        many = f"{settings['threads']} thread{'s' * (settings['threads'] > 1)}, "
        parts.append("### While the model writes\n")
        parts.append(
            _METHOD.format(
                model=size,
                prompt=" or ".join(str(n) for n in sorted({entry["prompt"] for entry in done})),
                image=settings["grid"] ** 2,
                many=many if "gpu" not in machine else "",
                dtype=settings["dtype"],
            )
            + "\n"
        )
        for rows in sorted({entry["rows"] for entry in timed}):
            parts.append(f"Batch {rows}:\n")
            parts.append(_edits_table([entry for entry in timed if entry["rows"] == rows]))
    studied = [entry for entry in result["entries"] if entry["part"] == "vhd"]
    if studied:
        parts += ["### VHD of all heads, in forwards\n", _vhd(studied)]
    return "\n".join(parts)


def _edits_table(entries: Iterable[dict[str, Any]]) -> str:
    heading = ["", "plain ms per token", "x plain", "CPU", "reach", "first token", "touched"]
    rows = []
    for entry in entries:
        if "failed" in entry:
            rows.append([entry["name"], f"not run: {entry['failed']}", *[""] * 5])
            continue
        later = [step for turn in entry["turns"] for step in turn[1:]]
        first = [turn[0] for turn in entry["turns"]]
        plain = quartiles(1000 * step["plain"] for step in later)[1]
        processor = quartiles(ratios(later, "_cpu"))[1]
        rows.append(
            [
                entry["label"],
                f"{plain:.1f}",
                spread(ratios(later)),
                f"{processor:.2f}",
                _reach(entry["reach"], quartiles(ratios(later))[1]),
                f"{quartiles(ratios(first))[1]:.2f}",
                f"{entry['touched']:,}" if entry["reports"] else "",
            ]
        )
    return table(heading, rows)


def _vhd(entries: list[dict[str, Any]]) -> str:
    done = [entry for entry in entries if "failed" not in entry]
    heading = ["image", "plain s", "study s", "x plain", "CPU", "reach"]
    rows = []
    for entry in entries:
        if "failed" in entry:
            rows.append([entry["how"], f"not run: {entry['failed']}", *[""] * 4])
            continue
        turns = entry["turns"]
        rows.append(
            [
                {"delete": "deleted", "blank": "blank"}[entry["how"]],
                f"{quartiles(turn['plain'] for turn in turns)[1]:.3g}",
                f"{quartiles(turn['seconds'] for turn in turns)[1]:.3g}",
                spread(ratios(turns)),
                f"{quartiles(ratios(turns, '_cpu'))[1]:.2f}",
                _reach(entry["reach"], quartiles(ratios(turns))[1]),
            ]
        )
    said = _VHD.format(rows=done[0]["rows"], prompt=done[0]["prompt"]) + "\n\n" if done else ""
    return said + table(heading, rows)


def _reach(reach: float | None, found: float) -> str:
    if reach is None:
        return ""
    return f"{reach:.2f}, {'met' if found <= reach else 'missed'}"
