"""Vision transformers: CLS, distillation and register tokens, then a grid of patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from probes.tokens.context import Context, TowerFacts, starts_of
from probes.tokens.map import TowerTokens, blank_tokens
from probes.tokens.patches import Patches, Placement, grid, unplaced

_BEFORE = {
    "cls": ("cls_token", "class_embedding", "class_token", "distillation_token", "dist_token"),
    "register": ("register_tokens", "reg_token", "storage_tokens"),
}
_AFTER = {"special": ("detection_tokens", "det_token")}


_POOLING = ("probe", "cls_token", "latent", "latents", "query", "queries")


@dataclass(frozen=True)
class Extras:
    """Tokens that a vision transformer adds to its patches, by role, and the size of a patch."""

    before: tuple[tuple[str, int], ...]
    after: tuple[tuple[str, int], ...]
    patch: tuple[int, int]
    """Rows and columns of pixels."""

    @property
    def count(self) -> int:
        return sum(count for _, count in (*self.before, *self.after))


def extras_of(context: Context, path: str = "") -> Extras | None:
    """What the vision tower adds to its patches, read off its parameters and configuration.

    ``None`` where the size of a patch cannot be found.
    """
    if context.model is None:
        return None
    convolution = _patch_convolution(context.model, path)
    patch = _patch_size(context, convolution)
    if patch is None:
        return None
    counted = _count_parameters(_holders(context.model, convolution))
    before = [(role, counted[name]) for role, names in _BEFORE.items() for name in names]
    after = [(role, counted[name]) for role, names in _AFTER.items() for name in names]
    before, after = [p for p in before if p[1]], [p for p in after if p[1]]
    if getattr(context.vision_config, "model_type", "") == "llama4_vision_model":
        before, after = [], before
    return Extras(tuple(before), tuple(after), patch)


def tile_patches(
    extras: Extras, rows: int, columns: int, placement: Placement | None, tile: int
) -> Patches:
    """What a vision transformer reads of one canvas of ``rows`` x ``columns`` pixels."""
    high, wide = extras.patch
    body = grid(rows // high, columns // wide, (wide, high), placement, tile)
    front = [unplaced(count, role, tile) for role, count in extras.before]
    back = [unplaced(count, role, tile) for role, count in extras.after]
    return Patches.join([*front, body, *back])


def vision_tokens(
    context: Context, facts: TowerFacts, tiles: Sequence[tuple[int, int, Placement | None]]
) -> TowerTokens | None:
    """One row per canvas of ``pixel_values [canvas channel row column]``.

    Args:
        tiles: for each canvas its image in the batch, its tile, and its placement.
    """
    pixels = context.tensors.get("pixel_values")
    extras = extras_of(context, facts.path)
    if not isinstance(pixels, Tensor) or extras is None or not _keeps_its_patches(context, facts):
        return None
    rows, columns = pixels.shape[-2:]
    pieces = [tile_patches(extras, rows, columns, place, tile) for _, tile, place in tiles]
    return tower_of_images(context, facts.name, pieces, [image for image, _, _ in tiles])


def tower_of_images(
    context: Context, tower: str, pieces: Sequence[Patches], images: Sequence[int]
) -> TowerTokens:
    """Rows of a vision tower: one per piece, which comes from the image of the same index."""
    lengths = [len(piece) for piece in pieces]
    size = torch.tensor(lengths, dtype=torch.long)
    joined = Patches.join(pieces)

    def spread(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long).repeat_interleave(size)

    return TowerTokens(
        tower=tower,
        starts=starts_of(lengths),
        example=spread([context.image_examples[image] for image in images]),
        role=joined.role,
        ids=torch.full((len(joined),), -1),
        image=spread([context.image_of_example[image] for image in images]),
        tile=joined.tile,
        row=joined.row,
        column=joined.column,
        box=joined.box,
    )


def single_tiles(context: Context) -> list[tuple[int, int, Placement | None]] | None:
    """One canvas per image, in order; ``None`` where their numbers differ."""
    pixels = context.tensors.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.ndim != 4 or pixels.shape[0] != context.images:
        return None
    return [(image, 0, context.placement(image, pixels)) for image in range(context.images)]


def _keeps_its_patches(context: Context, facts: TowerFacts) -> bool:
    """Whether every layer runs all patches: no stages of merged ones, none left out at random."""
    config = context.vision_config
    staged = any(
        isinstance(getattr(config, name, None), (list, tuple)) and len(getattr(config, name)) > 1
        for name in ("depths", "hidden_sizes", "embed_dims")
    )
    return facts.alike and not staged and not getattr(config, "mask_ratio", None)


def _holders(model: nn.Module, convolution: str | None) -> list[nn.Module]:
    """The modules around the patch embedding, from the inside out.

    Only they add tokens to the patches: a CLS token of a pooling head is none of the tower's.
    """
    if convolution is None:
        return list(model.modules())
    parents = convolution.split(".")
    return [
        model.get_submodule(".".join(parents[:depth])) for depth in range(len(parents) - 1, -1, -1)
    ]


def _patch_convolution(model: nn.Module, path: str) -> str | None:
    """Path of the convolution that cuts an image into patches, the one nearest to the tower."""
    best, score = None, -1
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == module.stride:
            if module.in_channels not in (1, 3, 4) or module.kernel_size == (1, 1):
                continue
            shared = 0
            for mine, theirs in zip(name.split("."), path.split("."), strict=False):
                if mine != theirs:
                    break
                shared += 1
            if shared > score:
                best, score = name, shared
    return best


def _count_parameters(holders: Sequence[nn.Module]) -> dict[str, int]:
    counts = {name: 0 for group in (*_BEFORE.values(), *_AFTER.values()) for name in group}
    for holder in holders:
        for name, parameter in holder.named_parameters(recurse=False):
            if counts.get(name) == 0:
                counts[name] = parameter.numel() // parameter.shape[-1]
        if any(counts.values()):
            break
    return counts


def _patch_size(context: Context, convolution: str | None) -> tuple[int, int] | None:
    found = getattr(context.vision_config, "patch_size", None)
    if found is not None:
        return context.pair(found)
    if convolution is None or context.model is None:
        return None
    high, wide = context.model.get_submodule(convolution).kernel_size  # type: ignore[misc]
    return int(high), int(wide)


def pooled_tokens(
    context: Context, facts: TowerFacts, vision: TowerTokens | None
) -> TowerTokens | None:
    """A pooling head: one row of learned queries, without a place, for each canvas."""
    if context.model is None or vision is None:
        return None
    parents = [part for part in facts.path.split(".") if part != "*"]
    for depth in range(len(parents), 0, -1):
        try:
            holder = context.model.get_submodule(".".join(parents[:depth]))
        except AttributeError:
            continue
        for name, parameter in holder.named_parameters(recurse=False):
            if name in _POOLING:
                count = parameter.numel() // parameter.shape[-1]
                firsts = vision.starts[:-1]
                blank = blank_tokens(
                    facts.name, [count] * vision.rows, vision.example[firsts].tolist(), "cls"
                )
                image = vision.image[firsts].repeat_interleave(count)
                tile = vision.tile[firsts].repeat_interleave(count)
                return replace(blank, image=image, tile=tile)
    return None
