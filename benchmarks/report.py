"""The page `README.md` of this folder, written from the measured figures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from atlas_page import atlas_section
from coders_page import coders_section
from contenders import CONTENDERS
from edits_page import edits_section
from importance_page import importance_section
from measuring import quartiles, ratios
from page_parts import machine_lines, machine_name, spread, table

INTRODUCTION = """\
# Benchmarks

What watching the heads of a model costs, against the plain forward pass of the same model in the
same process; and, in sections of their own, what taking each head away, edits, an atlas and
training sparse autoencoders cost. This page is written by `capture.py`, `importance.py`,
`edits.py`, `atlas.py` and `coders.py` of this folder; do not edit it. What edits *do* is measured
by `benchmarks/hallucination.py`, in [docs/hallucination.md](../docs/hallucination.md).

- **Model**: GPT-2 small in size (12 layers x 12 heads x 64, 124 M weights, random), batch 1,
  token ids by Zipf's law with copied stretches. No logits are left out.
- **Time**: one process per line. Plain and contender run turn by turn, in alternating order, after
  one run of each; each turn gives a ratio. `x plain` is the median of the ratios and, in brackets,
  their lower and upper quartile. Watch the first line of each table: it compares the plain forward
  with itself. `CPU` is the same ratio in CPU time of the process.
- **Memory**: a process of its own, plain and contender alike: the peak of the whole process (code,
  weights, everything) during the forward; median of the runs. On a GPU: the device's peak. Peers
  are set against a plain forward in their own environment.
- **Peers** run in an environment of their own (`benchmarks/peers.txt`), on a model of their own.
"""

AGAIN = """\
## Do it again

```
make bench                                                        # without peers
python -m venv PEERS && PEERS/bin/pip install -r benchmarks/peers.txt
python benchmarks/capture.py --peers-python PEERS/bin/python      # with peers
python benchmarks/capture.py --device cuda --dtype bfloat16 --lengths 4096 32768 \\
    --contenders plain z core all                                 # on a GPU; adds a section
python benchmarks/help_time.py                                    # one part alone
make bench MEASURE=importance                                     # taking heads away
python benchmarks/importance.py --peers-python PEERS/bin/python   # with a peer
make bench MEASURE=edits                                          # what edits cost
make bench MEASURE=atlas                                          # the map of an atlas
python benchmarks/coders.py --peers PEERS                         # training coders, with peers
make bench MEASURE=hallucination                                  # what edits do (half an hour)
```
"""


def write(folder: Path) -> Path:
    """Write `README.md` from every `results/*.json` of the folder; where it was written."""
    results = [json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))]
    page = folder / "README.md"
    page.write_text(page_of(results))
    return page


def page_of(results: Iterable[dict[str, Any]]) -> str:
    """The page for the results of some devices; what has a page of its own is left out."""
    watched, taken, edited, mapped, coded = [], [], [], [], []
    for result in results:
        if "figures" in result:
            watched.append(_device_section(result))
        elif result.get("page") == "edits":
            edited.append(edits_section(result))
        elif result.get("page") == "atlas":
            mapped.append(atlas_section(result))
        elif result.get("page") == "coders":
            coded.append(coders_section(result))
        elif "page" not in result:
            taken.append(importance_section(result))
    return "\n".join([INTRODUCTION, *watched, *taken, *edited, *mapped, *coded, AGAIN])


def _device_section(result: dict[str, Any]) -> str:
    machine = result["machine"]
    parts = [f"## {machine_name(machine)}\n", machine_lines(machine)]
    timed = [figure for figure in result["figures"] if figure["quantity"] == "time"]
    peaks = [figure for figure in result["figures"] if figure["quantity"] == "memory"]
    settings = {(figure["length"], figure["threads"], figure["dtype"]) for figure in timed + peaks}
    for length, threads, dtype in sorted(settings):
        chosen = [
            [
                f
                for f in group
                if (f["length"], f["threads"], f["dtype"]) == (length, threads, dtype)
            ]
            for group in (timed, peaks)
        ]
        many = f"{threads} thread{'s' * (threads > 1)}, " if "gpu" not in machine else ""
        parts.append(f"### {length:,} tokens, {many}{dtype}\n")
        parts.append(_capture_table(*chosen))
    if result.get("decoding"):
        parts.append(_decoding_section(result["decoding"]))
    if result.get("long_context"):
        parts.append(_long_section(result["long_context"]))
    if result.get("help"):
        parts.append(_help_section(result["help"]))
    return "\n".join(parts)


def _capture_table(timed: Sequence[dict[str, Any]], peaks: Sequence[dict[str, Any]]) -> str:
    time_of = {figure["contender"]: figure for figure in timed}
    memory_of = {(figure["contender"], figure["peers"]): figure for figure in peaks}
    rows = []
    for name, contender in CONTENDERS.items():
        memory = memory_of.get((name, contender.peer))
        if name not in time_of and memory is None:
            continue
        cells = [*_time_cells(time_of.get(name)), *_memory_cells(memory, memory_of, contender.peer)]
        rows.append([contender.label, *cells])
    heading = ["", "plain s", "seconds", "x plain", "CPU", "peak MiB", "x plain"]
    return table(heading, rows)


def _time_cells(figure: dict[str, Any] | None) -> list[str]:
    if figure is None:
        return [""] * 4
    if "failed" in figure:
        return [f"not run: {figure['failed']}", "", "", ""]
    turns = figure["turns"]
    plain = quartiles(turn["plain"] for turn in turns)[1]
    seconds = quartiles(turn["seconds"] for turn in turns)[1]
    processor = quartiles(ratios(turns, "_cpu"))[1]
    return [f"{plain:.3g}", f"{seconds:.3g}", spread(ratios(turns)), f"{processor:.2f}"]


def _memory_cells(
    figure: dict[str, Any] | None, all_figures: dict[tuple[str, bool], Any], peer: bool
) -> list[str]:
    if figure is None or "failed" in figure:
        return ["" if figure is None else f"not run: {figure['failed']}", ""]
    plain = all_figures.get(("plain", peer))
    known = plain is not None and "failed" not in plain
    return [
        f"{_peak(figure):,.0f}",
        f"{_peak(figure) / _peak(plain):.2f}" if known else "",
    ]


def _peak(figure: dict[str, Any]) -> float:
    return quartiles(run["peak"] for run in figure["peaks"])[1]


def _decoding_section(entries: Any) -> str:
    if "failed" in entries:
        return f"### Decoding\n\nnot run: {entries['failed']}\n"
    first = entries[0]
    rows = []
    for entry in entries:
        per_token = [1000 * turn["seconds"] / entry["tokens"] for turn in entry["turns"]]
        processor = quartiles(ratios(entry["turns"], "_cpu"))[1]
        cells = f"{quartiles(per_token)[1]:.1f}", spread(ratios(entry["turns"])), f"{processor:.2f}"
        rows.append([entry["label"], *cells])
    heading = ["attached", "ms per token", "x plain", "CPU"]
    what = f"Decoding {first['tokens']} tokens after {first['prompt']}, {first['threads']} threads"
    return f"### {what}\n\n{table(heading, rows)}"


def _long_section(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"### Long context\n\nnot run: {found['failed']}\n"
    length = found["length"]
    text = [
        f"### {length:,} tokens through one layer, {found['threads']} threads\n",
        f"The pattern of this layer would be {found['pattern_gib']:.3g} GiB; it is never whole.\n",
    ]
    rows = []
    for what, label in (("plain", "plain forward"), ("all", "all streaming measures")):
        rows.append([label, *_long_cells(found["forward"][what])])
    text.append(table(["", "peak MiB", "above rest, MiB", "seconds"], rows))
    text.append(
        f"The same measures on one call whose queries are that many rows, all reading {length:,} "
        "keys. What grows is a number per row, head and measure; tiles do not.\n"
    )
    rows = [
        [f"{entry['queries']:,}", f"{entry['pattern_mib']:,.0f}", *_long_cells(entry)]
        for entry in found["rows"]
        if "failed" not in entry
    ]
    heading = ["query rows", "pattern would be, MiB", "peak MiB", "above rest, MiB", "seconds"]
    text.append(table(heading, rows))
    return "\n".join(text)


def _long_cells(entry: dict[str, Any]) -> list[str]:
    if "failed" in entry:
        return [f"not run: {entry['failed']}", "", ""]
    peak = quartiles(run["peak"] for run in entry["runs"])[1]
    above = quartiles(run["peak"] - run["rest"] for run in entry["runs"])[1]
    seconds = quartiles(run["seconds"] for run in entry["runs"])[1]
    return [f"{peak:,.0f}", f"{above:,.0f}", f"{seconds:.1f}"]


def _help_section(entries: Any) -> str:
    if "failed" in entries:
        return f"### Help\n\nnot run: {entries['failed']}\n"
    rows = [[f"`{e['command']}`", spread(e["seconds"], 3)] for e in entries]
    return "### Help of the command line, seconds\n\n" + table(["", "seconds"], rows)
