"""LLaVA and its kin: what the language tower reads of an image, against the real models."""

from __future__ import annotations

import pytest
import torch
from planting import assert_found, assert_tiles, entering, scene, silence
from small_vlms import PATCH, SIDE, layers_of, llava, llava_next, llava_onevision
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

from probes.collate import collate
from probes.inputs import Example
from probes.tokens import ROLES, map_tokens


def prepared(model, processor, images_of_example, side="left", words="what is this"):
    examples = [
        Example(id=str(index), text=f"{'<image> ' * len(images)}{words}", images=tuple(images))
        for index, images in enumerate(images_of_example)
    ]
    made = collate(
        examples, processor, processor.tokenizer, kind="vision-language", padding_side=side
    )
    tokens = map_tokens(
        model,
        processor,
        made.tensors,
        ["language", "vision"],
        image_sizes=made.image_sizes,
        image_examples=made.image_examples,
    )
    return made, tokens


def find(model, processor, images, layers, module, **options):
    """A planted patch is found in the language tower and in the vision tower."""
    for path in layers:
        silence(model.get_submodule(path))
    _, tokens = prepared(model, processor, [[image] for image in images])

    def enter(into):
        return lambda changed: entering(
            model,
            model.get_submodule(into),
            prepared(model, processor, [[image] for image in changed])[0].tensors,
        )

    assert_found(tokens["vision"], images, enter(module), **options)
    assert_found(tokens["language"], images, enter("model.language_model"), **options)
    return tokens


@pytest.mark.parametrize("side", ["left", "right"])
def test_llava_roles_and_patches(side):
    model, processor = llava()
    made, tokens = prepared(model, processor, [[scene(80, 60)], []], side)
    language = tokens["language"]
    words = [ROLES[role] for role in language.role.tolist()]
    pads = ["pad"] * 16
    second = ["bos", "text", "text", "text"]
    assert words[:20] == ["bos", *["image"] * 16, "text", "text", "text"]
    assert words[20:] == (pads + second if side == "left" else second + pads)
    assert language.row[1:17].tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert language.box[1].tolist() == pytest.approx([10, 0, 25, 15], abs=1)
    assert tokens["vision"].lengths.tolist() == [17]
    with torch.no_grad():
        assert model(**made.tensors).logits.shape[1] == language.lengths[0]


def test_llava_that_keeps_cls_reads_it_as_an_image_position_without_a_place():
    model, processor = llava("full")
    _, tokens = prepared(model, processor, [[scene(40, 40)]])
    first = tokens["language"].has_role("image").nonzero()[0, 0]
    assert tokens["language"].row[first] == -1
    assert tokens["language"].has_role("image").sum() == 17


def test_llava_finds_planted_patches():
    model, processor = llava()
    find(
        model,
        processor,
        [scene(80, 60), scene(60, 100)],
        [layers_of(model)],
        f"{layers_of(model)}.0",
    )


def test_two_images_of_one_example_keep_their_index():
    model, processor = llava()
    _, tokens = prepared(model, processor, [[scene(80, 60), scene(40, 40)], [scene(20, 20)]])
    language = tokens["language"]
    first = language.image[language.has_role("image") & (language.example == 0)]
    assert first.tolist() == [0] * 16 + [1] * 16
    assert tokens["vision"].example[::17].tolist() == [0, 0, 1]
    assert tokens["vision"].image[::17].tolist() == [0, 1, 0]


SIZES = [(160, 80), (75, 150), (100, 90), (40, 200), (213, 70)]


@pytest.mark.parametrize("size", SIZES)
def test_llava_next_reads_as_many_positions_as_the_model_makes(size):
    model, processor = llava_next()
    made, tokens = prepared(model, processor, [[scene(*size)], [scene(90, 100)]])
    with torch.no_grad():
        features = model.model.get_image_features(
            made.tensors["pixel_values"], made.tensors["image_sizes"], return_dict=True
        ).pooler_output
    language = tokens["language"]
    for example, feature in enumerate(features):
        mine = (language.image == 0) & (language.example == example)
        assert mine.sum() == len(feature)
        assert (language.row[mine] >= 0).sum() > 0
    assert_tiles(tokens["vision"], size) if size != (90, 100) else None


def test_llava_next_finds_planted_patches():
    model, processor = llava_next()
    images = [scene(160, 70), scene(110, 120)]
    tokens = find(model, processor, images, [layers_of(model)], f"{layers_of(model)}.0", count=9)
    language = tokens["language"]
    special = language.has_role("special") & (language.image == 0)
    assert special.sum() > 0
    assert torch.isnan(language.box[special]).all()
    assert set(language.tile[language.example == 0].tolist()) == {-1, 0, 1, 2, 3}


def onevision_tensors(model, processor, tokenizer, image, limit):
    # The full processor wants a video processor, which wants torchvision: a stand-in that takes
    # the number of image tokens from the original code serves here.
    counter = LlavaOnevisionProcessor.__new__(LlavaOnevisionProcessor)
    counter.image_processor = processor
    counter.num_image_tokens = (SIDE // PATCH) ** 2
    counter.vision_feature_select_strategy = "full"
    counter.vision_aspect_ratio = limit
    counter.image_token = "<image>"
    tensors = dict(processor(images=[image], return_tensors="pt"))
    pieces = counter.replace_image_token(tensors, 0).count("<image>")
    ids = tokenizer(f"{'<image> ' * pieces}what is this", return_tensors="pt")
    return {**tensors, "input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limit", ["anyres_max_9", "anyres_max_2"])
def test_onevision_thins_out_large_grids_as_the_model_does(size, limit):
    model, processor, tokenizer = llava_onevision(limit)
    model.config.vision_feature_select_strategy = "full"
    made = onevision_tensors(model, processor, tokenizer, scene(*size), limit)
    tokens = map_tokens(
        model, processor, made, ["language", "vision"], tokenizer=tokenizer, image_sizes=[size]
    )
    language = tokens["language"]
    with torch.no_grad():
        features = model.model.get_image_features(
            made["pixel_values"], made["image_sizes"], return_dict=True
        ).pooler_output
    assert (language.image == 0).sum() == len(features[0])
    placed = (language.row >= 0) & (language.tile > 0)
    assert placed.sum() > 0, "the numbers agree, so every patch has its place"
    assert float(language.box[placed][:, 2].max()) == pytest.approx(size[0], abs=size[0] / 10)


def test_onevision_finds_planted_patches():
    model, processor, tokenizer = llava_onevision()
    model.config.vision_feature_select_strategy = "full"
    silence(model.get_submodule(layers_of(model)))
    images = [scene(150, 90)]

    def made(changed):
        return onevision_tensors(model, processor, tokenizer, changed[0], "anyres_max_9")

    tokens = map_tokens(
        model,
        processor,
        made(images),
        ["language", "vision"],
        tokenizer=tokenizer,
        image_sizes=[images[0].size],
    )
    block = model.get_submodule(f"{layers_of(model)}.0")
    assert_found(tokens["vision"], images, lambda c: entering(model, block, made(c)))
    language = model.model.language_model
    assert_found(tokens["language"], images, lambda c: entering(model, language, made(c)))
