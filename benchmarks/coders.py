"""Training sparse autoencoders: our TopK coder against sparsify's and SAELens'.

One process per contender. Writes `results/coders-cpu.json` and, from all results there,
`README.md`. The peers' environments are made below the folder that `--peers` names, if they are
not there yet. About an hour on two quiet cores; `--toy` takes a minute and measures nothing real.
Speed and sites need a quiet machine; what a training reaches does not hang on it.

    python benchmarks/coders.py --peers PEERS
    python benchmarks/coders.py --peers PEERS --parts speed --dead 0.1
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

from capture import say
from child import HERE, run_child
from coder_data import write_rows
from coder_peers import PEERS, environment
from coder_rounds import rounds
from machine import describe
from report import write
from results_file import kept_entries

PARTS = ("speed", "fidelity", "sites", "memory")
CONTENDERS = {
    "ours": ("ours", ""),
    "ours, bfloat16": ("ours", "bfloat16"),
    "sparsify, Adam": ("sparsify", ""),
    "sparsify, signum": ("sparsify", "signum"),
    "SAELens": ("saelens", ""),
}
FAITHFUL = ("ours", "sparsify, Adam", "SAELens")
_FULL = {
    "width": 768,
    "latents": 16_384,
    "batch": 4_096,
    "rows": 262_144,
    "tokens": 524_288,
    "k": 32,
}
_TOY = {"width": 32, "latents": 256, "batch": 512, "rows": 2_048, "tokens": 8_192, "k": 4}
_RATES = (1e-3, 3e-3, 1e-2)
"""Peak learning rates of whole trainings: each contender is judged by its own best."""
_LIMIT = 7_200


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--dead", type=float, nargs="+", default=[0.0, 0.1], help="shares")
    parser.add_argument("--turns", type=int, default=7, help="of speed and sites (default 7)")
    parser.add_argument("--steps", type=int, default=4, help="steps in a turn (default 4)")
    parser.add_argument("--tokens", type=int, help="of the whole trainings (default 0.5 M)")
    parser.add_argument("--rates", type=float, nargs="+", default=list(_RATES), help="peaks")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of README.md and results/")
    parser.add_argument("--toy", action="store_true", help="tiny coders: tries the script only")
    return parser.parse_args(given)


def settings_of(asked: argparse.Namespace) -> dict[str, Any]:
    """What every contender is told, and the page."""
    sizes = (_TOY if asked.toy else _FULL) | ({"tokens": asked.tokens} if asked.tokens else {})
    return sizes | {
        "warm_up": 0.1,
        "dead_after": max(sizes["tokens"] // 4, sizes["batch"]),
        "threads": asked.threads,
        "toy": asked.toy,
    }


def figures(
    asked: argparse.Namespace, settings: dict[str, Any], file: Path, python: dict[str, Path]
) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """What each entry is about, and how it is measured."""
    told = {
        name: settings
        | {"contender": kind, "variant": variant, "file": str(file), "learning_rate": _RATES[0]}
        for name, (kind, variant) in CONTENDERS.items()
        if name in asked.contenders and kind in python
    }
    if "speed" in asked.parts:
        for dead in asked.dead:

            def speed(dead: float = dead) -> dict[str, Any]:
                children = {
                    name: (one | {"dead": dead}, python[one["contender"]])
                    for name, one in told.items()
                }
                taken, failed = rounds(children, asked.turns, asked.steps)
                return {"taken": taken, "failures": failed}

            yield {"part": "speed", "dead": dead, "steps": asked.steps}, speed
    if "fidelity" in asked.parts:
        for name, rate in product((name for name in FAITHFUL if name in told), asked.rates):

            def fidelity(name: str = name, rate: float = rate) -> dict[str, Any]:
                interpreter = python[told[name]["contender"]]
                # What is reached hangs on no thread; one is not disturbed by what else runs.
                one = told[name] | {"learning_rate": rate, "threads": 1}
                return run_child("coder_child.py", one, python=interpreter, limit=_LIMIT)

            yield {"part": "fidelity", "contender": name, "rate": rate}, fidelity
    reading = {"threads": asked.threads}
    if "sites" in asked.parts:
        of_sites = reading | {"what": "sites", "turns": asked.turns}
        of_sites |= {"batches": 1, "rows": 1, "length": 16} if asked.toy else {}
        yield {"part": "sites"}, lambda: run_child("coder_reading.py", of_sites)
    if "memory" in asked.parts:
        for buffers in (4, 16):
            of_memory = reading | {"what": "memory", "buffers": buffers}
            of_memory |= {"width": 16, "buffer_rows": 8_192, "k": 4} if asked.toy else {}
            yield (
                {"part": "memory", "buffers": buffers},
                lambda of_memory=of_memory: run_child("coder_reading.py", of_memory),
            )


def interpreters(asked: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """Of every contender that can run; and why others cannot."""
    found, missing = {"ours": Path(sys.executable)}, {}
    if not {"speed", "fidelity"} & set(asked.parts):
        return found, missing
    for peer in sorted({CONTENDERS[name][0] for name in asked.contenders} - {"ours"}):
        if asked.peers is None:
            missing[peer] = "no folder of environments was given (--peers)"
            continue
        say(f"environment of {PEERS[peer]}")
        try:
            found[peer] = environment(asked.peers.expanduser().resolve(), peer)
        except RuntimeError as error:
            missing[peer] = str(error)
            say(f"   failed: {error}")
    return found, missing


def main(given: list[str] | None = None) -> int:
    asked = arguments(given)
    path = asked.out / "results" / "coders-cpu.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    settings, machine = settings_of(asked), describe()
    python, missing = interpreters(asked)
    kept = kept_entries(path, machine, settings, asked.parts)
    machine["peers"] = dict(PEERS[peer].split("==") for peer in PEERS if peer in python)
    if kept:
        machine["peers"] = json.loads(path.read_text())["machine"]["peers"] | machine["peers"]
    results: dict[str, Any] = {
        "page": "coders",
        "machine": machine,
        "settings": settings,
        "missing": missing,
        "entries": kept,
    }
    failed = bool(missing) and asked.peers is not None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.safetensors"
        if {"speed", "fidelity"} & set(asked.parts):
            say("rows of a known dictionary")
            write_rows(file, settings["width"], settings["rows"], 4 * settings["batch"])
        for what, measure in figures(asked, settings, file, python):
            say(", ".join(f"{name} {value}" for name, value in what.items()))
            answer = measure()
            results["entries"].append(what | answer)
            # Written after every figure, so that what was measured survives an interruption.
            path.write_text(json.dumps(results, indent=1))
            for name, why in answer.get("failures", {}).items():
                say(f"   {name} failed: {why}")
            if "failed" in answer:
                say(f"   failed: {answer['failed']}")
            failed = failed or "failed" in answer or bool(answer.get("failures"))
    say(f"written: {write(asked.out)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
