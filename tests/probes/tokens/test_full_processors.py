"""The whole processors, torchvision back ends included, from a prompt to the planted patch.

They want torchvision, so they run in the environment of the extra ``timm``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from planting import assert_found, entering, scene, silence
from small_tiled_vlms import gemma3, idefics3, internvl, smolvlm
from small_tokenizers import word_tokenizer
from small_vlms import (
    PATCH,
    PINPOINTS,
    SIDE,
    layers_of,
    llava_next,
    llava_onevision,
    pixtral,
    qwen2,
    qwen2_5,
    qwen3,
)
from torch import nn

from probes.collate import collate
from probes.inputs import Example
from probes.tokens import TowerFacts, map_tokens
from probes.tokens.placement import _from_test_cards, _from_transforms

pytestmark = pytest.mark.timm
pytest.importorskip("torchvision")

Parts = tuple[nn.Module, Any, str, str, str]
"""Model, processor, path of the vision blocks, path of the language tower, how an image is said."""

SQUARE = {"height": SIDE, "width": SIDE}


def tokenizer(*special: str, **named: str) -> Any:
    names = [*named.values(), *(name for name in special if name not in named.values())]
    extra = {"extra_special_tokens": named} if named else {}
    return word_tokenizer(*names, padding_side="left", **extra)


def a_llava_next() -> Parts:
    from transformers import LlavaNextImageProcessor, LlavaNextProcessor

    model, _ = llava_next()
    images = LlavaNextImageProcessor(
        size={"shortest_edge": SIDE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer("<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return model, processor, layers_of(model), "model.language_model", "<image>"


def a_llava_onevision() -> Parts:
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )

    model, *_ = llava_onevision()
    model.config.vision_feature_select_strategy = "full"
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        tokenizer("<image>", "<video>"),
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
    )
    return model, processor, layers_of(model), "model.language_model", "<image>"


def a_qwen(make: Callable[[], nn.Module]) -> Parts:
    from transformers import Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

    model = make()
    words = tokenizer("<start>", "<end>", image_token="<image>", video_token="<video>")
    images = Qwen2VLImageProcessor(
        patch_size=5, size={"shortest_edge": 400, "longest_edge": 6000}, merge_size=2
    )
    processor = Qwen2VLProcessor(images, words, Qwen2VLVideoProcessor())
    model.config.video_token_id = words.convert_tokens_to_ids("<video>")
    return model, processor, "model.visual.blocks", "model.language_model", "<start> <image> <end>"


def an_idefics3(make: Callable, image_class: str, processor_class: str) -> Parts:
    import transformers

    case = make()
    edge = case.processor.size["longest_edge"]
    images = getattr(transformers, image_class)(
        size={"longest_edge": edge}, max_image_size={"longest_edge": SIDE}
    )
    rows = [f"<row_{row + 1}_col_{column + 1}>" for row in range(3) for column in range(3)]
    words = tokenizer("<image>", "<fake_token_around_image>", "<global-img>", *rows)
    settings = {}
    if processor_class == "SmolVLMProcessor":
        pytest.importorskip("num2words")
        words = tokenizer(
            *rows,
            image_token="<image>",
            fake_image_token="<fake_token_around_image>",
            global_image_token="<global-img>",
            end_of_utterance_token="<end_of_utterance>",
            video_token="<video>",
        )
        settings["video_processor"] = transformers.SmolVLMVideoProcessor()
    processor = getattr(transformers, processor_class)(images, words, image_seq_len=4, **settings)
    case.model.model.text_model.resize_token_embeddings(len(words))
    return case.model, processor, case.layers, case.language, "<image>"


def an_internvl() -> Parts:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

    case = internvl()
    words = tokenizer(
        context_image_token="<image>",
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<video>",
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size=SQUARE, max_patches=6),
        words,
        InternVLVideoProcessor(),
        image_seq_length=4,
    )
    return case.model, processor, case.layers, case.language, "<image>"


def a_gemma3(scan: bool) -> Parts:
    from transformers import Gemma3ImageProcessor, Gemma3Processor

    case = gemma3()
    words = tokenizer(image_token="<image>", boi_token="<boi>", eoi_token="<eoi>")
    processor = Gemma3Processor(Gemma3ImageProcessor(size=SQUARE), words, image_seq_length=4)
    processor.images_kwargs = processor.images_kwargs | {
        "do_pan_and_scan": scan,
        "pan_and_scan_min_crop_size": 30,
    }
    layers = case.layers
    try:
        case.model.get_submodule(layers)
    except AttributeError:
        layers = layers.replace(".vision_model", "")
    return case.model, processor, layers, case.language, "<boi>"


def a_pixtral(merge: int) -> Parts:
    from transformers import PixtralImageProcessor, PixtralProcessor

    processor = PixtralProcessor(
        PixtralImageProcessor(size={"longest_edge": 60}, patch_size={"height": 5, "width": 5}),
        tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        patch_size=5,
        spatial_merge_size=merge,
    )
    blocks = "model.vision_tower.transformer.layers"
    return pixtral(merge), processor, blocks, "model.language_model", "[IMG]"


FAMILIES: dict[str, Callable[[], Parts]] = {
    "llava_next": a_llava_next,
    "llava_onevision": a_llava_onevision,
    "qwen2_vl": lambda: a_qwen(qwen2),
    "qwen2_5_vl": lambda: a_qwen(qwen2_5),
    "qwen3_vl": lambda: a_qwen(qwen3),
    "idefics3": lambda: an_idefics3(idefics3, "Idefics3ImageProcessor", "Idefics3Processor"),
    "smolvlm": lambda: an_idefics3(smolvlm, "SmolVLMImageProcessor", "SmolVLMProcessor"),
    "internvl": an_internvl,
    "gemma3": lambda: a_gemma3(False),
    "gemma3_scan": lambda: a_gemma3(True),
    "pixtral": lambda: a_pixtral(1),
    "mistral3": lambda: a_pixtral(2),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_planted_patch_is_found_from_the_prompt_on(name):
    torch.manual_seed(5)
    model, processor, layers, language_path, said = FAMILIES[name]()
    model.eval()
    images = [scene(170, 80), scene(90, 100)]

    def made(changed):
        examples = [
            Example("a", text=f"{said} what is this", image=changed[0]),
            Example("b", text=f"describe {said}", image=changed[1]),
        ]
        return collate(
            examples,
            processor,
            processor.tokenizer,
            kind="vision-language",
            config=model.config,
            padding_side="left",
        )

    batch = made(images)
    tokens = map_tokens(
        model,
        processor,
        batch.tensors,
        ["language", TowerFacts("vision", path=f"{layers}.*")],
        image_sizes=batch.image_sizes,
        image_examples=batch.image_examples,
    )
    language, vision = tokens["language"], tokens["vision"]
    assert (language.row[language.has_role("image")] >= 0).all()
    blocks = model.get_submodule(layers)
    silence(blocks)

    def enter(module):
        return lambda changed: entering(model, module, made(changed).tensors)

    assert_found(vision, images, enter(blocks[0]), count=7)
    assert_found(language, images, enter(model.get_submodule(language_path)), count=7)


@pytest.mark.parametrize("shortest", [41, 24])
def test_the_torchvision_back_end_crops_and_pads_as_the_map_says(shortest):
    from transformers import CLIPImageProcessor, ViTConfig, ViTModel

    model = ViTModel(
        ViTConfig(
            hidden_size=10,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=35,
            intermediate_size=11,
            patch_size=7,
        )
    ).eval()
    processor = CLIPImageProcessor(
        size={"shortest_edge": shortest}, crop_size={"height": 35, "width": 35}
    )
    images = [scene(131, 60)]

    def made(changed):
        return dict(processor(images=changed, return_tensors="pt"))

    tokens = map_tokens(model, processor, made(images), ["vision"], image_sizes=[(131, 60)])
    assert_found(tokens["vision"], images, lambda c: entering(model, model.layers[0], made(c)))


def test_a_timm_model_is_mapped_through_its_own_transform():
    pytest.importorskip("timm")
    from probes.loading import load

    subject = load("timm:vit_tiny_patch16_224#random")
    images = [scene(301, 260)]

    def made(changed):
        return {"x": subject.processor(images=changed)["pixel_values"]}

    tokens = map_tokens(
        subject.model,
        subject.processor,
        {"pixel_values": made(images)["x"]},
        [TowerFacts("vision", path="blocks.*")],
        image_sizes=[images[0].size],
    )["vision"]
    assert tokens.lengths.tolist() == [197]
    for size in [(301, 260), (97, 402), (224, 224)]:
        known = _from_transforms(subject.processor, *size, 224, 224)
        asked = _from_test_cards(subject.processor, *size, 224, 224)
        assert known is not None and asked is not None
        corners = torch.tensor([[0.0, 0.0, 224.0, 224.0], [32.0, 64.0, 96.0, 128.0]])
        assert torch.allclose(known.boxes(corners), asked.boxes(corners), atol=0.006 * max(size))
    block = subject.model.blocks[0]
    assert_found(tokens, images, lambda c: entering(subject.model, block, made(c)), count=3)
