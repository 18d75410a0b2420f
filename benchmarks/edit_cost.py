"""What an edit costs per generated token, and until the first one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

SINKS = {"dimensions": (41, 43), "tau": 2.0}
"""A random model has no sinks: here every token with much of itself in two dimensions is one."""
ROW_EDITORS = ("var", "act", "paint", "gift", "modulation", "sink_removal", "knock_out")
NAMES = ("nothing", "z_listener", "call_listener", "scale", "vhr", *ROW_EDITORS)
LABELS = {
    "nothing": "nothing (how far two equal things differ)",
    "z_listener": "an empty listener to z of every layer",
    "call_listener": "an empty listener to every attention call",
    "scale": "`scale` of half of the heads of every layer",
    "vhr": "VHR",
    "var": "VAR",
    "act": "ACT",
    "paint": "PAINT",
    "gift": "GIFT",
    "modulation": "head-specific modulation",
    "sink_removal": "sink removal",
    "knock_out": "knock-out of text → image",
}
REACH = {"vhr": 1.10, **dict.fromkeys(ROW_EDITORS, 1.5)}


def measure(
    name: str,
    rows: int = 1,
    grid: int = 24,
    tokens: int = 32,
    turns: int = 5,
    threads: int = 2,
    toy: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Seconds per forward of generation, plain and under an edit, token by token in turn."""
    import torch
    from lockstep import lockstep
    from measuring import frozen
    from random_llava import prompts, random_llava

    torch.set_num_threads(threads)
    subject = random_llava(grid, device, dtype, toy)
    batch = prompts(subject, rows, grid)
    reports: list[Any] = []

    def under(attach: Callable[[], AbstractContextManager[Any]]) -> Callable[[Any], None]:
        def run(criterion: Any) -> None:
            torch.set_num_threads(threads)
            with attach() as found:
                subject.generate(batch, tokens, stopping_criteria=[criterion])
            if isinstance(found, list):
                reports[:] = found

        return run

    plain, edited = under(nullcontext), under(_attachments(subject, toy)[name])
    found: list[Any] = []
    with frozen():
        lockstep(plain, edited, device)
        for _ in range(turns):
            found.append(lockstep(plain, edited, device))
    prompt = [len(ids) for ids in batch.tensors["input_ids"].tolist()]
    return {
        "label": LABELS[name],
        "reach": REACH.get(name),
        "tokens": tokens,
        "prompt": max(prompt),
        "turns": found,
        "reports": [str(report) for report in reports],
        "touched": sum(report.touched for report in reports),
    }


def _attachments(subject: Any, toy: bool) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    import headscope as hs
    from probes.edits.apply import factory_of
    from probes.listening import attach, listen
    from probes.tap import Attached

    language = [site.site for site in subject.layout.sites if site.site.tower == "language"]
    sites = frozenset(language)
    sinks = SINKS | {"tau": 1.5} if toy else SINKS
    half = subject.layout.site(language[0]).heads // 2
    heads = [f"{site}H{head}" for site in language for head in range(half)]

    def edit(name: str, **settings: Any) -> Callable[[], AbstractContextManager[Any]]:
        return lambda: hs.edit(subject, factory_of(name)(**settings))

    return {
        "nothing": nullcontext,
        "z_listener": lambda: attach(subject, Attached(sites, on_z=lambda *_: None)),
        "call_listener": lambda: listen(subject, None, lambda call: None, language),
        "scale": edit("scale", heads=heads, factor=1.5),
        "vhr": edit("vhr"),
        "var": edit("var", **sinks),
        "act": edit("act", theta=1e-3 if not toy else 0.02),
        "paint": edit("paint"),
        "gift": edit("gift"),
        "modulation": edit("modulation"),
        "sink_removal": edit("sink_removal", **sinks),
        "knock_out": edit(
            "knock_out", heads="language.*", queries=["text", "generated"], keys="image"
        ),
    }


if __name__ == "__main__":
    settings, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(**json.loads(settings))))
