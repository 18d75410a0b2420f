"""One figure: the time or the peak memory of one contender at one length. A process of its own.

`capture.py` starts this file once per figure. A time is always taken side by side with the plain
forward pass in the same process, turn by turn, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """What one process measures.

    Attributes:
        contender: a name in `contenders.CONTENDERS`.
        quantity: ``"time"`` or ``"memory"``.
        length: tokens of the one sequence in the batch.
        toy: a model that is small enough for a test.
        peers: measured in the peers' environment.
    """

    contender: str
    quantity: str
    length: int
    threads: int
    repeats: int
    device: str = "cpu"
    dtype: str = "float32"
    toy: bool = False
    peers: bool = False


def measure(figure: Figure) -> dict[str, Any]:
    """The figure's settings and what was measured: seconds turn by turn, or peaks in MiB."""
    import torch
    from contenders import CONTENDERS, plain
    from gpt2_small import like_text, make_model
    from measuring import Stopwatch, peak_memory

    torch.set_num_threads(figure.threads)
    contender = CONTENDERS[figure.contender]
    model = make_model(figure.length, figure.device, figure.dtype, toy=figure.toy)
    ids = like_text(figure.length, model.config.vocab_size).to(figure.device)
    with torch.no_grad():
        if figure.quantity == "memory":
            run = contender.make(model, ids)
            return asdict(figure) | {"peaks": peak_memory(run, figure.device, figure.repeats)}
        alone = plain(model, ids)
        # A peer may rewrite the model that it is given, so each has one of its own.
        run = contender.make(
            make_model(figure.length, figure.device, figure.dtype, figure.toy), ids
        )
        watch = Stopwatch(figure.device)
        return asdict(figure) | {"turns": watch.side_by_side(alone, run, figure.repeats)}


if __name__ == "__main__":
    settings, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(Figure(**json.loads(settings)))))
