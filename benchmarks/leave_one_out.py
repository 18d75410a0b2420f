"""Leave one out over all heads: a naive loop of whole forwards against the study, in one process.

A turn takes some heads of every layer away, with each contender in turn, head by head; its seconds
for all heads are those of its intact forward plus, layer by layer, all heads' share.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any


def measure(
    quantity: str = "time",
    contender: str = "ours",
    read: str = "tokens",
    rows: int = 1,
    length: int = 256,
    threads: int = 2,
    turns: int = 5,
    heads: int = 1,
    copies: int = 1,
    whole: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    toy: bool = False,
) -> dict[str, Any]:
    """Seconds of every contender turn by turn and what bounds them, or the peaks of one.

    Args:
        quantity: ``time``, or ``memory`` of the ``contender`` alone.
        read: ``tokens`` or ``answer``, as `taking_away.READS`.
        rows: examples of the batch, ``length`` tokens each.
        heads: how many heads of each layer a turn takes.
        copies: how many copies the folded contender runs at once; 1 leaves it out.
        whole: run the whole study once, too.
    """
    import torch
    from measuring import Stopwatch, frozen
    from taking_away import workload

    torch.set_num_threads(threads)
    work = workload(read, rows, length, device, dtype, toy)
    if quantity == "memory":
        return {"peaks": _peaks(work, contender, turns, copies, device)}
    with frozen():
        return _times(work, turns, heads, copies, whole, Stopwatch(device))


def _times(
    work: Any, turns: int, heads: int, copies: int, whole: bool, watch: Any
) -> dict[str, Any]:
    from measuring import rotated
    from taking_away import contenders, largest_difference

    some: dict[str, Any] = contenders(work, copies)
    sites, all_heads = work.sites, work.heads
    heads = min(heads, all_heads)
    for one in some.values():
        one.start()
        one.run(sites[-1], range(heads))
    found: dict[str, Any] = {"turns": []}
    for turn in range(turns):
        chosen = [(turn * heads + index) % all_heads for index in range(heads)]
        first = {name: watch.time(some[name].start)[0] for name in rotated(list(some), turn)}
        of_heads: dict[str, float] = defaultdict(float)
        for number, site in enumerate(sites):
            if number == len(sites) // 2:
                pieces = _pieces(work, some["naive"], watch.device)
            for name in rotated(list(some), turn + number):
                of_heads[name] += watch.time(partial(some[name].run, site, chosen))[0]
        share = _share_read(work, some["ours"].recorded)
        found["turns"].append(_turn(work, first, of_heads, heads, pieces, share))
    for name, one in some.items():
        if name != "naive":
            found[f"{name}_equal"] = largest_difference(some["naive"], one)
    if whole:
        found["whole"] = _whole(work, some["naive"], watch)
    found |= {"share_read": _share_read(work, some["ours"].recorded)}
    return found | {"layers": len(sites), "all_heads": all_heads, "taken": heads}


def _share_read(work: Any, recorded: Any) -> float:
    """Share of the positions that the last block computes from its output projection on."""
    if recorded.fewer_rows is not True:
        return 1.0
    return work.positions.numel() / work.batch.tensors["input_ids"].shape[1]


def _turn(
    work: Any,
    first: dict[str, float],
    of_heads: dict[str, float],
    heads: int,
    pieces: Any,
    share_read: float,
) -> dict[str, Any]:
    """Seconds for all heads by contender, those of the intact forward, and what bounds them."""
    from block_times import modelled

    seconds = {name: first[name] + of_heads[name] * work.heads / heads for name in first}
    return {
        "seconds": seconds,
        "first": first,
        "pieces": asdict(pieces),
        "modelled": modelled(pieces, work.heads, share_read),
    }


def _pieces(work: Any, naive: Any, device: str) -> Any:
    import torch
    from block_times import mean_pieces, timed_pieces

    def metric(output: Any) -> None:
        naive.comparison.changes(output, "language")

    # Short forwards are timed more often than long ones.
    forwards = 3 if work.batch.size == 1 else 1
    with torch.inference_mode():
        return mean_pieces(
            [timed_pieces(work.subject, work.intact, metric, device) for _ in range(forwards)]
        )


def _whole(work: Any, naive: Any, watch: Any) -> dict[str, Any]:
    """The study as a user runs it, once: all heads and each whole layer. Compared with the loop."""
    import torch

    kept: list[Any] = []
    seconds = watch.time(lambda: kept.append(work.ablation.score(work.subject, work.batch)))[0]
    scores = kept[0]
    difference = 0.0
    for index, column in enumerate(scores.columns):
        key = (column.layer, column.head)
        if column.measure == "importance_cross_entropy" and key in naive.effects:
            ours = scores.numerator[:, index] / scores.denominator[:, index]
            gap = (ours - naive.effects[key]).abs()
            difference = max(difference, float(torch.nan_to_num(gap, nan=torch.inf).max()))
    runs = len(work.sites) * (work.heads + 1)
    return {"seconds": seconds, "runs": runs, "difference": difference}


def _peaks(work: Any, name: str, repeats: int, copies: int, device: str) -> list[dict[str, float]]:
    """MiB: the intact forward, then heads of the first and of the last layer."""
    from measuring import peak_memory
    from taking_away import contenders

    sites = work.sites

    def run() -> None:
        one = contenders(work, copies)[name]
        one.start()
        heads = range(copies if name == "folded" else 1)
        one.run(sites[0], heads)
        one.run(sites[-1], heads)

    return peak_memory(run, device, repeats)


if __name__ == "__main__":
    settings, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(**json.loads(settings))))
