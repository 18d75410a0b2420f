"""What the map of a pattern atlas costs: autoencoder, UMAP, clusters, from kept patterns.

Writes `results/atlas-cpu.json` and, from all results there, `README.md`. A quarter of an hour on
two quiet cores; `--patterns 400 --side 32` takes seconds and measures nothing real.

    python benchmarks/atlas.py
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from capture import say
from child import HERE, run_child
from machine import describe
from report import write


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--patterns", type=int, default=20_000, help="default 20000")
    parser.add_argument("--side", type=int, default=64, help="cells of a side (default 64)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default 2)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of README.md and results/")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    asked = arguments(given)
    settings = {name: getattr(asked, name) for name in ("patterns", "side", "threads")}
    results = {"page": "atlas", "machine": describe(), "settings": settings}
    say(f"map of {asked.patterns:,} patterns, twice")
    results["map"] = run_child("pattern_map.py", settings, limit=3600)
    folder = asked.out / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "atlas-cpu.json").write_text(json.dumps(results, indent=1))
    say(f"written: {write(asked.out)}")
    failed = results["map"].get("failed")
    if failed:
        say(f"   failed: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
