"""Read the layout of a model off one forward: ``observe(model, forward, ...) -> Layout``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from probes.anatomy_search import find_anatomy
from probes.layout import Layout, Refusal
from probes.observation import Observation, run_observed
from probes.observed import ObservedCall
from probes.towers import build_towers

_ATTENTION_CLASS = re.compile(
    r"attention|attn|mamba|ssm|ssd|deltanet|delta_?net|lightning|rwkv|recurrent|linear_?att|"
    r"fourier|lsh|yoso|mixer|rglru",
    re.IGNORECASE,
)
_NOT_ATTENTION = re.compile(
    r"norm|mlp|output|dropout|embed|pool|mask|rotary|linear$|conv\dd|gate$|cache|moe|router|"
    r"feedforward|intermediate|projection|activation|bias|encoding|"
    # Blocks and stacks: the module inside them is the one to name.
    r"layer$|encoder$|decoder$|(?<!recurrent)block$",
    re.IGNORECASE,
)
_FLOAT32_MISMATCH = 1e-4
_HALF_MISMATCH = 5e-2


def observe(
    model: nn.Module, forward: Callable[[], Any], *, examples: int, inputs: Iterable[str] = ()
) -> Layout:
    """Towers, layers, heads, anatomy and refusals of a model, seen in one forward.

    Args:
        model: the module that ``forward`` calls.
        forward: runs the model once on a small input, in the thread that calls this.
        examples: rows of that input.
        inputs: names of its tensors; they help to name towers of models without a config.
    """
    seen = run_observed(model, forward, examples)
    calls, refusals = _trusted(seen.calls)
    refusals += [Refusal(path, _sentence(reason)) for path, reason in seen.refused]
    towers, members = build_towers(model, calls, inputs)
    refusals += _silent_modules(model, seen)
    return Layout(towers, tuple(_once(refusals)), find_anatomy(seen, towers, members))


def _trusted(calls: list[ObservedCall]) -> tuple[list[ObservedCall], list[Refusal]]:
    kept, refused = [], []
    for call in calls:
        limit = _FLOAT32_MISMATCH if call.z.element_size() == 4 else _HALF_MISMATCH
        if call.mismatch > limit or call.mismatch != call.mismatch:
            reason = f"pattern @ value differs from z by {call.mismatch:.1e} of the largest value"
            refused.append(Refusal(call.path, _sentence(reason)))
        elif _is_channel_map(call):
            refused.append(Refusal(call.path, "Attention between channels, not between tokens."))
        else:
            kept.append(call)
    return kept, refused


def _is_channel_map(call: ObservedCall) -> bool:
    # XCA and kin: softmax(q.T @ k) is [head_width, head_width], and the tokens are z's last axis.
    shape = call.input_shape
    if call.queries != call.keys or len(shape) < 3:
        return False
    channels_last = (math.prod(shape[1:-1]), shape[-1])
    channels_first = (math.prod(shape[2:]), shape[1])
    return any(
        call.heads * call.queries == channels and call.value_width == tokens
        for tokens, channels in (channels_last, channels_first)
        if tokens != call.queries
    )


def _sentence(reason: str) -> str:
    return f"{reason[0].upper()}{reason[1:].rstrip('.')}."


def _once(refusals: list[Refusal]) -> list[Refusal]:
    return list(dict.fromkeys(refusals))


def _silent_modules(model: nn.Module, seen: Observation) -> list[Refusal]:
    """Modules that look like attention by their class and ran without any event."""
    loud = {call.path for call in seen.calls} | {path for path, _ in seen.refused}
    ran = {run.path for run in seen.runs}
    found: list[Refusal] = []
    for path, module in model.named_modules():
        name = type(module).__name__
        if path not in ran or not _ATTENTION_CLASS.search(name) or _NOT_ATTENTION.search(name):
            continue
        if path == "" or (hasattr(module, "config") and hasattr(module, "main_input_name")):
            continue
        heard = any(p == path or p.startswith(f"{path}.") or path.startswith(f"{p}.") for p in loud)
        inside_other = any(path.startswith(f"{other.path}.") for other in found)
        if not heard and not inside_other and any(True for _ in module.parameters()):
            reason = f"{name} ran without a softmax over query times key."
            found.append(Refusal(path, f"{reason}{_advice(module)}"))
    return found


def _advice(module: nn.Module) -> str:
    """What to do where the attention kernel is one that shows nothing (flash, flex, paged)."""
    kernel = getattr(getattr(module, "config", None), "_attn_implementation", None)
    if kernel in (None, "sdpa", "eager"):
        return ""
    return (
        f" The model runs attn_implementation={kernel!r}, which cannot be seen into: "
        "load it with 'sdpa' or 'eager'."
    )
