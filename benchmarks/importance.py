"""What taking heads away costs: exact leave-one-out, attribution patching, and a peer.

One process per figure. Writes `results/importance-<device>.json` and, from all results there,
`README.md`. About a quarter of an hour on two quiet cores; `--toy` takes seconds and measures
nothing real.

    python benchmarks/importance.py --peers-python PEERS/bin/python
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
from machine import describe
from report import write
from results_file import kept_entries

PARTS = ("ablation", "memory", "atp", "peers")
READS = ("tokens", "answer")
_SCRIPTS = {
    "ablation": "leave_one_out.py",
    "memory": "leave_one_out.py",
    "atp": "attribution.py",
    "peers": "peer_ablation.py",
}
_TURNS = {"ablation": (5, 3), "memory": (3, 2), "atp": (5, 2)}
"""By part: of single examples, and of larger batches."""


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers-python", help="the interpreter of the peers' environment")
    parser.add_argument("--length", type=int, help="tokens (default 256)")
    parser.add_argument("--batches", type=int, nargs="+", help="examples (default 1 8)")
    parser.add_argument("--reads", nargs="+", choices=READS, default=READS)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--turns", type=int, help="turns (default 5; fewer for large batches)")
    parser.add_argument(
        "--heads", type=int, help="heads of each layer in a turn (default 1; on a GPU all)"
    )
    parser.add_argument(
        "--copies", type=int, help="copies run at once when folding (default 1, none; on a GPU 12)"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all that apply")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 ...")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of README.md and results/")
    parser.add_argument("--toy", action="store_true", help="a tiny model: tries the script only")
    asked = parser.parse_args(given)
    on_gpu = asked.device != "cpu"
    asked.length = asked.length or (31 if asked.toy else 256)
    asked.batches = asked.batches or ([1, 3] if asked.toy else [1, 8])
    asked.heads = asked.heads or (144 if on_gpu else 1)
    asked.copies = asked.copies or (12 if on_gpu else 1)
    asked.parts = asked.parts or list(PARTS)
    return asked


def plan(asked: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every figure: its part, what the page needs to know of it, and its child's settings."""
    place = {"threads": asked.threads, "device": asked.device}
    model = place | {"length": asked.length, "dtype": asked.dtype, "toy": asked.toy}
    contenders = ["naive", "ours", *(["folded"] if asked.copies > 1 else [])]
    for part in [part for part in PARTS if part in asked.parts]:
        if part == "peers":
            if asked.peers_python:
                rows = {"rows": 5} if asked.toy else {}
                turns = asked.turns or 7
                yield part, {}, place | rows | {"turns": turns}
            continue
        for rows in asked.batches:
            for read in asked.reads:
                what = {"rows": rows, "read": read}
                turns = asked.turns or _TURNS[part][rows > 1]
                settings = model | what | {"turns": turns}
                if part == "atp":
                    yield part, what, settings
                    continue
                settings["copies"] = asked.copies
                if part == "ablation":
                    whole = rows == min(asked.batches) and read == asked.reads[-1]
                    yield part, what, settings | {"heads": asked.heads, "whole": whole}
                    continue
                settings["quantity"] = "memory"
                for name in contenders:
                    one = what | {"contender": name}
                    yield part, one, settings | one


def main(given: list[str] | None = None) -> int:
    asked = arguments(given)
    if not asked.peers_python and "peers" in asked.parts:
        say("The peer is left out. Name its interpreter with --peers-python (see peers.txt).")
    settings = {name: getattr(asked, name) for name in ("length", "threads", "dtype", "toy")}
    machine, path = describe(asked.device, asked.peers_python), _file(asked)
    results: dict[str, Any] = {
        "machine": machine,
        "settings": settings,
        "entries": kept_entries(path, machine, settings, asked.parts),
    }
    if results["entries"] and not machine["peers"]:
        machine["peers"] = json.loads(path.read_text())["machine"]["peers"]
    page, figures = HERE, list(plan(asked))
    for number, (part, what, of_child) in enumerate(figures, start=1):
        said = ", ".join(f"{name} {value}" for name, value in what.items())
        say(f"{number}/{len(figures)} {part} {said}".rstrip())
        python = asked.peers_python if part == "peers" else sys.executable
        answer = run_child(_SCRIPTS[part], of_child, python=python)
        results["entries"].append({"part": part} | what | answer)
        # Written again after every figure, so that what was measured survives an interruption.
        page = written(results, asked)
        if "failed" in answer:
            say(f"   failed: {answer['failed']}")
    say(f"written: {page}")
    return 1 if failures(results) else 0


def written(results: dict[str, Any], asked: argparse.Namespace) -> Path:
    """Write the results of this device, and the page from those of all; where the page is."""
    path = _file(asked)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1))
    return write(asked.out)


def _file(asked: argparse.Namespace) -> Path:
    return asked.out / "results" / f"importance-{asked.device.partition(':')[0]}.json"


if __name__ == "__main__":
    sys.exit(main())
