"""16,384 tokens through one layer on a CPU, the pattern never whole.

Two questions: what the forward of such a layer takes with and without all measures, and whether
the memory of measuring grows with the number of query rows that read the same 16,384 keys.
Run alone it prints the answers: `python benchmarks/long_context.py`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from child import run_child

HEADS, HEAD_WIDTH = 12, 64
VOCABULARY = 500
"""Few words, or the logits of 16,384 tokens would outweigh everything else."""
ROWS = (1024, 4096, 16384)


def pattern_gib(queries: int, keys: int) -> float:
    """GiB of a whole float32 pattern of one layer.

    >>> pattern_gib(16384, 16384)
    12.0
    """
    return HEADS * queries * keys * 4 / (1 << 30)


def measure(length: int = 16384, threads: int = 2, repeats: int = 1) -> dict[str, Any]:
    """Every process's answer; each number of query rows has its own."""
    common = {"length": length, "threads": threads, "repeats": repeats}
    rows = [queries for queries in ROWS if queries < length] + [length]
    return {
        "length": length,
        "threads": threads,
        "pattern_gib": pattern_gib(length, length),
        "forward": {
            what: run_child("long_context.py", {"part": "forward", "what": what, **common})
            for what in ("plain", "all")
        },
        "rows": [
            run_child("long_context.py", {"part": "rows", "queries": queries, **common})
            for queries in rows
        ],
    }


def forward(what: str, length: int, threads: int, repeats: int) -> dict[str, Any]:
    """Peak MiB and seconds of a model of one block of GPT-2 small's size."""
    import torch
    from gpt2_small import like_text, make_model

    import headscope as hs
    from analysis.measures import select_measures
    from headscope.scoring import new_engine, score_batch

    torch.set_num_threads(threads)
    model = make_model(length, n_layer=1, vocab_size=VOCABULARY)
    subject = hs.load(model)
    engine = new_engine(subject, select_measures("all"))
    batch = subject.prepare(input_ids=like_text(length, model.config.vocab_size))
    short = subject.prepare(input_ids=like_text(64, model.config.vocab_size))
    score_batch(subject, engine, short)
    return _measured(
        (lambda: subject.forward(batch))
        if what == "plain"
        else (lambda: score_batch(subject, engine, batch)),
        repeats,
    ) | {"what": what}


def rows(queries: int, length: int, threads: int, repeats: int) -> dict[str, Any]:
    """Peak MiB and seconds of measuring one call: the last ``queries`` rows over all keys."""
    import torch
    from gpt2_small import like_text

    from analysis.engine import Engine
    from analysis.measures import select_measures
    from probes.attention_call import AttentionCall
    from probes.heads import Site
    from probes.masks import AttentionMask
    from probes.tokens.map import TokenMap, blank_tokens

    torch.set_num_threads(threads)
    draw = torch.Generator().manual_seed(0)
    tokens = blank_tokens("language", [length], [0], "text")
    tokens = replace(tokens, ids=like_text(length, VOCABULARY)[0])
    place = torch.arange(length)[None]
    query = torch.randn(1, HEADS, queries, HEAD_WIDTH, generator=draw)
    key, value = (torch.randn(1, HEADS, length, HEAD_WIDTH, generator=draw) for _ in range(2))
    call = AttentionCall(
        Site("language", 0), "attn", 0, value, torch.zeros_like(query),
        # No mask: every row reads every key, so that rows differ in nothing but their number.
        AttentionMask(queries, length), query=query, key=key, scale=HEAD_WIDTH**-0.5,
        query_index=place[:, length - queries :], key_index=place,
    )  # fmt: skip
    engine = Engine(None, select_measures("all"))

    def run() -> None:
        engine.start_batch(TokenMap({"language": tokens}), 1)
        engine.listener(call)
        engine.finish_batch()

    return _measured(run, repeats) | {
        "queries": queries,
        "pattern_mib": pattern_gib(queries, length) * 1024,
        "inputs_mib": 2 * query.numel() * 4 / (1 << 20),
    }


def _measured(run: Any, repeats: int) -> dict[str, Any]:
    from measuring import Stopwatch, forget_peak, resident_peak

    watch, found = Stopwatch(), []
    for _ in range(repeats):
        rest = forget_peak()
        seconds, _ = watch.time(run)
        found.append({"peak": resident_peak(), "rest": rest, "seconds": seconds})
    return {"runs": found}


if __name__ == "__main__":
    if len(sys.argv) > 1:
        settings, out = sys.argv[1:]
        given = json.loads(settings)
        part = {"forward": forward, "rows": rows, None: measure}[given.pop("part", None)]
        Path(out).write_text(json.dumps(part(**given)))
    else:
        print(json.dumps(measure(), indent=1))
