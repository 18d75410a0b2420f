"""The section of the page about training sparse autoencoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from measuring import quartiles
from page_parts import machine_lines, machine_name, spread, table
from results_file import earlier_lines

REACH = {"sparsify": 1.0, "SAELens": 3.5}
"""How many times as many tokens per second as each peer's fastest way, at least."""
POINTS = 0.5
SIX_SITES = 1.25

_METHOD = """\
TopK coders: width {width}, {latents:,} latents, k {k}, batches of {batch:,} rows, float32 unless
said, {threads} threads. Rows are sums of 20 of {features:,} random directions with noise, the same
file for all. Each contender is its own trainer in a process of its own: whole steps (forward,
backward, clipping, optimiser, decoder rule, counts of dead latents), a few of each in turn; every
turn gives a ratio, and the table has medians and quartiles. Dead latents are forced by setting each
trainer's own counter before each step, and AuxK is on for all.
"""
_DIFFERENCES = """\
Same data, batch, k, Adam (0.9, 0.999), {warm_up:.0%} of the steps rising to the peak learning rate
and the rest falling to 0, dead after {dead_after:,} rows. What differs, as each tool does by
default: weights at the start (ours and SAELens': encoder = decoder transposed, SAELens'
decoder rows of length 0.1; sparsify: torch's linear layer); the decoder's bias at the start (ours:
geometric median; sparsify: mean; SAELens: 0); decoder rows (ours and sparsify: length 1, parallel
gradient removed; SAELens: free, strengths scaled by their lengths); the loss (ours and SAELens:
squared error; sparsify: its share of the variance); the gradient's norm (ours and SAELens: at most
1; sparsify: as it is); AuxK (ours and sparsify: 1/32 of the share of the error or variance;
SAELens: 1, not normalised; sparsify's gives the encoder no gradient).
"""


def coders_section(result: dict[str, Any]) -> str:
    """What `coders.py` measured."""
    machine, settings = result["machine"], result["settings"]
    title = f"## Training sparse autoencoders: {machine_name(machine)}\n"
    parts = [title, machine_lines(machine), earlier_lines(result)]
    parts.append(_METHOD.format(features=4 * settings["width"], **settings))
    parts += [f"{peer}: not run, {why}.\n" for peer, why in result["missing"].items()]
    sections: dict[str, Callable[[Sequence[dict[str, Any]], dict[str, Any]], str]] = {
        "speed": _speed,
        "fidelity": _fidelity,
        "sites": _sites,
        "memory": _memory,
    }
    for part, section in sections.items():
        entries = [entry for entry in result["entries"] if entry["part"] == part]
        if entries:
            parts.append(section(entries, settings))
    return "\n".join(part for part in parts if part)


def tokens_per_second(entry: dict[str, Any], name: str, settings: dict[str, Any]) -> list[float]:
    """Of one contender, turn by turn."""
    tokens = entry["steps"] * settings["batch"]
    return [tokens / turn[name]["seconds"] for turn in entry["taken"]]


def times_as_fast(entry: dict[str, Any], name: str) -> list[float]:
    """Our speed over another's, turn by turn."""
    return [turn[name]["seconds"] / turn["ours"]["seconds"] for turn in entry["taken"]]


def _speed(entries: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    text = []
    for entry in entries:
        text.append(f"### Tokens per second, {entry['dead']:.0%} of the latents dead\n")
        names = list(entry["taken"][0]) if entry["taken"] else []
        rows = []
        for name in sorted(names):
            speed = spread(tokens_per_second(entry, name, settings), 0)
            ratio = spread(times_as_fast(entry, name)) if "ours" in names else ""
            rows.append([name, speed, ratio])
        rows += [[name, f"not run: {why}", ""] for name, why in entry["failures"].items()]
        text.append(table(["", "tokens/s", "ours is so many times as fast"], rows))
        text.append(_reached(entry, names))
    return "\n".join(part for part in text if part)


def _reached(entry: dict[str, Any], names: Sequence[str]) -> str:
    said = []
    for peer, least in REACH.items():
        rivals = [name for name in names if name.startswith(peer)]
        if rivals and "ours" in names:
            found = min(quartiles(times_as_fast(entry, name))[1] for name in rivals)
            verdict = "met" if found >= least else "missed"
            said.append(f"{least:g}x {peer}, its fastest: {found:.2f}x, {verdict}")
    return f"Reach: {'; '.join(said)}.\n" if said else ""


def _fidelity(entries: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    rows = []
    best: dict[str, float] = {}
    for entry in entries:
        name, at = entry["contender"], f"{entry['rate']:g}"
        if "failed" in entry:
            rows.append([name, at, f"not run: {entry['failed']}", ""])
            continue
        explained = 100 * entry["explained_variance"]
        best[name] = max(best.get(name, -math.inf), explained)
        rows.append([name, at, f"{explained:.2f}", f"{entry['dead']:,}"])
    first = next((entry for entry in entries if "tokens" in entry), {"tokens": settings["tokens"]})
    heading = ["", "peak rate", "explained variance, %", "dead latents"]
    said = "; ".join(f"{name} {explained:.2f}" for name, explained in best.items())
    text = [f"### Held-out rows after {first['tokens']:,} tokens\n", table(heading, rows)]
    if len(best) > 1 and "ours" in best:
        verdict = "met" if best["ours"] >= max(best.values()) - POINTS else "missed"
        text.append(f"Each at its own best of these rates: {said}.\n")
        text.append(f"Reach: at most {POINTS:g} points below the best, {verdict}.\n")
    return "\n".join(part for part in [*text, _DIFFERENCES.format(**settings)] if part)


def _sites(entries: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    text = ["### Reading six sites in one pass\n"]
    for entry in entries:
        if "failed" in entry:
            text.append(f"not run: {entry['failed']}\n")
            continue
        turns = entry["turns"]
        names = {"plain": "the model alone", "one": "one site", "six": "six sites"}
        rows = [
            [
                label,
                spread([turn[name] for turn in turns], 2),
                spread([turn[name] / turn["one"] for turn in turns]),
            ]
            for name, label in names.items()
        ]
        text.append(
            f"GPT-2 small in size, {entry['tokens']:,} tokens; the one is the last layer.\n"
        )
        text.append(table(["", "seconds", "x one site"], rows))
        ratio = quartiles(turn["six"] / turn["one"] for turn in turns)[1]
        verdict = "met" if ratio <= SIX_SITES else "missed"
        text.append(f"Reach: at most {SIX_SITES:g}x, {verdict}.\n")
    return "\n".join(text)


def _memory(entries: Sequence[dict[str, Any]], settings: dict[str, Any]) -> str:
    rows = []
    for entry in entries:
        if "failed" in entry:
            rows.append([f"{entry['buffers']} buffers", f"not run: {entry['failed']}", ""])
            continue
        cells = f"{entry['peak']:,.0f}", f"{entry['peak'] - entry['rest']:,.0f}"
        rows.append([f"{entry['tokens']:,} tokens", *cells])
    heading = ["", "peak of the process, MiB", "above what it held before, MiB"]
    return "### Peak memory of a training\n\n" + table(heading, rows)
