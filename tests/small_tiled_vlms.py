"""Small models that cut images into tiles, and a case that gives images to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from small_tokenizers import word_tokenizer
from torch import nn
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from probes.tokens import TowerFacts, map_tokens

IMAGE = 4
TEXT = {"hidden_size": 20, "intermediate_size": 18, "num_hidden_layers": 1, "vocab_size": 40}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0}
SEEING = {"hidden_size": 12, "intermediate_size": 13, "num_hidden_layers": 1}
SEEING |= {"num_attention_heads": 2, "image_size": 20, "patch_size": 5}


@dataclass
class Case:
    """A family: its model, its image processor, and how images are given to it."""

    model: nn.Module
    processor: Any
    layers: str
    language: str
    per_canvas: int
    nested: bool = False

    def tensors(self, images: list) -> dict[str, Any]:
        given = [[image] for image in images] if self.nested else images
        made = dict(self.processor(images=given, return_tensors="pt"))
        pixels = made["pixel_values"]
        counts = made.pop("num_patches", None)
        crops = made.pop("num_crops", None)
        made.pop("rows", None), made.pop("cols", None)
        if crops is not None:
            counts = torch.as_tensor(crops) + 1
        if counts is None and pixels.ndim == 5:
            counts = (pixels != 0).flatten(2).any(-1).sum(-1)
        if counts is None:
            counts = torch.ones(len(images), dtype=torch.long)
        tokenizer = word_tokenizer("<image>")
        texts = [f"{'<image> ' * (int(n) * self.per_canvas)}what is this" for n in counts]
        rows = [tokenizer(text)["input_ids"] for text in texts]
        longest = max(len(row) for row in rows)
        made["input_ids"] = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        made["attention_mask"] = (made["input_ids"] != 0).long()
        return made

    def map(self, images: list, made: dict[str, Any]):
        return map_tokens(
            self.model,
            self.processor,
            made,
            ["language", TowerFacts("vision", path=f"{self.layers}.*")],
            tokenizer=word_tokenizer("<image>"),
            image_sizes=[image.size for image in images],
        )


def idefics3(split: bool = True) -> Case:
    config = Idefics3Config(
        vision_config=SEEING,
        text_config=TEXT | {"model_type": "llama"},
        image_token_id=IMAGE,
        scale_factor=2,
    )
    processor = Idefics3ImageProcessorPil(
        size={"longest_edge": 60}, max_image_size={"longest_edge": 20}, do_image_splitting=split
    )
    model = Idefics3ForConditionalGeneration(config)
    return Case(model, processor, "model.vision_model.encoder.layers", "model.text_model", 4, True)


def smolvlm() -> Case:
    config = SmolVLMConfig(
        vision_config=SEEING,
        text_config=TEXT | {"model_type": "llama"},
        image_token_id=IMAGE,
        scale_factor=2,
    )
    processor = SmolVLMImageProcessorPil(
        size={"longest_edge": 40}, max_image_size={"longest_edge": 20}
    )
    model = SmolVLMForConditionalGeneration(config)
    return Case(model, processor, "model.vision_model.encoder.layers", "model.text_model", 4, True)


def internvl(crops: bool = True) -> Case:
    seeing = SEEING | {"image_size": [20, 20], "patch_size": [5, 5]}
    config = InternVLConfig(
        vision_config=seeing,
        text_config=TEXT | {"model_type": "qwen2"},
        image_token_id=IMAGE,
        downsample_ratio=0.5,
    )
    processor = GotOcr2ImageProcessorPil(
        size={"height": 20, "width": 20}, crop_to_patches=crops, max_patches=6
    )
    model = InternVLForConditionalGeneration(config)
    return Case(model, processor, "model.vision_tower.encoder.layer", "model.language_model", 4)


def gemma3(scan: bool = True) -> Case:
    config = Gemma3Config(
        vision_config=SEEING | {"vision_use_head": False},
        text_config=TEXT | {"head_dim": 8},
        image_token_index=IMAGE,
        mm_tokens_per_image=4,
    )
    processor = Gemma3ImageProcessorPil(
        size={"height": 20, "width": 20},
        do_pan_and_scan=scan,
        pan_and_scan_min_crop_size=30,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )
    model = Gemma3ForConditionalGeneration(config)
    # The projection starts as zeros, through which nothing is seen.
    nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
    layers = "model.vision_tower.vision_model.encoder.layers"
    return Case(model, processor, layers, "model.language_model", 4)


def paligemma() -> Case:
    config = PaliGemmaConfig(
        vision_config=SEEING | {"vision_use_head": False, "model_type": "siglip_vision_model"},
        text_config=TEXT | {"head_dim": 8, "model_type": "gemma"},
        image_token_index=IMAGE,
        projection_dim=20,
    )
    processor = SiglipImageProcessorPil(size={"height": 20, "width": 20})
    model = PaliGemmaForConditionalGeneration(config)
    layers = "model.vision_tower.vision_model.encoder.layers"
    return Case(model, processor, layers, "model.language_model", 16)


def aya(cls, config_class, text) -> Case:
    config = config_class(
        vision_config=SEEING | {"vision_use_head": False, "model_type": "siglip_vision_model"},
        text_config=TEXT | {"model_type": text},
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=16,
        vision_feature_layer=-1,
    )
    processor = GotOcr2ImageProcessorPil(
        size={"height": 20, "width": 20}, crop_to_patches=True, max_patches=6
    )
    layers = "model.vision_tower.vision_model.encoder.layers"
    return Case(cls(config), processor, layers, "model.language_model", 4)


def idefics2(split: bool) -> Case:
    config = Idefics2Config(
        vision_config=SEEING | {"image_size": 60},
        text_config=TEXT | {"model_type": "mistral"},
        perceiver_config={
            "resampler_n_latents": 3,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 6,
            "num_key_value_heads": 1,
            "hidden_size": 20,
        },
        image_token_id=IMAGE,
    )
    processor = Idefics2ImageProcessorPil(
        size={"shortest_edge": 30, "longest_edge": 50}, do_image_splitting=split
    )
    model = Idefics2ForConditionalGeneration(config)
    return Case(model, processor, "model.vision_model.encoder.layers", "model.text_model", 3, True)
