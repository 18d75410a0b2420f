"""Choose the family that a batch belongs to, and name the positions of every tower."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from probes.tokens import any_resolution, fixed_grid, packed_grid, queries, split_tiles
from probes.tokens.context import Context, TowerFacts, as_list
from probes.tokens.map import TokenMap, TowerTokens, blank_tokens
from probes.tokens.patches import Patches
from probes.tokens.text import text_tokens
from probes.tokens.vit import pooled_tokens

_TEXT = ("language", "encoder", "decoder", "cross")
_DECODED = ("decoder", "cross")


class Family(Protocol):
    """How one family of processors lays images out: a module with these three functions."""

    def matches(self, context: Context) -> bool:
        """Whether the batch was made by a processor of this family."""
        ...

    def language(self, context: Context) -> list[Patches] | None:
        """What the language tower reads of each image of the batch; ``None`` if not known."""
        ...

    def vision(self, context: Context, facts: TowerFacts) -> TowerTokens | None:
        """The rows of the vision tower; ``None`` if not known."""
        ...


def families() -> tuple[Family, ...]:
    """Every family, the most particular first."""
    return (packed_grid, any_resolution, queries, split_tiles, fixed_grid)


def map_tokens(
    model: nn.Module | None,
    processor: Any,
    tensors: Mapping[str, Any],
    towers: Sequence[Any],
    *,
    tokenizer: Any = None,
    image_sizes: Sequence[tuple[int, int]] = (),
    image_examples: Sequence[int] = (),
) -> TokenMap:
    """What every position of every tower is.

    Args:
        model: the model that will read the batch; its configuration and the parameters of its
            embeddings are looked at, nothing is run.
        processor: what made the tensors: a processor, an image processor, a tokenizer or ``None``.
        tensors: keyword arguments of the model's forward.
        towers: a `TowerFacts`, a tower of a layout, or a name for each tower.
        tokenizer: found in the processor where it is left out.
        image_sizes: (width, height) of each original image, in the order of the processor.
        image_examples: index of the example that each image belongs to; left out, one each.

    Returns:
        A map with the towers that could be mapped. Places that are not understood stay unknown
        (row and column -1, box NaN); towers of which not even the lengths are known are left out.
    """
    found = tokenizer if tokenizer is not None else getattr(processor, "tokenizer", None)
    if found is None and hasattr(processor, "convert_ids_to_tokens"):
        found = processor
    if not image_sizes and processor is None:
        image_sizes, image_examples = canvas_sizes(model, tensors)
    context = Context(
        model=model,
        config=getattr(model, "config", None),
        processor=processor,
        tokenizer=found,
        tensors=tensors,
        image_sizes=list(image_sizes),
        image_examples=list(image_examples) or list(range(len(image_sizes))),
    )
    family = next((f for f in families() if f.matches(context)), None) if image_sizes else None
    patches = family.language(context) if family is not None else None
    mapped = {}
    for tower in towers:
        facts = _facts(tower)
        tokens = _map_tower(context, facts, family, patches)
        if tokens is None or _contradicts(tokens, facts):
            tokens = _blank(context, facts)
        if tokens is not None:
            mapped[facts.name] = tokens
    return TokenMap(mapped)


def canvas_sizes(
    model: nn.Module | None, tensors: Mapping[str, Any]
) -> tuple[list[tuple[int, int]], list[int]]:
    """(width, height) and example of each image of a model's own tensors.

    Without the original images, what the model sees is all there is to point at. Empty where the
    tensors do not say which image belongs to which example.
    """
    pixels, packed = tensors.get("pixel_values"), tensors.get("image_grid_thw")
    own = tensors.get("image_sizes")
    if packed is not None:
        config = getattr(model, "config", None)
        patch = getattr(getattr(config, "vision_config", config), "patch_size", None)
        if not isinstance(patch, int):
            return [], []
        sizes = [(int(wide) * patch, int(high) * patch) for _, high, wide in as_list(packed)]
    elif own is not None:
        sizes = [(int(wide), int(high)) for high, wide in as_list(own)]
    elif isinstance(pixels, Tensor) and pixels.ndim == 4:
        sizes = [(pixels.shape[-1], pixels.shape[-2])] * pixels.shape[0]
    else:
        return [], []
    ids = tensors.get("input_ids")
    examples = ids.shape[0] if isinstance(ids, Tensor) else len(sizes)
    if not examples or len(sizes) % examples:
        return [], []
    return sizes, [image * examples // len(sizes) for image in range(len(sizes))]


def _facts(tower: Any) -> TowerFacts:
    if isinstance(tower, str):
        tower = TowerFacts(tower)
    elif not isinstance(tower, TowerFacts):
        shapes = getattr(tower, "heads", 1), getattr(tower, "head_width", 1)
        alike = not any(isinstance(shape, tuple) for shape in shapes)
        tower = TowerFacts(tower.name, path=getattr(tower, "template", ""), alike=alike)
    return tower if tower.kind else replace(tower, kind=tower.name.split("_")[0])


def _map_tower(
    context: Context, facts: TowerFacts, family: Family | None, patches: list[Patches] | None
) -> TowerTokens | None:
    tensors = context.tensors
    if facts.kind == "resampler" or _gathers(facts):
        if family is queries:
            return queries.resampler(context, facts)
        vision = family.vision(context, TowerFacts("vision", "vision")) if family else None
        return pooled_tokens(context, facts, vision)
    if facts.kind in _DECODED and isinstance(tensors.get("decoder_input_ids"), Tensor):
        mask = tensors.get("decoder_attention_mask")
        return text_tokens(context, facts.name, tensors["decoder_input_ids"], mask)
    ids = _ids_or_places(tensors)
    if facts.kind in _TEXT and ids is not None and facts.kind != "decoder":
        mask = tensors.get("attention_mask")
        return text_tokens(context, facts.name, ids, mask, patches)
    if facts.kind in ("vision", "encoder") and family is not None:
        return family.vision(context, facts)
    return None


def _ids_or_places(tensors: Mapping[str, Any]) -> Tensor | None:
    """Long ``[example position]``: token ids, -1 where the model was given embeddings instead."""
    ids, embeds = tensors.get("input_ids"), tensors.get("inputs_embeds")
    if isinstance(ids, Tensor):
        return ids
    if isinstance(embeds, Tensor) and embeds.ndim == 3:
        return torch.full(embeds.shape[:2], -1)
    return None


def _gathers(facts: TowerFacts) -> bool:
    """Whether the tower's queries are learned ones, whatever its kind (a Q-Former's cross part)."""
    return bool(re.search(r"q_?former|perceiver_resampler|resampler", facts.path.lower()))


def _contradicts(tokens: TowerTokens, facts: TowerFacts) -> bool:
    return bool(facts.lengths) and tuple(tokens.lengths.tolist()) != tuple(facts.lengths)


def _blank(context: Context, facts: TowerFacts) -> TowerTokens | None:
    """Rows of the observed lengths in which nothing but the role is known."""
    if not facts.lengths:
        return None
    rows, examples = len(facts.lengths), max(context.examples, 1)
    owners = [min(row * examples // rows, examples - 1) for row in range(rows)]
    pictured = facts.kind in ("vision", "resampler")
    role = "image" if pictured else "text" if facts.kind in _TEXT else "special"
    if rows % examples and examples > 1:
        owners = [-1] * rows
    return blank_tokens(facts.name, list(facts.lengths), owners, role)
