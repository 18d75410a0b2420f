"""Who is measured: the plain forward pass, headscope in several uses, and peers.

A contender's ``make(model, ids)`` may keep and change the model; it returns what is run once per
turn. Heavy imports are inside, because peers live in an environment of their own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Run = Callable[[], object]


@dataclass(frozen=True)
class Contender:
    """One line of the table.

    Attributes:
        label: what it does, as the table says it.
        make: takes the model and ids ``[1 length]``.
        peer: whether it needs the peers' environment.
        package: whose version the table names.
    """

    label: str
    make: Callable[[Any, Any], Run]
    peer: bool = False
    package: str = ""


CORE = ("entropy", "first_key", "sink_weight", "role_mass", "attention_distance", "previous_token")


def plain(model: Any, ids: Any) -> Run:
    """The forward pass as it is, SDPA, no cache."""
    return lambda: model(input_ids=ids, use_cache=False)


def _kept_z(model: Any, ids: Any) -> Run:
    import headscope as hs

    subject, batch = _subject(model, ids)
    return lambda: hs.capture(subject, batch, z=["language.*"])


def _passing_z(model: Any, ids: Any) -> Run:
    """A listener that adds up |z| and keeps nothing."""
    from probes.listening import attach
    from probes.tap import Attached

    subject, batch = _subject(model, ids)
    sites = frozenset(place.site for place in subject.layout.sites)
    sums: dict[Any, Any] = {}

    def on_z(site: Any, z: Any, step: int) -> None:
        sums[site] = z.norm(dim=-1).mean((0, 1))

    def run() -> object:
        with attach(subject, Attached(sites, on_z=on_z)):
            subject.forward(batch)
        return sums

    return run


def _one_pattern(model: Any, ids: Any) -> Run:
    import headscope as hs

    subject, batch = _subject(model, ids)
    return lambda: hs.capture(subject, batch, patterns=["language.L1H3"])


def _measures(names: str) -> Callable[[Any, Any], Run]:
    def make(model: Any, ids: Any) -> Run:
        from analysis.measures import select_measures
        from headscope.scoring import new_engine, score_batch

        subject, batch = _subject(model, ids)
        engine = new_engine(subject, select_measures(names))
        return lambda: score_batch(subject, engine, batch)

    return make


def _eager(model: Any, ids: Any) -> Run:
    model.set_attn_implementation("eager")
    return lambda: model(input_ids=ids, use_cache=False, output_attentions=True).attentions


def _transformer_lens(model: Any, ids: Any) -> Run:
    """A Bridge on this model, caching patterns and z only."""
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # The Bridge asks for a tokenizer that was loaded from somewhere; this one is never used.
    inner = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    named = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "a")
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            "gpt2",
            hf_model=model,
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device=str(ids.device),
            dtype=model.dtype,
        )

    def wanted(name: str) -> bool:
        return name.endswith((".hook_pattern", ".hook_z"))

    return lambda: bridge.run_with_cache(ids, names_filter=wanted)


def _nnsight(model: Any, ids: Any) -> Run:
    from nnsight import NNsight

    traced = NNsight(model)

    def run() -> object:
        with traced.trace(input_ids=ids, use_cache=False):
            kept = list().save()  # noqa: C408 - nnsight gives `list()` its `save`
            for block in traced.transformer.h:
                kept.append(block.attn.c_proj.input)
        return kept

    return run


def _subject(model: Any, ids: Any) -> tuple[Any, Any]:
    """A headscope subject that has been observed, and the batch."""
    import headscope as hs

    subject = hs.load(model)
    assert subject.towers["language"].heads == model.config.n_head
    return subject, subject.prepare(input_ids=ids)


CONTENDERS = {
    "plain": Contender("the plain forward pass again (how far two equal things differ)", plain),
    "z": Contender("z of all heads, kept", _kept_z),
    "z_passing": Contender("z of all heads, passed to a listener", _passing_z),
    "pattern": Contender("the pattern of one head, kept", _one_pattern),
    "core": Contender(f"measures {', '.join(CORE)}", _measures(",".join(CORE))),
    "all": Contender("all streaming measures", _measures("all")),
    "eager": Contender("eager attention, `output_attentions=True`", _eager, True, "transformers"),
    "transformer_lens": Contender(
        "TransformerLens `run_with_cache`, patterns and z",
        _transformer_lens, True, "transformer-lens",
    ),
    "nnsight": Contender("nnsight, z only", _nnsight, True, "nnsight"),
}  # fmt: skip
