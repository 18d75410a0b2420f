"""What attribution patching of all heads costs, in plain forwards of the same process."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

STUDIES = {
    "cross_entropy": ("cross_entropy", True),
    "cross_entropy_first_order": ("cross_entropy", False),
    "logit": ("logit", False),
}
"""By name: the effect, and whether curvature is estimated as well."""


def measure(
    read: str = "tokens",
    rows: int = 1,
    length: int = 256,
    threads: int = 2,
    turns: int = 5,
    device: str = "cpu",
    dtype: str = "float32",
    toy: bool = False,
) -> dict[str, Any]:
    """Seconds of the study `atp` on a batch, of a plain forward, and of one with few logits.

    The study runs for each effect alone, always with its fixes for queries and keys: on cross
    entropy with curvature, as users get it, and without; on logits, which have none.
    """
    import torch
    from measuring import Stopwatch, frozen
    from taking_away import workload

    from analysis.importance.estimates.attribution_patching import AttributionPatching
    from analysis.importance.study import StudyOptions

    torch.set_num_threads(threads)
    work = workload(read, rows, length, device, dtype, toy)
    studies = {
        name: AttributionPatching(StudyOptions(effects=(effect,)), curved=curved)
        for name, (effect, curved) in STUDIES.items()
    }
    for study in studies.values():
        study.begin(work.subject, lambda: [work.batch])
    ids = work.batch.tensors["input_ids"]
    scores: dict[str, Any] = {}

    def plain(**settings: Any) -> None:
        with torch.inference_mode():
            work.subject.model(input_ids=ids, use_cache=False, **settings)

    def estimate(name: str) -> None:
        scores[name] = studies[name].score(work.subject, work.batch)

    runs: dict[str, Any] = {
        "plain": plain,
        "few_logits": lambda: plain(logits_to_keep=work.positions),
    }
    runs |= {name: partial(estimate, name) for name in STUDIES}
    with frozen():
        found = Stopwatch(device).in_turn(runs, turns, warm=rows == 1)
    columns = {
        name: sorted({(column.measure, column.variant) for column in one.columns})
        for name, one in scores.items()
    }
    reasons = sorted({why for one in scores.values() for why in one.reasons.values()})
    return {"turns": found, "columns": columns, "reasons": reasons}


if __name__ == "__main__":
    settings, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(**json.loads(settings))))
