"""Write ``docs/coverage.md``: measure every family and put the numbers in tables.

``python -m tests.parity.write_coverage`` from the repository root. Families of timm and torchvision
are measured where those are installed; elsewhere their table stays as it was.
"""

from __future__ import annotations

import importlib.util
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from probes.towers import template

from . import families, timm_families, torch_modules
from .measure import Parity, measure, subject_of
from .test_settings import AUTOCAST, DECODED, DECODED_FROM_ANOTHER, HALF, PADDED

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "coverage.md"
_HEAD = """\
# What can be captured

Made by the parity suite: `python -m tests.parity.write_coverage` measures, `pytest tests/parity`
holds every line of it. Each family is built small from its configuration, weights drawn so that
patterns are far from uniform, in float32. The model runs in the implementation that its class
chooses, once without and once with the tap; a second model of the same weights runs in eager
attention (fused attention replaced by the textbook formula), and its softmax maps are written down
by code that shares nothing with the tap.

- **heads**: layers x heads (heads of keys and values, where fewer).
- **pattern**: largest difference to the eager pattern, over all maps, matched one to one.
- **product**: largest difference between pattern @ value and what the call returned (z), and
- **z**: between that and the eager run's own product; both in units of the largest entry.
- **outputs**: the model's outputs with and without the tap. Where it is a number, PyTorch's fused
  transformer layer (fast path) turns itself off under any tap.
- **anatomy**: verified output projections / blocks whose residual stream was found, of all
  attention layers; N: a final norm, U: the unembedding or class head. Where a projection is called
  as a module, the sum of the heads' contributions plus bias equals what the eager run's projection
  returned, 1e-5.
"""
_COLUMNS = (
    "| family | class | special | heads | pattern | product | z | outputs | anatomy "
    "| refused, notes |"
)


def main() -> None:
    torch.set_num_threads(1)
    parts = _old_parts()
    if importlib.util.find_spec("timm") is None:
        parts["transformers"] = _transformers()
        parts["torch"] = _torch()
    else:
        parts["timm"] = _timm()
    parts["processors"] = _processors()
    order = ("transformers", "settings", "torch", "timm", "processors")
    parts["settings"] = _settings()
    body = "\n".join(
        f"<!-- {name} -->\n{parts[name].strip()}\n<!-- /{name} -->\n"
        for name in order
        if name in parts
    )
    DOCUMENT.write_text(f"{_HEAD}\n{body}", encoding="utf-8")


def _old_parts() -> dict[str, str]:
    text = DOCUMENT.read_text(encoding="utf-8") if DOCUMENT.exists() else ""
    found = re.findall(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->", text, flags=re.DOTALL)
    return dict(found)


def _environment(*packages: str) -> str:
    return ", ".join(f"{package} {version(package)}" for package in packages) + (
        f", Python {platform.python_version()}, CPU"
    )


def _transformers() -> str:
    known = families.FAMILIES
    rows = [
        _row(f, lambda f=f: measure(f.build(), f.build("eager"), f.inputs(), f.name, f.aside))
        for f in known
    ]
    return (
        f"## transformers: {_count(known)}\n\n"
        f"{_environment('transformers', 'torch')}\n\n{_table(rows)}"
    )


def _torch() -> str:
    rows = [
        _row(f, lambda f=f: measure(f.build(), f.build(), f.inputs(), f.name, f.aside))
        for f in torch_modules.FAMILIES
    ]
    return f"## PyTorch's own modules, and hand-written attention\n\n{_table(rows)}"


def _timm() -> str:
    known = timm_families.FAMILIES
    rows = [
        _row(
            f,
            lambda f=f: measure(
                f.build(),
                f.build(fused=False),
                f.inputs(),
                f.name,
                f.aside,
                timm_families.ALIASES,
            ),
        )
        for f in known
    ]
    return (
        f"## timm and torchvision: {_count(known)}\n\n"
        f"{_environment('timm', 'torchvision', 'torch')}; `pytest tests/parity -m timm` where they "
        f"are installed.\n\n{_table(rows)}"
    )


def _count(known: Sequence[Any]) -> str:
    captured = sum(bool(family.towers) for family in known)
    return f"{captured} families captured, {len(known) - captured} refused by name"


def _row(family: Any, measured: Callable[[], Parity]) -> str:
    name = getattr(family, "model", family.name)
    if not family.towers:
        subject, _ = subject_of(family.build(), family.inputs(), family.name)
        reasons = _refusals((r.path, r.reason) for r in subject.layout.refusals)
        reason = reasons or "No softmax attention was seen."
        kinds = ", ".join(family.kinds)
        class_name = type(subject.model).__name__
        return f"| {family.name} | {class_name} | {kinds} | refused | | | | | | {reason} |"
    parity = measured()
    outputs = "identical" if parity.output_error == 0 else f"{parity.output_error:.0e}"
    notes = " ".join(
        part
        for part in (
            _refusals((r.path, r.reason) for r in parity.layout.refusals),
            f"{family.note[0].upper()}{family.note[1:]}." if family.note else "",
            f"`{name}`." if name != family.name else "",
            *(f"UNMATCHED {line}." for line in parity.unmatched),
        )
        if part
    )
    return (
        f"| {family.name} | {parity.model_class} | {', '.join(family.kinds)} | {_heads(parity)} "
        f"| {parity.pattern_error:.0e} | {parity.product_error:.0e} | {parity.z_error:.0e} "
        f"| {outputs} | {_anatomy(parity)} | {notes} |"
    )


def _heads(parity: Parity) -> str:
    said = []
    for name, tower in parity.layout.towers.items():
        heads = sorted({site.heads for site in tower.sites.values()})
        values = sorted({site.kv_heads for site in tower.sites.values()})
        text = f"{name} {len(tower.sites)} x {'/'.join(map(str, heads))}"
        said.append(text if heads == values else f"{text} ({'/'.join(map(str, values))})")
    return "<br>".join(said)


def _anatomy(parity: Parity) -> str:
    anatomy, sites = parity.layout.anatomy, len(parity.layout.sites)
    residual = sum(block.residual for block in anatomy.blocks.values())
    ends = ("N" if anatomy.final_norm else "") + ("U" if anatomy.unembedding else "")
    return f"{len(anatomy.projections)} / {residual} of {sites} {ends}".strip()


def _refusals(refusals: Iterable[tuple[str, str]]) -> str:
    by_reason: dict[str, list[str]] = {}
    for path, reason in refusals:
        by_reason.setdefault(reason, []).append(f"`{template(path)}`")
    return " ".join(f"{', '.join(dict.fromkeys(p))}: {r}" for r, p in by_reason.items())


def _table(rows: list[str]) -> str:
    return "\n".join([_COLUMNS, "|" + "---|" * (_COLUMNS.count("|") - 1), *rows])


def _settings() -> str:
    return f"""## Settings

- **Left padding**, a batch of two ({len(PADDED)} families): {", ".join(PADDED)}. Equal to eager,
  and to the same prompt alone without padding, 1e-5.
- **bfloat16** ({len(HALF)}): {", ".join(HALF)}; **autocast** ({len(AUTOCAST)}):
  {", ".join(AUTOCAST)}. Outputs identical; patterns within what two kernels round differently,
  6e-2.
- **Decoding with the key-value cache**, full and left-padded batch ({len(DECODED)}):
  {", ".join(DECODED)}; from an encoder ({len(DECODED_FROM_ANOTHER)}):
  {", ".join(DECODED_FROM_ANOTHER)}. Each step's pattern equals the last row of a full eager forward
  over what was written, 1e-5; what is written is the same with and without the tap.
"""


def _processors() -> str:
    text = (ROOT / "docs" / "tokens.md").read_text(encoding="utf-8")
    table = [line for line in text.splitlines() if line.startswith("| tested here, from the image")]
    lines = text.splitlines()
    start = lines.index(table[0]) if table else 0
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append(line)
    return (
        "## Processors\n\nThe token map of each family is tested with its processor "
        "([tokens.md](tokens.md)). Several processors of transformers hold a video processor that "
        "wants torchvision; without it they are tested from their image processor alone.\n\n"
        + "\n".join(rows)
    )


if __name__ == "__main__":
    main()
