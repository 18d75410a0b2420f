"""From observed calls to sites and towers: which calls are one layer, which layers one stack."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace

from torch import nn

from probes.heads import Site
from probes.layout import SiteLayout, Tower
from probes.observed import ObservedCall

_WORDS = (
    ("resampler", r"q_?former|resampler|perceiver_?(?!model)|abstractor|attn_?pool|pooling_head"),
    ("audio", r"audio|speech|wav|sound|acoustic"),
    ("vision", r"vision|visual|visn|image|pixel|vit\b|patch"),
    ("language", r"language|text|\blm\b|\bllm\b|lang_"),
)
_MODALITY = {
    "pixel_values": "vision",
    "pixel_values_videos": "vision",
    "input_features": "audio",
    "input_values": "audio",
    "input_ids": "language",
}


_NUMBERED = re.compile(r"^(.*_)?\d+$")
_SIDES = ("encoder", "decoder")
_SAY_LITTLE = frozenset(
    "* self att attn attention self_attn self_attention layer layers block blocks module".split()
)
"""Parts of paths that do not tell one tower from another."""


_ROW_SUMS = ("one", "below one", "any")


@dataclass
class _Layer:
    """The calls that make up one run of one attention module."""

    path: str
    occurrence: int
    calls: list[ObservedCall]
    rule: str
    inside: int | None


def group_layers(calls: list[ObservedCall]) -> list[_Layer]:
    """Calls of one module run that belong together become one layer, others stay apart."""
    runs: dict[tuple[str, int], list[ObservedCall]] = defaultdict(list)
    for call in calls:
        runs[call.path, call.occurrence].append(call)
    layers: list[_Layer] = []
    for (path, occurrence), group in runs.items():
        rule = _rule(group)
        if rule is not None:
            layers.append(_Layer(path, occurrence, group, rule, None))
            continue
        layers.extend(_Layer(path, occurrence, [call], "single", call.inside) for call in group)
    return layers


def _rule(calls: list[ObservedCall]) -> str | None:
    if len(calls) == 1:
        return "single"
    alike = len({(c.heads, c.value_width, c.batch, c.source, c.cross) for c in calls}) == 1
    if not alike:
        return None
    joint = {id(call.projection) for call in calls if call.projection is not None}
    axis = {(call.queries, call.keys) for call in calls}
    if len(axis) == 1 and calls[0].source == "softmax":
        return "heads"
    if all(call.queries == call.keys for call in calls) and (len(joint) == 1 or len(axis) > 1):
        return "blocks"
    return "blocks" if calls[0].batch == 1 and len(axis) > 1 else "heads"


def build_towers(
    model: nn.Module, calls: list[ObservedCall], inputs: Iterable[str]
) -> tuple[dict[str, Tower], dict[Site, list[ObservedCall]]]:
    """Towers by name, and the observed calls of each site.

    Args:
        inputs: names of the tensors that the model was called with.
    """
    layers = group_layers(calls)
    stacks: dict[tuple[str, int | None, bool], list[_Layer]] = defaultdict(list)
    for layer in layers:
        stacks[template(layer.path), layer.inside, layer.calls[0].cross].append(layer)
    namer = _Namer(model, [key[0] for key in stacks], set(inputs))
    towers: dict[str, Tower] = {}
    members: dict[Site, list[ObservedCall]] = {}
    for (shape, _, cross), stack in stacks.items():
        learned = any(layer.calls[0].learned_query for layer in stack) and len(stack) == 1
        name = namer.name(shape, cross, learned, stack[0].path)
        indices, depth = _layer_indices(model, stack)
        sites = {}
        for index, layer in sorted(zip(indices, stack, strict=True), key=lambda pair: pair[0]):
            site = Site(name, index)
            sites[index] = _site_layout(site, layer, cross)
            members[site] = layer.calls
        towers[name] = Tower(name, sites, depth, shape)
    return _with_key_towers(towers), members


def _site_layout(site: Site, layer: _Layer, cross: bool) -> SiteLayout:
    first = layer.calls[0]
    times = len(layer.calls) if layer.rule == "heads" else 1
    return SiteLayout(
        site=site,
        path=layer.path,
        heads=first.heads * times,
        kv_heads=first.kv_heads * times,
        head_width=first.head_width,
        value_width=first.value_width,
        source=first.source,
        rule=layer.rule,
        calls=len(layer.calls),
        occurrence=layer.occurrence,
        cross=cross,
        causal=first.causal,
        row_sums=max((call.row_sums for call in layer.calls), key=_ROW_SUMS.index),
        mismatch=max(call.mismatch for call in layer.calls),
        inside=layer.inside,
        softmax_path=first.softmax_path,
        softmax_numbers=frozenset(call.softmax_number for call in layer.calls),
    )


def _with_key_towers(towers: dict[str, Tower]) -> dict[str, Tower]:
    result = {}
    for name, tower in towers.items():
        key_tower = name
        if any(site.cross for site in tower.sites.values()):
            others = [n for n in ("encoder", "vision", "audio", "language") if n in towers]
            key_tower = others[0] if others else ""
        sites = {k: replace(site, key_tower=key_tower) for k, site in tower.sites.items()}
        result[name] = replace(tower, sites=sites)
    return result


def template(path: str) -> str:
    """The path with its numbers replaced: ``h.3.attn`` becomes ``h.*.attn``.

    >>> template("model.layers.3.self_attn")
    'model.layers.*.self_attn'
    >>> template("encoder.layers.encoder_layer_3.self_attention")
    'encoder.layers.encoder_layer_*.self_attention'
    """
    return ".".join(_NUMBERED.sub(r"\1*", part) for part in path.split("."))


def _layer_indices(model: nn.Module, stack: list[_Layer]) -> tuple[list[int], int]:
    if len({layer.path for layer in stack}) == 1 and len(stack) > 1:
        return [layer.occurrence for layer in stack], len(stack)
    parts = [layer.path.split(".") for layer in stack]
    numbered = [i for i, part in enumerate(parts[0]) if _NUMBERED.match(part)]
    varying = [i for i in numbered if len({p[i] for p in parts}) > 1]
    shared = max(layer.occurrence for layer in stack)
    if len(varying) > 1 or shared:
        return list(range(len(stack))), len(stack)
    if not numbered:
        return [0] * len(stack), 1
    where = varying[0] if varying else numbered[0]
    parent = model.get_submodule(".".join(parts[0][:where]))
    indices = [int(p[where].rpartition("_")[2]) for p in parts]
    return indices, max(len(list(parent.children())), max(indices) + 1)


def _before(shape: str, side: str) -> str | None:
    """What stands before ``encoder`` or ``decoder`` in a path, None if neither does."""
    parts = shape.split(".")
    return ".".join(parts[: parts.index(side)]) if side in parts else None


class _Namer:
    """Gives each stack the name of what it is; a second of a kind gets its module's name."""

    def __init__(self, model: nn.Module, templates: list[str], inputs: set[str]) -> None:
        self.model, self.inputs = model, inputs
        self.taken: set[str] = set()
        sides = {side: {_before(shape, side) for shape in templates} for side in _SIDES}
        both = sides["encoder"] & sides["decoder"]
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            both = sides["encoder"] | sides["decoder"]
        self.two_sided = both - {None}

    def name(self, shape: str, cross: bool, learned: bool, path: str) -> str:
        kind = "cross" if cross and not learned else self._kind(shape, learned, path)
        if kind not in self.taken:
            self.taken.add(kind)
            return kind
        words = [part for part in shape.split(".") if part not in _SAY_LITTLE] or ["second"]
        for start in range(len(words) - 1, -1, -1):
            candidate = re.sub(r"\W+", "_", "_".join([kind, *words[start:]]))
            if candidate not in self.taken:
                self.taken.add(candidate)
                return candidate
        candidate = f"{kind}_{len(self.taken)}"
        self.taken.add(candidate)
        return candidate

    def _kind(self, shape: str, learned: bool, path: str) -> str:
        if learned:
            return "resampler"
        for side in _SIDES:
            if _before(shape, side) in self.two_sided:
                return side
        for kind, pattern in _WORDS:
            if re.search(pattern, shape.lower()):
                return kind
        return self._by_input(path)

    def _by_input(self, path: str) -> str:
        parts = path.split(".")
        for end in range(len(parts), -1, -1):
            module = self.model.get_submodule(".".join(parts[:end]))
            main = getattr(type(module), "main_input_name", None)
            if isinstance(main, str) and hasattr(module, "config"):
                return _MODALITY.get(main, "language")
        for name, kind in _MODALITY.items():
            if name in self.inputs:
                return kind
        return "encoder"
