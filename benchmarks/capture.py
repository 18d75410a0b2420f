"""What capture and measures cost, side by side with the plain forward pass and with peers.

One process per figure. Writes `results/<device>.json` and, from all results there, `README.md`.
About a quarter of an hour on two quiet cores; `--toy` takes seconds and measures nothing real.

    python benchmarks/capture.py --peers-python PEERS/bin/python
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from child import HERE, run_child
from contenders import CONTENDERS
from figure import Figure
from machine import describe
from report import write

PARTS = ("capture", "decoding", "long_context", "help")
ONE_THREAD = ("plain", "z", "all")
"""Also measured on one thread, at the shortest length."""
_MEMORY_RUNS = 3


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="the interpreter of the peers' environment")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens (default 1024 2048)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--repeats", type=int, default=7, help="turns per figure (default 7)")
    parser.add_argument("--peer-repeats", type=int, default=7, help="the same for peers")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, help="default: all")
    quantities = ("time", "memory")
    parser.add_argument("--quantities", nargs="+", choices=quantities, default=quantities)
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: all that apply")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--dtype", default="float32", help="float32 (default), bfloat16 ...")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of README.md and results/")
    parser.add_argument("--toy", action="store_true", help="a tiny model: tries the script only")
    asked = parser.parse_args(given)
    on_gpu = asked.device != "cpu"
    if asked.lengths is None:
        asked.lengths = [32, 64] if asked.toy else [4096] if on_gpu else [1024, 2048]
    asked.parts = asked.parts or (["capture", "decoding"] if on_gpu else list(PARTS))
    return asked


def figures(asked: argparse.Namespace) -> list[Figure]:
    """Every figure, in the order of the page."""
    names = [
        n for n in asked.contenders or CONTENDERS if asked.peers_python or not CONTENDERS[n].peer
    ]
    place = {"device": asked.device, "dtype": asked.dtype, "toy": asked.toy}
    found = []
    for length in asked.lengths:
        for name in names:
            peer = CONTENDERS[name].peer
            many = asked.peer_repeats if peer else asked.repeats
            threads = [asked.threads]
            if name in ONE_THREAD and length == min(asked.lengths) and asked.device == "cpu":
                threads = sorted({asked.threads, 1}, reverse=True)
            found += [
                Figure(name, "time", length, count, many, **place, peers=peer) for count in threads
            ]
        # What a plain forward takes depends on the packages around it: one in each environment.
        with_memory = [
            ("plain", peer) for peer in sorted({CONTENDERS[name].peer for name in names})
        ]
        with_memory += [(name, CONTENDERS[name].peer) for name in names if name != "plain"]
        found += [
            Figure(name, "memory", length, asked.threads, _MEMORY_RUNS, **place, peers=peer)
            for name, peer in with_memory
        ]
    return [figure for figure in found if figure.quantity in asked.quantities]


def main(given: list[str] | None = None) -> int:
    asked = arguments(given)
    if not asked.peers_python:
        say("Peers are left out. Name their interpreter with --peers-python (see peers.txt).")
    results: dict[str, Any] = {"machine": describe(asked.device, asked.peers_python), "figures": []}
    page = written(results, asked)
    for done in measured(asked, results):
        # Written again after every figure, so that what was measured survives an interruption.
        page = written(results, asked)
        if "failed" in done:
            say(f"   failed: {done['failed']}")
    say(f"written: {page}")
    return 1 if failures(results) else 0


def measured(asked: argparse.Namespace, results: dict[str, Any]) -> Iterator[Any]:
    """Fill the results one figure after the other; gives each."""
    planned = figures(asked) if "capture" in asked.parts else []
    for number, figure in enumerate(planned, start=1):
        say(
            f"{number}/{len(planned)} {figure.quantity} of {figure.contender}, "
            f"{figure.length} tokens, {figure.threads} threads"
        )
        python = asked.peers_python if figure.peers else sys.executable
        answer = run_child("figure.py", asdict(figure), python=python)
        results["figures"].append(asdict(figure) | answer)
        yield answer
    place = {"device": asked.device, "dtype": asked.dtype, "toy": asked.toy}
    threads = {"threads": asked.threads}
    repeats = {"repeats": asked.repeats}
    settings = {
        "decoding": threads | repeats | place,
        "long_context": threads | {"length": 300 if asked.toy else 16384},
        "help": repeats | ({"only": 1} if asked.toy else {}),
    }
    scripts = {"help": "help_time.py"}
    for part, given in settings.items():
        if part in asked.parts:
            say(part.replace("_", " "))
            results[part] = run_child(scripts.get(part, f"{part}.py"), given)
            yield results[part]


def written(results: dict[str, Any], asked: argparse.Namespace) -> Path:
    """Write the results of this device, and the page from those of all; where the page is."""
    folder = asked.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{asked.device.partition(':')[0]}.json").write_text(json.dumps(results, indent=1))
    return write(asked.out)


def failures(results: dict[str, Any]) -> list[str]:
    """What could not be measured, wherever it stands in the results."""
    if isinstance(results, dict):
        inner = [why for value in results.values() for why in failures(value)]
        return [results["failed"], *inner] if "failed" in results else inner
    return (
        [why for value in results for why in failures(value)] if isinstance(results, list) else []
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
