"""Qwen2-VL, Qwen2.5-VL and Pixtral: packed patches of any image size."""

from __future__ import annotations

import pytest
import torch
from planting import assert_found, assert_tiles, entering, scene, silence
from small_tokenizers import word_tokenizer
from small_vlms import pixtral, qwen2, qwen2_5, qwen3, qwen_images
from transformers import (
    LlamaConfig,
)
from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil
from transformers.models.hunyuan_vl.image_processing_pil_hunyuan_vl import (
    HunYuanVLImageProcessorPil,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from probes.collate import has_own_positions
from probes.tokens import map_tokens
from probes.tokens.packed_grid import _packing


def prepared(model, images):
    processor = qwen_images()
    tokenizer = word_tokenizer("<image>", "<start>", "<end>", "<video>")
    made = dict(processor(images=images, return_tensors="pt"))
    counts = (made["image_grid_thw"].prod(-1) // 4).tolist()
    rows = [tokenizer(f"<start> {'<image> ' * n}<end> what is this")["input_ids"] for n in counts]
    longest = max(len(row) for row in rows)
    made["input_ids"] = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    made["attention_mask"] = (made["input_ids"] != 0).long()
    made["mm_token_type_ids"] = (made["input_ids"] == 4).long()
    tokens = map_tokens(
        model,
        processor,
        made,
        ["language", "vision"],
        tokenizer=tokenizer,
        image_sizes=[image.size for image in images],
    )
    return made, tokens


@pytest.mark.parametrize("make", [qwen2, qwen2_5, qwen3])
def test_qwen_finds_planted_patches(make):
    model = make()
    images = [scene(170, 130), scene(95, 150)]
    made, tokens = prepared(model, images)
    _, rows, columns = made["image_grid_thw"][0].tolist()
    assert rows != columns and rows % 2 == columns % 2 == 0
    language, vision = tokens["language"], tokens["vision"]
    assert vision.lengths.tolist() == made["image_grid_thw"].prod(-1).tolist()
    assert int(language.row[language.example == 0].max()) == rows // 2 - 1
    assert int(vision.column[vision.example == 0].max()) == columns - 1
    for example, image in enumerate(images):
        assert_tiles(_only(vision, example), image.size)
    silence(model.model.visual.blocks)

    def enter(module):
        return lambda changed: entering(model, module, prepared(model, changed)[0])

    assert_found(vision, images, enter(model.model.visual.blocks[0]), count=8)
    assert_found(language, images, enter(model.model.language_model), count=8)


def test_patches_are_packed_in_blocks_and_windows():
    _, tokens = prepared(qwen2(), [scene(100, 60)])
    vision = tokens["vision"]
    assert list(zip(vision.row.tolist(), vision.column.tolist(), strict=True))[:5] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (0, 2),
    ]
    _, windows = prepared(qwen2_5(), [scene(100, 60)])
    # Windows of 30 pixels are 3 x 3 blocks of 2 x 2 patches: the first 36 patches are one window.
    first = windows["vision"].row[:36], windows["vision"].column[:36]
    assert int(first[0].max()) == int(first[1].max()) == 5


@pytest.mark.parametrize(
    ("make", "start"),
    [
        (lambda: Qwen2VLImageProcessorPil(), [0, 1, 6, 7, 2]),
        (lambda: Glm4vImageProcessorPil(), [0, 1, 6, 7, 2]),
        (lambda: HunYuanVLImageProcessorPil(), [0, 1, 2, 3, 4]),
        (lambda: object(), None),
    ],
)
def test_the_order_of_packing_is_asked_of_the_processor(make, start):
    order = _packing(make(), 4, 6, 2)
    assert order is None if start is None else order[:5].tolist() == start


def test_models_with_positions_of_their_own_are_known():
    assert has_own_positions(qwen2().config)
    assert not has_own_positions(LlamaConfig())


def pixtral_tensors(images, merge):
    """The full processor imports torchvision; its text is ``rows x (columns + 1)`` tokens."""
    block = 5 * merge
    processor = PixtralImageProcessorPil(
        size={"longest_edge": 60}, patch_size={"height": block, "width": block}
    )
    tokenizer = word_tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    made = dict(processor(images=images, return_tensors="pt"))
    rows = []
    for high, wide in made["image_sizes"].tolist():
        lines = ["[IMG] " * (wide // block)] * (high // block)
        rows.append(tokenizer(f"{'[IMG_BREAK] '.join(lines)} [IMG_END] what")["input_ids"])
    longest = max(len(row) for row in rows)
    made["input_ids"] = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    made["attention_mask"] = (made["input_ids"] != 0).long()
    return made, processor, tokenizer


@pytest.mark.parametrize("merge", [1, 2])
def test_pixtral_and_mistral3_find_planted_patches_in_one_packed_row(merge):
    model = pixtral(merge)
    images = [scene(100, 60), scene(70, 120)]
    made, processor, tokenizer = pixtral_tensors(images, merge)
    tokens = map_tokens(
        model,
        processor,
        made,
        ["language", "vision"],
        tokenizer=tokenizer,
        image_sizes=[image.size for image in images],
    )
    assert tokens["vision"].rows == 1
    assert tokens["language"].has_role("special").sum() == sum(
        high // (5 * merge) for high, _ in made["image_sizes"].tolist()
    )
    layers = model.model.vision_tower.transformer.layers
    silence(layers)

    def enter(module):
        return lambda changed: entering(model, module, pixtral_tensors(changed, merge)[0])

    assert_found(tokens["vision"], images, enter(layers[0]))
    assert_found(tokens["language"], images, enter(model.model.language_model))


def _only(tokens, example):
    from dataclasses import replace

    keep = tokens.example == example
    columns = {
        name: getattr(tokens, name)[keep]
        for name in ("example", "role", "ids", "image", "tile", "row", "column", "box")
    }
    return replace(tokens, starts=torch.tensor([0, int(keep.sum())]), text=(), **columns)
