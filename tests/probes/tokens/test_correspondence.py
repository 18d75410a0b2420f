"""Which patches a position stands for, against the models: one patch is shaken, see who notices."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from planting import entering, scene, silence
from small_tiled_vlms import gemma3, idefics2, idefics3, internvl
from small_vlms import layers_of, llava, llava_next, llava_onevision, pixtral, qwen2_5, qwen3
from torch import Tensor, nn

from probes.tokens import TokenMap, map_tokens
from probes.tokens.correspondence import (
    Correspondence,
    CorrespondenceError,
    correspondence,
    owners,
)
from tests.probes.tokens.test_llava import onevision_tensors, prepared
from tests.probes.tokens.test_packed_grid import pixtral_tensors
from tests.probes.tokens.test_packed_grid import prepared as prepared_qwen

Case = tuple[nn.Module, dict[str, Any], TokenMap, nn.Module, nn.Module]
"""A model, its tensors, their map, the blocks of its vision tower, its language model."""


def _llava(strategy: str = "default") -> Case:
    model, processor = llava(strategy)
    made, tokens = prepared(model, processor, [[scene(80, 60), scene(40, 90)], [], [scene(30, 30)]])
    blocks = model.get_submodule(layers_of(model))
    return model, made.tensors, tokens, blocks, model.model.language_model


def _llava_next() -> Case:
    model, processor = llava_next()
    made, tokens = prepared(model, processor, [[scene(160, 70)], [scene(110, 120)]])
    blocks = model.get_submodule(layers_of(model))
    return model, made.tensors, tokens, blocks, model.model.language_model


def _onevision(limit: str, size: tuple[int, int] = (150, 90)) -> Case:
    model, processor, tokenizer = llava_onevision(limit)
    model.config.vision_feature_select_strategy = "full"
    made = onevision_tensors(model, processor, tokenizer, scene(*size), limit)
    tokens = map_tokens(
        model, processor, made, ["language", "vision"], tokenizer=tokenizer, image_sizes=[size]
    )
    blocks = model.get_submodule(layers_of(model))
    return model, made, tokens, blocks, model.model.language_model


def _qwen(make: Callable[[], Any]) -> Case:
    model = make()
    made, tokens = prepared_qwen(model, [scene(100, 60), scene(50, 90)])
    return model, made, tokens, model.model.visual.blocks, model.model.language_model


def _pixtral(merge: int) -> Case:
    model = pixtral(merge)
    images = [scene(100, 60), scene(70, 120)]
    made, processor, tokenizer = pixtral_tensors(images, merge)
    tokens = map_tokens(
        model, processor, made, ["language", "vision"], tokenizer=tokenizer,
        image_sizes=[image.size for image in images],
    )  # fmt: skip
    blocks = model.model.vision_tower.transformer.layers
    return model, made, tokens, blocks, model.model.language_model


def _tiled(make: Callable[..., Any], *settings: bool) -> Case:
    torch.manual_seed(5)
    case = make(*settings)
    images = [scene(170, 80), scene(90, 100)]
    made = case.tensors(images)
    case.model.eval()
    try:
        blocks = case.model.get_submodule(case.layers)
    except AttributeError:
        case.layers = case.layers.replace(".vision_model", "")
        blocks = case.model.get_submodule(case.layers)
    return case.model, made, case.map(images, made), blocks, case.model.get_submodule(case.language)


FAMILIES: dict[str, tuple[Callable[[], Case], int]] = {
    "llava": (_llava, 1),
    "llava_next": (_llava_next, 1),
    "onevision": (lambda: _onevision("anyres_max_9"), 1),
    "qwen2_5_in_windows": (lambda: _qwen(qwen2_5), 4),
    "qwen3": (lambda: _qwen(qwen3), 4),
    "pixtral": (lambda: _pixtral(1), 1),
    "mistral3": (lambda: _pixtral(2), 4),
    "idefics3": (lambda: _tiled(idefics3), 4),
    "internvl": (lambda: _tiled(internvl), 4),
    "gemma3": (lambda: _tiled(gemma3), 4),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_who_notices_a_patch_stands_for_it(name: str) -> None:
    make, merged = FAMILIES[name]
    model, tensors, tokens, blocks, language = make()
    found = correspondence(tokens)
    assert torch.equal(found.position, tokens["language"].has_role("image").nonzero()[:, 0])
    assert found.patches.shape == (len(found.position), merged)
    assert bool(found.placed.all())
    used = found.patches.flatten()
    assert len(used.unique()) == len(used), "no patch belongs to two positions"
    silence(blocks)
    plain = entering(model, language, tensors)
    patches = len(tokens["vision"])
    generator = torch.Generator().manual_seed(3)
    unused = sorted(set(range(patches)) - set(used.tolist()))
    chosen = used[torch.randperm(len(used), generator=generator)[:11]].tolist()
    for patch in [*chosen, *unused[:3]]:
        handle = _shaken(blocks[0], patch, patches)
        changed = (entering(model, language, tensors) - plain).abs().amax(-1) > 1e-7
        handle.remove()
        expected = found.position[(found.patches == patch).any(-1)].tolist()
        assert changed.nonzero()[:, 0].tolist() == expected, f"patch {patch}"


def _shaken(block: nn.Module, patch: int, count: int) -> Any:
    """Add a step to one patch as it enters the first block."""

    def shake(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        hidden = args[0] if args else kwargs["hidden_states"]
        assert hidden.numel() == count * hidden.shape[-1]
        step = torch.zeros_like(hidden).reshape(count, -1)
        step[patch] = torch.linspace(-3, 5, hidden.shape[-1])
        moved = hidden + step.reshape(hidden.shape)
        return ((moved, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": moved})

    return block.register_forward_pre_hook(shake, with_kwargs=True)


def test_a_class_token_that_is_read_stands_for_no_patch() -> None:
    _, _, tokens, _, _ = _llava("full")
    found = correspondence(tokens)
    assert found.placed.tolist() == [*[False, *[True] * 16] * 3]
    values = torch.arange(len(tokens["vision"]), dtype=torch.float32)
    read = found.to_positions(values)
    assert read[:3].isnan().tolist() == [True, False, False]
    assert read[1:17].tolist() == list(range(1, 17))


def test_numbers_of_patches_and_of_positions() -> None:
    found = Correspondence(torch.tensor([2, 5, 6]), torch.tensor([[3, 1], [-1, -1], [0, 4]]))
    values = torch.tensor([[2.0, 10.0, 0.5, 30.0, 4.0], [0.0, 1.0, 2.0, 3.0, 8.0]])
    assert found.to_positions(values)[:, [0, 2]].tolist() == [[20.0, 3.0], [2.0, 4.0]]
    assert found.to_positions(values, "sum")[:, [0, 2]].tolist() == [[40.0, 6.0], [4.0, 8.0]]
    assert found.to_positions(values, "max")[:, [0, 2]].tolist() == [[30.0, 4.0], [3.0, 8.0]]
    assert found.to_positions(values)[:, 1].isnan().all()
    back = found.to_patches(torch.tensor([7.0, 8.0, 9.0]), 5).tolist()
    assert back[0] == back[4] == 9 and back[1] == back[3] == 7 and math.isnan(back[2])


def test_tiles_are_numbered_as_they_come() -> None:
    _, _, tokens, _, _ = _llava()
    language = tokens["language"]
    position = language.has_role("image").nonzero()[:, 0]
    assert owners(language, position).tolist() == [0] * 16 + [1] * 16 + [2] * 16
    assert owners(language, position.flip(0)).tolist() == [0] * 16 + [1] * 16 + [2] * 16


def test_without_boxes_the_shape_of_the_grids_decides() -> None:
    _, _, tokens, _, _ = _qwen(qwen3)
    expected = correspondence(tokens).patches
    bare = {
        name: replace(tower, box=torch.full_like(tower.box, math.nan))
        for name, tower in tokens.towers.items()
    }
    one = {name: _only_first(tower) for name, tower in bare.items()}
    found = correspondence(TokenMap(one)).patches
    assert torch.equal(found, expected[: len(found)]) and len(found) > 9


def _only_first(tower: Any) -> Any:
    end = int(tower.starts[1])
    columns = ("example", "role", "ids", "image", "tile", "row", "column", "box")
    cut: dict[str, Tensor] = {name: getattr(tower, name)[:end] for name in columns}
    return replace(tower, starts=tower.starts[:2], text=(), **cut)


def test_what_cannot_be_told_is_one_sentence() -> None:
    said = "Which patches an image position stands for cannot be told: "
    with pytest.raises(CorrespondenceError, match=said + "the grid that language reads is not"):
        correspondence(_onevision("anyres_max_2", (100, 90))[2])
    with pytest.raises(CorrespondenceError, match=said + "image positions of language have no pl"):
        correspondence(_tiled(idefics2, False)[2])
    _, _, tokens, _, _ = _llava()
    alone = TokenMap({"language": tokens["language"]})
    with pytest.raises(CorrespondenceError, match=said + "the positions of vision are not mapped"):
        correspondence(alone)
    text = replace(tokens["language"], role=torch.full((len(tokens["language"]),), 2))
    with pytest.raises(CorrespondenceError, match=said + "no position of language is an image's"):
        correspondence(TokenMap({**tokens.towers, "language": text}))
    blind = replace(tokens["vision"], row=torch.full((len(tokens["vision"]),), -1))
    with pytest.raises(CorrespondenceError, match=said + "the places of the patches of vision"):
        correspondence(TokenMap({**tokens.towers, "vision": blind}))
