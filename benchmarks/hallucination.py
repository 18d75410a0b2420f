"""Why the bundled describer names what is not there, and which edits change that.

Heads are chosen on fresh scenes, everything is judged on `scenes-broken`: 300 scenes that break the
co-occurrence that the model was trained on, the partner absent in 240. Writes
`results/hallucination.json` and, into `docs/hallucination.md`, the tables between its markers; the
text around them is written by hand. About half an hour on two cores; `--limit 24 --draws 1` tries
the script in minutes.

    python benchmarks/hallucination.py
    python benchmarks/hallucination.py --parts words      # one part; the others keep their numbers
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from capture import say
from child import HERE, ROOT
from hallucination_page import write_tables
from machine import describe

PARTS = ("heads", "plain", "places", "strengths", "words", "sinks")
NAME = "hallucination.json"
PAGE = ROOT / "docs" / "hallucination.md"


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=int, help="scenes that are judged (default: all 300)")
    parser.add_argument("--fresh", type=int, help="fresh scenes per cue (default 25, 5 with it)")
    parser.add_argument("--draws", type=int, default=5, help="of each random control (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--work", type=Path, help="keeps answers there, to go on after a stop")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the numbers")
    parser.add_argument("--page", type=Path, default=PAGE, help="page whose tables are replaced")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> int:
    import os

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    asked = arguments(given)
    import torch

    torch.set_num_threads(asked.threads)
    path = asked.out / NAME
    results = json.loads(path.read_text()) if path.exists() else {}
    results |= {"page": "hallucination", "machine": describe()}
    results["settings"] = {name: getattr(asked, name) for name in ("limit", "fresh", "draws")}
    with tempfile.TemporaryDirectory() as folder:
        work = asked.work or Path(folder)
        for part in PARTS:
            if part in asked.parts:
                say(part)
                results[part] = _PARTS[part](results, asked, work)
                # Written after every part, so that what was measured survives an interruption.
                asked.out.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(results, indent=1))
    write_tables(results, asked.page)
    say(f"written: {path}, {asked.page}")
    return 0


def choose_heads(results: dict[str, Any], asked: argparse.Namespace, work: Path) -> Any:
    """The prior heads, and how much heads look at the image, on fresh scenes."""
    from prior_heads import search, text_to_image

    scenes = _fresh(asked)
    subject = _load("shapes-llava")
    found = search(subject, scenes, say=say)
    return found | {"text_to_image": text_to_image(subject, scenes).tolist()}


def judge_plain(results: dict[str, Any], asked: argparse.Namespace, work: Path) -> Any:
    """Every method and control on the model without sinks."""
    import numpy as np
    from hallucination_conditions import rows_on_plain
    from judged import judged
    from prior_heads import mean_z

    subject, heads = _load("shapes-llava"), results["heads"]
    mass = np.array(heads["text_to_image"])
    rows = rows_on_plain(subject, heads, mean_z(subject, _fresh(asked)), mass, asked.draws)
    return judged(subject, rows, asked.limit, work / "plain", say)


def judge_places(results: dict[str, Any], asked: argparse.Namespace, work: Path) -> Any:
    """Two methods in parts of the model."""
    from hallucination_conditions import places
    from judged import judged

    subject = _load("shapes-llava")
    return judged(subject, places(subject, results["heads"]), asked.limit, work / "places", say)


def judge_strengths(results: dict[str, Any], asked: argparse.Namespace, work: Path) -> Any:
    """The methods at other strengths."""
    from hallucination_conditions import strengths
    from judged import judged

    return judged(_load("shapes-llava"), strengths(), asked.limit, work / "strengths", say)


def judge_sinks(results: dict[str, Any], asked: argparse.Namespace, work: Path) -> Any:
    """The methods that move sinks, on the model that has some."""
    from hallucination_conditions import rows_on_sinks
    from judged import judged

    rows = rows_on_sinks(asked.draws)
    return judged(_load("shapes-llava-sinks"), rows, asked.limit, work / "sinks", say)


def compare_words(results: dict[str, Any], asked: argparse.Namespace, work: Path) -> Any:
    """T-VHD of hallucinated against true object words, by the study `vhd`."""
    import numpy as np
    from judged import BATCH, DATA, REPLICATES

    from analysis.vision.token_table import comparison
    from headscope.plan import Options
    from headscope.runs import score_run

    how = Options(measures="vhd", batch_size=BATCH, limit=asked.limit)
    with tempfile.TemporaryDirectory() as folder:
        run = score_run(_load("shapes-llava"), DATA, Path(folder) / "vhd", how)
        tokens = run.sections["vision"].table("tokens")
    found = comparison(tokens, replicates=REPLICATES // 10)
    said = tokens[tokens["mention"] >= 0].groupby(["example", "mention"])["group"].first()
    return {
        "lines": found.replace({np.nan: None}).to_dict("records"),
        "mentions": {str(name): int(count) for name, count in said.value_counts().items()},
    }


_PARTS = {
    "heads": choose_heads,
    "plain": judge_plain,
    "places": judge_places,
    "strengths": judge_strengths,
    "words": compare_words,
    "sinks": judge_sinks,
}


def _load(name: str) -> Any:
    import headscope as hs

    return hs.load(name)


def _fresh(asked: argparse.Namespace) -> Any:
    from fresh_scenes import ABSENT, PRESENT, fresh_scenes

    if asked.fresh is None:
        return fresh_scenes(ABSENT, PRESENT)
    present = max(1, asked.fresh // 5)
    return fresh_scenes(max(1, asked.fresh - present), present)


if __name__ == "__main__":
    sys.exit(main())
