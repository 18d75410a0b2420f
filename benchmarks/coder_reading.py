"""What reading rows costs: one site against six in the same forwards, and peak memory of training.

Each in a process of its own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SITES = {"one": ["language.L11"], "six": [f"language.L{layer}" for layer in range(1, 12, 2)]}
_ROWS = {"one": 1, "six": 6}


def sites(
    turns: int, batches: int = 4, rows: int = 4, length: int = 256, threads: int = 2
) -> dict[str, Any]:
    """Seconds of a pass over the same batches, with the rows of one site and of six.

    The one is the last of the six, so that both run the model to the same depth.
    """
    import torch
    from gpt2_small import like_text, make_model
    from measuring import Stopwatch

    import headscope as hs
    from sae.activations.subject_rows import SubjectActivations

    torch.set_num_threads(threads)
    model = make_model(length)
    ids = like_text(batches * rows * length, model.config.vocab_size).reshape(-1, rows, length)
    subject = hs.load(model)
    data = [subject.prepare(input_ids=some) for some in ids]
    sources = {name: SubjectActivations(subject, data, sites=some) for name, some in SITES.items()}

    def passed(name: str) -> int:
        return sum(len(x) for chunk in sources[name].chunks(0) for x in chunk.values())

    def forwards() -> None:
        with torch.no_grad():
            for batch in data:
                model.transformer(input_ids=batch.tensors["input_ids"], use_cache=False)

    expected = {name: many * ids.numel() for name, many in _ROWS.items()}
    found = {name: passed(name) for name in SITES}
    if found != expected:
        raise RuntimeError(f"Rows must be {expected}, got {found}.")
    runs = {"plain": forwards} | {name: lambda name=name: passed(name) for name in SITES}
    return {"turns": Stopwatch().in_turn(runs, turns), "tokens": ids.numel(), "sites": SITES}


def memory(
    buffers: int, width: int = 256, buffer_rows: int = 32_768, k: int = 32, threads: int = 2
) -> dict[str, Any]:
    """The peak of a process that trains a coder on a stream of so many buffers full of rows."""
    import torch
    from measuring import forget_peak, resident_peak

    from sae.training.config import TrainConfig
    from sae.training.train import train

    torch.set_num_threads(threads)
    tokens = buffers * buffer_rows

    def stream(epoch: int) -> Iterator[torch.Tensor]:
        make = torch.Generator().manual_seed(epoch)
        for _ in range(0, tokens, 4096):
            yield torch.randn(4096, width, generator=make)

    config = TrainConfig(latents="8x", k=k, tokens=tokens, buffer_rows=buffer_rows)
    rest = forget_peak()
    train(config, stream)
    return {"tokens": tokens, "peak": resident_peak(), "rest": rest}


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    measure = {"sites": sites, "memory": memory}[settings.pop("what")]
    Path(sys.argv[2]).write_text(json.dumps(measure(**settings)))
