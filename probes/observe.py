"""Read the layout of a model off one forward: ``observe(model, forward, ...) -> Layout``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from probes.anatomy import Anatomy, Block, OutputProjection
from probes.heads import Site
from probes.layout import Layout, Refusal, Tower
from probes.lineage import Node
from probes.observation import ModuleRun, Observation, ObservedCall, run_observed
from probes.towers import build_towers

_ATTENTION_CLASS = re.compile(
    r"attention|attn|mamba|ssm|ssd|deltanet|delta_?net|lightning|rwkv|recurrent|linear_?att|"
    r"fourier|lsh|yoso|mixer|rglru",
    re.IGNORECASE,
)
_NOT_ATTENTION = re.compile(
    r"norm|mlp|output|dropout|embed|pool|mask|rotary|linear$|conv\dd|gate$|cache|moe|router|"
    r"feedforward|intermediate|projection|activation|bias|"
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
    towers, more, members = build_towers(model, calls, inputs)
    refusals += more
    refusals += _silent_modules(model, seen)
    return Layout(towers, tuple(_once(refusals)), _anatomy(seen, towers, members))


def _trusted(calls: list[ObservedCall]) -> tuple[list[ObservedCall], list[Refusal]]:
    kept, refused = [], []
    for call in calls:
        limit = _FLOAT32_MISMATCH if call.z.element_size() == 4 else _HALF_MISMATCH
        if call.mismatch > limit or call.mismatch != call.mismatch:
            reason = f"pattern @ value differs from z by {call.mismatch:.1e} of the largest value"
            refused.append(Refusal(call.path, _sentence(reason)))
        elif _is_channel_map(call):
            refused.append(Refusal(call.path, "Attention between channels, not between tokens."))
        elif call.source == "softmax" and not call.mixed and call.row_sum_error > 1e-2:
            kept.append(replace(call, mixed=True))
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
            found.append(Refusal(path, f"{name} ran without a softmax over query times key."))
    return found


def _anatomy(
    seen: Observation, towers: dict[str, Tower], members: dict[Site, list[ObservedCall]]
) -> Anatomy:
    projections: dict[Site, OutputProjection] = {}
    blocks: dict[Site, Block] = {}
    missing: dict[str, str] = {}
    runs: dict[str, list[ModuleRun]] = {}
    for run in seen.runs:
        runs.setdefault(run.path, []).append(run)
    for tower in towers.values():
        for site_layout in tower.sites.values():
            site, calls = site_layout.site, members[site_layout.site]
            if calls[0].projection is not None:
                projections[site] = calls[0].projection
            else:
                missing[f"{site} output projection"] = _sentence(calls[0].projection_obstacle)
            block = _block_path(tower, site_layout.path)
            if block and block in runs:
                blocks[site] = Block(
                    block, _adds_to_residual(_run_at(runs[block], site_layout.occurrence), calls)
                )
                if not blocks[site].residual:
                    missing[f"{site} residual stream"] = (
                        f"The input of {block} was not seen to be added to its attention's output."
                    )
    final_norm, unembedding = _after_last_block(seen, towers, blocks, missing)
    shapes = {
        layout.site: (layout.heads, layout.value_width)
        for tower in towers.values()
        for layout in tower.sites.values()
    }
    return Anatomy(projections, blocks, final_norm, unembedding, missing, shapes)


def _run_at(runs: list[ModuleRun], occurrence: int) -> ModuleRun:
    return runs[min(occurrence, len(runs) - 1)]


def _block_path(tower: Tower, path: str) -> str:
    parts, shape = path.split("."), tower.template.split(".")
    if "*" not in shape:
        return ""
    last = len(shape) - 1 - shape[::-1].index("*")
    first = shape.index("*")
    varying = [
        i
        for i, part in enumerate(shape)
        if part == "*" and len({s.path.split(".")[i] for s in tower.sites.values()}) > 1
    ]
    where = varying[-1] if varying else (first if first else last)
    return ".".join(parts[: where + 1])


def _adds_to_residual(run: ModuleRun, calls: list[ObservedCall]) -> bool:
    """Whether block input and projected heads meet in an addition, untouched but for scaling."""
    projected, entered = calls[0].projected, run.entered
    if projected is None or entered is None or run.left is None:
        return False
    seen: set[int] = set()
    queue: list[Node] = [run.left]
    while queue:
        here = queue.pop()
        if id(here) in seen or here is entered:
            continue
        seen.add(id(here))
        if (
            here.name in ("add", "__add__", "__iadd__", "add_", "__radd__")
            and len(here.parents) > 1
        ):
            reach = [_plain_ancestors(parent) for parent in here.parents[:2]]
            for one, other in (reach, reach[::-1]):
                if id(projected) in one and id(entered) in other:
                    return True
        queue.extend(here.parents)
    return False


def _plain_ancestors(node: Node) -> set[int]:
    seen: set[int] = set()
    queue = [node]
    while queue:
        here = queue.pop()
        if id(here) in seen:
            continue
        seen.add(id(here))
        if here.kind in ("shape", "join", "slice", "element", "norm"):
            queue.extend(here.parents)
    return seen


def _after_last_block(
    seen: Observation, towers: dict[str, Tower], blocks: dict[Site, Block], missing: dict[str, str]
) -> tuple[dict[str, str], str]:
    norms: dict[str, str] = {}
    unembedding = ""
    for tower in towers.values():
        last = [blocks[s.site].path for s in tower.sites.values() if s.site in blocks]
        crossing = any(site.cross for site in tower.sites.values())
        if not last or not tower.template.count("*") or crossing:
            continue
        stack = last[-1].rsplit(".", 1)[0] + "."
        ends = [
            r for r in seen.runs if r.path.startswith(stack) and "." not in r.path[len(stack) :]
        ]
        if not ends or ends[-1].left is None:
            continue
        after = _plain_shape(ends[-1].left)
        for run in seen.runs:
            is_norm = "norm" in type(run.module).__name__.lower()
            if is_norm and run.entered is not None and _plain_shape(run.entered) is after:
                if not run.path.startswith(stack):
                    norms[tower.name] = run.path
        if tower.name not in norms:
            missing[f"{tower.name} final norm"] = (
                "No norm was seen to read the output of the last block."
            )
    output_node = seen.runs[0].left if seen.runs and seen.runs[0].path == "" else None
    if output_node is not None and norms:
        unembedding = _unembedding(seen, output_node, set(norms.values()))
    if not unembedding:
        missing["unembedding"] = "No linear map from a final norm to the output was seen."
    return norms, unembedding


def _plain_shape(node: Node) -> Node:
    while node.kind in ("shape", "slice") and node.parents:
        node = node.parents[0]
    return node


def _unembedding(seen: Observation, output: Node, norms: set[str]) -> str:
    outputs = {id(run.left): run.path for run in seen.runs if run.path in norms and run.left}
    for run in seen.runs:
        linear = hasattr(run.module, "weight") and getattr(run.module.weight, "ndim", 0) == 2
        if not linear or run.left is None or run.entered is None:
            continue
        reaches_output = id(run.left) in _plain_ancestors(output)
        if reaches_output and _plain_ancestors(run.entered) & set(outputs):
            return run.path
    return ""
