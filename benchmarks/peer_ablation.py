"""Zero ablation of every head of a bundled model: TransformerLens, a naive loop, and the study.

Runs in the peers' environment, all in one process, on the same token ids. The losses of
TransformerLens are its own; the other two share our metric.
"""

from __future__ import annotations

import copy
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any


def measure(
    model: str = "repeat-lm",
    rows: int = 16,
    threads: int = 2,
    turns: int = 7,
    device: str = "cpu",
) -> dict[str, Any]:
    """Effects in nats per token, ``[layer][head]`` by contender, how far apart, and seconds."""
    import torch
    from measuring import Stopwatch
    from taking_away import Naive, Workload

    import headscope as hs
    from analysis.importance.leave_one_out import importance
    from analysis.importance.study import StudyOptions

    torch.set_num_threads(threads)
    subject = hs.load(model, device=device)
    bridge = _bridge(subject)
    batch = _batch(subject, rows)
    ids = batch.tensors["input_ids"]
    ablation = importance(StudyOptions(effects=("cross_entropy",), ablation="zero"))
    ablation.begin(subject, lambda: [batch])
    assert ablation.reader is not None
    reading = ablation.reader.reading(batch)
    assert reading.positions is not None
    if reading.counts.tolist() != [ids.shape[1] - 1] * rows:
        raise ValueError(f"Every token but the first must be read, got {reading.counts.tolist()}.")
    work = Workload(subject, batch, ablation, reading, reading.positions.to(device))
    naive, found = Naive(work), {}

    def study() -> None:
        scores = ablation.score(subject, batch)
        found["study"] = {
            (column.layer, column.head): scores.numerator[:, index] / scores.denominator[:, index]
            for index, column in enumerate(scores.columns)
            if column.measure == "importance_cross_entropy"
        }

    def loop() -> None:
        naive.start()
        for site in work.sites:
            naive.run(site, range(work.heads))
        found["naive"] = naive.effects

    def peer() -> None:
        found["transformer_lens"] = _transformer_lens(bridge, ids, len(work.sites), work.heads)

    runs = {"study": study, "naive": loop, "transformer_lens": peer}
    seconds = Stopwatch(device).in_turn(runs, turns)
    theirs = found["transformer_lens"]
    differences = {
        name: max(float((found[name][key] - theirs[key]).abs().max()) for key in theirs)
        for name in ("study", "naive")
    }
    effects = {
        name: {f"L{layer}H{head}": float(one.mean()) for (layer, head), one in values.items()}
        for name, values in found.items()
    }
    largest = max(float(one.abs().max()) for one in theirs.values())
    return {
        "turns": seconds,
        "differences": differences,
        "largest": largest,
        "effects": effects,
        "tokens": list(ids.shape),
        "model": model,
        "all_heads": len(theirs),
    }


def _bridge(subject: Any) -> Any:
    """A TransformerLens Bridge on a copy of the model, whose modules it renames for good."""
    from transformer_lens.model_bridge import TransformerBridge

    from probes.bundled import bundled_models

    return TransformerBridge.boot_transformers(
        str(bundled_models()[subject.name].path),
        hf_model=copy.deepcopy(subject.model),
        tokenizer=subject.tokenizer,
        device=str(subject.device),
        dtype=subject.dtype,
    )


def _batch(subject: Any, rows: int) -> Any:
    """The first examples of the model's own set that are as long as the first one, unpadded."""
    from probes.bundled import bundled_models, bundled_sets
    from probes.inputs import Example

    lines = bundled_sets()[bundled_models()[subject.name].default_set].path / "examples.jsonl"
    texts = []
    for line in lines.read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        texts.append(f"{example['text']} {example['answer']}")
    texts = [text for text in texts if len(text) == len(texts[0])][:rows]
    made = subject.prepare(examples=[Example(str(n), text=text) for n, text in enumerate(texts)])
    assert bool((made.tensors["attention_mask"] == 1).all())
    return subject.on_device(subject.prepare(input_ids=made.tensors["input_ids"]))


def _transformer_lens(bridge: Any, ids: Any, layers: int, heads: int) -> dict[Any, Any]:
    """``(layer, head)`` to ``[example]``: loss without the head minus loss, nats per token."""
    import torch

    def zero(z: Any, hook: Any, head: int) -> Any:
        z[:, :, head] = 0
        return z

    with torch.inference_mode():
        intact = bridge(ids, return_type="loss", loss_per_token=True).double().mean(1)
        found = {}
        for layer in range(layers):
            for head in range(heads):
                hooks = [(f"blocks.{layer}.attn.hook_z", partial(zero, head=head))]
                loss = bridge.run_with_hooks(
                    ids, return_type="loss", loss_per_token=True, fwd_hooks=hooks
                )
                found[layer, head] = (loss.double().mean(1) - intact).cpu()
    return found


if __name__ == "__main__":
    settings, out = sys.argv[1:]
    Path(out).write_text(json.dumps(measure(**json.loads(settings))))
