"""The section of the page about what the map of an atlas costs."""

from __future__ import annotations

from typing import Any

from page_parts import machine_lines, machine_name, table
from pattern_map import APART

_METHOD = """\
{patterns:,} patterns of {side} x {side} cells with the measures of each, {threads} threads: 1,400
planted ones (seven kinds at three resolutions, a tenth to a fifth of noise), again and again with
more noise. From the kept patterns to the map:
the autoencoder is trained until a held-out part stops improving ({epochs} epochs), UMAP is seeded
and so runs on one core. Choosing the number of clusters is counted apart. Peak: of the whole
process, patterns included."""


def atlas_section(result: dict[str, Any]) -> str:
    """What `atlas.py` measured."""
    found, machine = result["map"], result["machine"]
    parts = [f"## The map of an atlas: {machine_name(machine)}\n", machine_lines(machine)]
    if "failed" in found:
        return "\n".join([*parts, f"not run: {found['failed']}\n"])
    parts.append(_METHOD.format(**found) + "\n")
    seconds = {step: took for step, took in found["seconds"].items() if step != APART}
    total, peak, reach = sum(seconds.values()), found["peak"] / 1024, found["reach"]
    rows = [[step, f"{took:.1f}", ""] for step, took in seconds.items()]
    rows.append(["together", f"{total:.1f}", _reach(total, reach["seconds"], "s")])
    if APART in found["seconds"]:
        rows.append([f"{APART}, apart", f"{found['seconds'][APART]:.1f}", ""])
    rows.append(["peak of the process, GiB", f"{peak:.2f}", _reach(peak, reach["GiB"], "GiB")])
    parts.append(table(["", "seconds", "reach"], rows))
    parts.append(
        f"{found['verdict']} Against the truth: {found['truth']:.3f} (adjusted Rand index). With "
        f"one seed twice: {'the same' if found['same'] else 'not the same'}, to the last bit.\n"
    )
    return "\n".join(parts)


def _reach(found: float, reach: float, unit: str) -> str:
    return f"{reach:g} {unit}, {'met' if found <= reach else 'missed'}"
