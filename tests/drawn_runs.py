"""Run folders of drawn scores, without a model: what `compare` reads, written by the library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from analysis.run_folder import Run, RunFolder, open_run
from analysis.scores import BatchScores, Column
from analysis.tally import tally_of

SHARD = 5


def drawn_run(
    path: Path,
    scores: np.ndarray,
    *,
    examples: list[str] | None = None,
    digest: str = "same",
    shard: int = SHARD,
    weights: np.ndarray | None = None,
    heads_per_layer: int = 4,
    measure: str = "entropy",
    unit: str = "nats",
) -> Run:
    """A finished run of one measure in the tower `language`.

    Args:
        scores: ``[example head]``; an example counts with 1 unless ``weights`` say otherwise.
        shard: examples in a shard.
    """
    count, heads = scores.shape
    names = examples or [f"e{number}" for number in range(count)]
    weights = np.ones_like(scores) if weights is None else weights
    columns = tuple(
        Column("language", *divmod(head, heads_per_layer), measure, "", unit)
        for head in range(heads)
    )
    starts = range(0, count, shard)
    plan = {
        "schema": 1, "seed": 0, "replicates": 200, "shards": len(starts), "shard_size": shard,
        "model": {"name": path.name, "class": "Drawn", "dtype": "float64"},
        "layers": {"language": -(-heads // heads_per_layer)}, "measures": [measure],
        "data": {"name": "drawn", "inputs": "drawn", "digest": digest},
    }  # fmt: skip
    with RunFolder.begin(path, plan, resume=False) as folder:
        for number, start in enumerate(starts):
            rows = slice(start, start + shard)
            sums = [
                torch.from_numpy(block[rows].astype(float))
                for block in (scores * weights, weights, np.zeros_like(scores), weights)
            ]
            part = BatchScores(columns, *sums, examples=tuple(names[rows]))
            tensors, about = part.to_tensors()
            arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
            folder.journal.write(number, arrays, {"scores": about, "skipped": []})
        tally = tally_of(folder.journal, plan)
        manifest = {"n": count, "skipped": [], "not_measured": []}
        folder.finish(tally.heads("drawn", plan["layers"]), tally.profiles(), manifest)
    return open_run(path)
