"""What the map of an atlas costs: seconds of each step and the peak of the process, twice."""

from __future__ import annotations

import json
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

REACH = {"seconds": 300.0, "GiB": 3.0}
"""For 20,000 patterns of 64 x 64 on two cores, stability apart."""
APART = "stability"
DRAWN, NOISE, SHAKEN = 200, 0.1, 0.005


def measure(patterns: int = 20_000, side: int = 64, threads: int = 2, seed: int = 0) -> Any:
    """The map of planted patterns of seven kinds at three resolutions, made twice with one seed.

    At most 200 of each kind are drawn; more are these again, each with noise of its own. Drawing
    them is not counted. The second map tells whether it is the same, and is not timed.
    """
    import torch
    from child import ROOT
    from measuring import forget_peak, resident_peak

    sys.path.insert(0, str(ROOT / "tests"))
    import planted_patterns
    from sklearn.metrics import adjusted_rand_score

    from analysis.atlas.atlas_map import make_map

    torch.set_num_threads(threads)
    each = min(-(-patterns // len(planted_patterns.KINDS)), DRAWN)
    planted, truth = planted_patterns.planted_set(per_kind=each, side=side, seed=seed)
    if patterns > len(planted):
        planted, truth = _more(planted, truth, patterns, seed)
    rest = forget_peak()
    found = make_map(planted)
    peak = resident_peak()
    again = make_map(planted)
    return {
        "patterns": len(planted),
        "side": side,
        "threads": threads,
        "seconds": found.seconds,
        "peak": peak,
        "rest": rest,
        "epochs": len(found.training.held_out_loss),
        "stopped": found.training.stopped,
        "verdict": found.verdict,
        "truth": float(adjusted_rand_score(truth, found.points["cluster"])),
        "same": _digest(found) == _digest(again),
        "reach": REACH,
    }


def _more(planted: Any, truth: Any, patterns: int, seed: int) -> tuple[Any, Any]:
    """So many of the patterns, drawn with replacement, a tenth of each replaced by random rows."""
    import numpy as np

    from analysis.atlas.pattern_set import PatternSet

    dice = np.random.default_rng(seed)
    chosen = np.sort(dice.integers(0, len(planted), patterns))
    side = planted.side
    images = np.empty((patterns, side, side), np.float16)
    for start in range(0, patterns, 1000):
        some = planted.images[chosen[start : start + 1000]].astype(np.float32)
        noise = dice.gamma(0.3, size=some.shape).astype(np.float32) + 1e-9
        noise /= noise.sum(-1, keepdims=True)
        images[start : start + 1000] = (1 - NOISE) * some + NOISE * noise
    features = planted.features.iloc[chosen].reset_index(drop=True)
    shaken = features + dice.normal(0, SHAKEN, features.shape)
    lines = planted.samples.iloc[chosen].reset_index(drop=True)
    nulls = planted.nulls.iloc[chosen].reset_index(drop=True)
    return PatternSet(images, lines, shaken, nulls, side, seed), truth[chosen]


def _digest(found: Any) -> str:
    columns = ["cluster", "umap_x", "umap_y"]
    told = found.points[columns].to_numpy().tobytes() + found.latents.tobytes()
    return blake2b(told, digest_size=16).hexdigest()


if __name__ == "__main__":
    settings, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(**json.loads(settings))))
