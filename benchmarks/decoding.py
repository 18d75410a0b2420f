"""What an attached tap, an edit or a capture costs per generated token."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

PROMPT, TOKENS = 64, 32


def measure(
    threads: int = 2,
    repeats: int = 7,
    toy: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[dict[str, Any]]:
    """Seconds of ``TOKENS`` new tokens, plain and under each attachment, turn by turn."""
    import torch
    from gpt2_small import like_text, make_model
    from measuring import Stopwatch

    import headscope as hs

    torch.set_num_threads(threads)
    model = make_model(PROMPT + TOKENS, device, dtype, toy=toy)
    subject = hs.load(model)
    batch = subject.prepare(input_ids=like_text(PROMPT, model.config.vocab_size).to(device))

    def generate() -> None:
        subject.generate(batch, max_new_tokens=TOKENS, min_new_tokens=TOKENS)

    def under(attach: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
        def run() -> None:
            with attach():
                generate()

        return run

    watch = Stopwatch(device)
    found = []
    for label, attach in _attachments(subject, batch).items():
        turns = watch.side_by_side(generate, under(attach), repeats)
        found.append(
            {"label": label, "prompt": PROMPT, "tokens": TOKENS, "threads": threads, "turns": turns}
        )
    return found


def _attachments(subject: Any, batch: Any) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    import headscope as hs
    from analysis.measures import select_measures
    from headscope.scoring import new_engine
    from probes.alignment import tokens_while_generating
    from probes.listening import attach, listen
    from probes.tap import Attached

    sites = frozenset(place.site for place in subject.layout.sites)
    engine = new_engine(subject, select_measures("all"))

    def measuring() -> AbstractContextManager[Any]:
        engine.start_batch(tokens_while_generating(batch.tokens, TOKENS), 1)
        return listen(subject, None, engine.listener)

    head, layer = "language.L1H3", "language.L1"
    return {
        "nothing (how far two equal things differ)": nullcontext,
        "a listener to z of every layer": lambda: attach(
            subject, Attached(sites, on_z=lambda *_: None)
        ),
        "an empty listener to every attention call": lambda: listen(
            subject, None, lambda call: None
        ),
        "all streaming measures": measuring,
        "`edits.scale` of one head (hook on the output projection)": lambda: hs.edit(
            subject, hs.edits.scale([head], 2.0)
        ),
        "`edits.zero` of the heads of one layer (hook)": lambda: hs.edit(
            subject, hs.edits.zero([f"{layer}H{h}" for h in range(4)])
        ),
        "`edits.edit_pattern` of one head (pattern recomputed)": lambda: hs.edit(
            subject, hs.edits.edit_pattern([head], lambda pattern, place: pattern)
        ),
    }


if __name__ == "__main__":
    settings, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(**json.loads(settings))))
