"""Vision transformers: what stands before the patches, and where the patches lie."""

from __future__ import annotations

import pytest
import torch
from planting import assert_found, assert_tiles, entering, scene
from torch import nn
from transformers import (
    BeitConfig,
    BeitModel,
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
    YolosConfig,
    YolosModel,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.convnext.image_processing_pil_convnext import ConvNextImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from probes.tokens import ROLES, TowerFacts, map_tokens
from probes.tokens.placement import _from_settings, _from_test_cards, placement_of

SMALL = {"hidden_size": 10, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 35}
SMALL |= {"intermediate_size": 11, "patch_size": 7}


def vit(**extra):
    return ViTModel(ViTConfig(**SMALL, **extra)).eval()


MODELS = {
    "vit": (vit, ["cls"]),
    "deit": (lambda: DeiTModel(DeiTConfig(**SMALL)).eval(), ["cls", "cls"]),
    "registers": (
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3)
        ).eval(),
        ["cls", *["register"] * 3],
    ),
    "dinov3": (
        lambda: DINOv3ViTModel(
            DINOv3ViTConfig(**(SMALL | {"hidden_size": 16}), num_register_tokens=2)
        ).eval(),
        ["cls", *["register"] * 2],
    ),
    "beit": (lambda: BeitModel(BeitConfig(**SMALL)).eval(), ["cls"]),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**SMALL)).eval(), []),
}


@pytest.mark.parametrize("name", MODELS)
def test_prefix_and_patches_equal_what_the_model_runs(name):
    make, prefix = MODELS[name]
    model = make()
    processor = ViTImageProcessorPil(size={"height": 35, "width": 35})
    images = [scene(70, 105), scene(53, 41)]
    tensors = dict(processor(images=images, return_tensors="pt"))
    sizes = [image.size for image in images]
    tokens = map_tokens(model, processor, tensors, ["vision"], image_sizes=sizes)["vision"]
    with torch.no_grad():
        length = model(**tensors).last_hidden_state.shape[1]
    assert tokens.lengths.tolist() == [length, length] == [len(prefix) + 25] * 2
    assert [ROLES[role] for role in tokens.role[: len(prefix)]] == prefix
    assert tokens.has_role("image").sum() == 50
    assert tokens.example.tolist() == [0] * length + [1] * length
    # The patch in row 1, column 3 of the first image, 70 x 105 pixels stretched to 35 x 35.
    spot = len(prefix) + 5 + 3
    assert (tokens.row[spot], tokens.column[spot]) == (1, 3)
    assert tokens.box[spot].tolist() == pytest.approx([42, 21, 56, 42])


def test_detection_tokens_stand_after_the_patches():
    config = YolosConfig(**(SMALL | {"image_size": [35, 35]}), num_detection_tokens=4)
    processor = ViTImageProcessorPil(size={"height": 35, "width": 35})
    tensors = dict(processor(images=[scene(35, 35)], return_tensors="pt"))
    model = YolosModel(config).eval()
    tokens = map_tokens(model, processor, tensors, ["vision"], image_sizes=[(35, 35)])["vision"]
    assert len(tokens) == model(**tensors).last_hidden_state.shape[1] == 30
    assert [ROLES[role] for role in tokens.role[-4:]] == ["special"] * 4


class TimmLike(nn.Module):
    """No configuration: what a timm model looks like."""

    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Sequential(nn.Conv2d(3, 8, 7, 7))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.reg_token = nn.Parameter(torch.zeros(1, 4, 8))
        self.head = nn.Module()
        self.head.cls_token = nn.Parameter(torch.zeros(1, 2, 8))
        self.blocks = nn.ModuleList([nn.Linear(8, 8)])


def test_a_model_without_configuration_is_read_off_its_embedding():
    pixels = {"pixel_values": torch.zeros(2, 3, 35, 21)}
    tokens = map_tokens(TimmLike(), None, pixels, [TowerFacts("vision", path="blocks.*")])
    words = [ROLES[role] for role in tokens["vision"].role[:20].tolist()]
    assert words == ["cls"] + ["register"] * 4 + ["image"] * 15
    assert tokens["vision"].lengths.tolist() == [20, 20]


def test_a_pooling_head_has_its_own_queries():
    model = SiglipVisionModel(SiglipVisionConfig(**SMALL)).eval()
    path = next(name for name, _ in model.named_modules() if name.endswith("head.attention"))
    pixels = {"pixel_values": torch.zeros(2, 3, 35, 35)}
    tokens = map_tokens(model, None, pixels, ["vision", TowerFacts("resampler", path=path)])
    assert tokens["vision"].lengths.tolist() == [25, 25]
    assert tokens["resampler"].lengths.tolist() == [1, 1]
    assert tokens["resampler"].example.tolist() == [0, 1]


def test_towers_that_merge_patches_between_stages_have_no_map():
    swin = SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, num_heads=[1, 2], depths=[1, 1])
    )
    pixels = {"pixel_values": torch.zeros(2, 3, 32, 32)}
    assert "vision" not in map_tokens(swin, None, pixels, ["vision"])
    staged = TowerFacts("vision", path="blocks.*", alike=False)
    assert "vision" not in map_tokens(TimmLike(), None, pixels, [staged])


PROCESSORS = {
    "stretch": ViTImageProcessorPil(size={"height": 35, "width": 35}),
    "crop": CLIPImageProcessorPil(
        size={"shortest_edge": 41}, crop_size={"height": 35, "width": 35}
    ),
    "pad_by_crop": CLIPImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 35, "width": 35}
    ),
    "square": LlavaImageProcessorPil(
        size={"shortest_edge": 35}, crop_size={"height": 35, "width": 35}, do_pad=True
    ),
    "crop_share": ConvNextImageProcessorPil(size={"shortest_edge": 35}, crop_pct=0.8),
}


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(70, 105), (131, 60), (59, 59)])
def test_a_planted_patch_is_found_through_the_processor(name, size):
    model, processor = vit(), PROCESSORS[name]
    images = [scene(*size)]

    def enter(changed):
        tensors = dict(processor(images=changed, return_tensors="pt"))
        return entering(model, model.layers[0], tensors)

    tensors = dict(processor(images=images, return_tensors="pt"))
    tokens = map_tokens(model, processor, tensors, ["vision"], image_sizes=[size])["vision"]
    assert_found(tokens, images, enter)
    cropped = {"crop": 35 / 41, "crop_share": 0.8}.get(name, 1.0)
    short = min(size) / max(size)
    share = cropped * cropped * short if name in ("crop", "crop_share") else 1.0
    share = share if name != "pad_by_crop" else min(1.0, 35 / 24 * short)
    assert_tiles(tokens, size, covered=0.9 * share)


@pytest.mark.parametrize("size", [(640, 427), (123, 457)])
def test_test_cards_agree_with_the_settings(size):
    crop = {"height": 217, "width": 217}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 223}, crop_size=crop)
    known = _from_settings(processor, *size, 217, 217)
    asked = _from_test_cards(processor, *size, 217, 217)
    assert known is not None and asked is not None
    corners = torch.tensor([[0.0, 0.0, 217.0, 217.0], [31.0, 62.0, 93.0, 124.0]])
    assert torch.allclose(known.boxes(corners), asked.boxes(corners), atol=0.004 * max(size))


def test_without_a_processor_only_an_image_of_the_canvas_size_is_placed():
    canvas = torch.zeros(1, 3, 35, 21)
    assert placement_of(None, 21, 35, canvas) is not None
    assert placement_of(None, 42, 70, canvas) is None


def test_the_models_own_pixels_are_their_own_image():
    tokens = map_tokens(vit(), None, {"pixel_values": torch.zeros(2, 3, 35, 35)}, ["vision"])
    assert tokens["vision"].box[1].tolist() == [0, 0, 7, 7]


def test_a_map_that_contradicts_the_observed_lengths_is_thrown_away():
    pixels = {"pixel_values": torch.zeros(2, 3, 35, 35)}
    facts = TowerFacts("vision", lengths=(13, 13))
    tokens = map_tokens(vit(), None, pixels, [facts])["vision"]
    assert tokens.lengths.tolist() == [13, 13]
    assert (tokens.row == -1).all() and tokens.has_role("image").all()
    assert tokens.example.tolist() == [0] * 13 + [1] * 13


def test_the_oracle_rejects_a_map_that_is_one_patch_off():
    from dataclasses import replace

    model, processor, size = vit(), PROCESSORS["stretch"], (70, 105)

    def enter(changed):
        tensors = dict(processor(images=changed, return_tensors="pt"))
        return entering(model, model.layers[0], tensors)

    tensors = dict(processor(images=[scene(*size)], return_tensors="pt"))
    tokens = map_tokens(model, processor, tensors, ["vision"], image_sizes=[size])["vision"]
    for wrong in (tokens.box.roll(1, 0), tokens.box[:, [1, 0, 3, 2]]):
        with pytest.raises(AssertionError):
            assert_found(replace(tokens, box=wrong), [scene(*size)], enter)
