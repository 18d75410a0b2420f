"""What the study `vhd` costs on a batch of prompts with answers, in plain forwards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

REACH = 2.3


def measure(
    how: str = "delete",
    rows: int = 16,
    grid: int = 24,
    turns: int = 3,
    threads: int = 2,
    toy: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """Seconds of the plain forward, which computes the last logits only, and of the study."""
    import torch
    from measuring import Stopwatch, frozen
    from random_llava import prompts, random_llava

    from analysis.vision.vhd import Vhd

    torch.set_num_threads(threads)
    subject = random_llava(grid, device, dtype, toy)
    batch = prompts(subject, rows, grid, answered=16)
    study = Vhd(how=how, answers="given")  # pyright: ignore[reportArgumentType]
    study.begin(subject, lambda: [batch])

    def plain() -> None:
        subject.forward(batch, logits_to_keep=1)

    with frozen():
        found = Stopwatch(device).side_by_side(plain, lambda: study.score(subject, batch), turns)
    length = int(batch.tensors["input_ids"].shape[1])
    return {"how": how, "rows": rows, "prompt": length, "reach": REACH, "turns": found}


if __name__ == "__main__":
    settings, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(**json.loads(settings))))
