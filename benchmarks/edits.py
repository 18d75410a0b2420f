"""What edits cost while a model writes, and the study `vhd` in forwards.

One process per line. Writes `results/edits-<device>.json` and, from all results there, `README.md`.
About ten minutes on two quiet cores; `--toy` takes seconds and measures nothing real.

    python benchmarks/edits.py
    python benchmarks/edits.py --parts edits --names nothing vhr gift
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from capture import failures, say
from child import HERE, run_child
from edit_cost import NAMES
from machine import describe
from report import write
from results_file import kept_entries

PARTS = ("edits", "vhd")
_SCRIPTS = {"edits": "edit_cost.py", "vhd": "vhd_cost.py"}
REMOVALS = ("delete", "blank")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--batches", type=int, nargs="+", default=[1], help="examples (default 1)")
    parser.add_argument("--grid", type=int, help="image tokens per side (default 24: 576 in all)")
    parser.add_argument("--tokens", type=int, help="generated tokens in a turn (default 32)")
    parser.add_argument("--turns", type=int, help="turns (default 5; of `vhd` 3)")
    parser.add_argument("--prompts", type=int, help="prompts of `vhd` (default 16)")
    parser.add_argument(
        "--removals", nargs="+", choices=REMOVALS, default=["delete"], help="of the image in `vhd`"
    )
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 ...")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of README.md and results/")
    parser.add_argument("--toy", action="store_true", help="a tiny model: tries the script only")
    asked = parser.parse_args(given)
    asked.grid = asked.grid or (5 if asked.toy else 24)
    asked.tokens = asked.tokens or (4 if asked.toy else 32)
    asked.prompts = asked.prompts or (3 if asked.toy else 16)
    return asked


def plan(asked: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every figure: its part, what the page needs to know of it, and its child's settings."""
    common = {"grid": asked.grid, "threads": asked.threads, "toy": asked.toy}
    common |= {"device": asked.device, "dtype": asked.dtype}
    if "edits" in asked.parts:
        for rows in asked.batches:
            for name in asked.names:
                what = {"name": name, "rows": rows}
                yield (
                    "edits",
                    what,
                    common
                    | what
                    | {
                        "tokens": asked.tokens,
                        "turns": asked.turns or 5,
                    },
                )
    if "vhd" in asked.parts:
        for how in asked.removals:
            what = {"how": how, "rows": asked.prompts}
            yield "vhd", what, common | what | {"turns": asked.turns or 3}


def main(given: list[str] | None = None) -> int:
    asked = arguments(given)
    path = asked.out / "results" / f"edits-{asked.device.partition(':')[0]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {name: getattr(asked, name) for name in ("grid", "threads", "dtype", "toy")}
    machine = describe(asked.device)
    results: dict[str, Any] = {
        "page": "edits",
        "machine": machine,
        "settings": settings,
        "entries": kept_entries(path, machine, settings, asked.parts),
    }
    figures = list(plan(asked))
    for number, (part, what, of_child) in enumerate(figures, start=1):
        said = ", ".join(f"{name} {value}" for name, value in what.items())
        say(f"{number}/{len(figures)} {part} {said}")
        answer = run_child(_SCRIPTS[part], of_child)
        results["entries"].append({"part": part} | what | answer)
        # Written again after every figure, so that what was measured survives an interruption.
        path.write_text(json.dumps(results, indent=1))
        if "failed" in answer:
            say(f"   failed: {answer['failed']}")
    say(f"written: {write(asked.out)}")
    return 1 if failures(results) else 0


if __name__ == "__main__":
    sys.exit(main())
