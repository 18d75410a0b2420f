"""Small language-vision models with the image processors that go with them: LLaVA, Qwen, Pixtral.

The image token has the id 4 everywhere.
"""

from __future__ import annotations

import torch
from small_tokenizers import word_tokenizer
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaProcessor,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralVisionConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

SIDE, PATCH = 20, 5
TEXT = {"hidden_size": 20, "intermediate_size": 18, "num_hidden_layers": 1, "vocab_size": 40}
TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1}
SEEING = {"hidden_size": 12, "intermediate_size": 13, "num_hidden_layers": 1}
SEEING |= {"num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH}
PINPOINTS = [[20, 40], [40, 20], [40, 40], [20, 60], [60, 20]]


def llava(strategy="default"):
    torch.manual_seed(5)
    tokenizer = word_tokenizer("<image>", padding_side="left")
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**SEEING),
        text_config=LlamaConfig(**TEXT),
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy=strategy,
    )
    processor = LlavaProcessor(
        CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
    )
    return LlavaForConditionalGeneration(config).eval(), processor


def llava_next():
    torch.manual_seed(5)
    tokenizer = word_tokenizer("<image>", padding_side="left")
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**SEEING),
        text_config=LlamaConfig(**TEXT),
        image_token_index=4,
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
    )
    processor = LlavaNextProcessor(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return LlavaNextForConditionalGeneration(config).eval(), processor


def llava_onevision(limit="anyres_max_9"):
    torch.manual_seed(5)
    tokenizer = word_tokenizer("<image>", "<video>", padding_side="left")
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**SEEING, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=4,
        video_token_index=5,
        vision_feature_layer=-1,
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio=limit,
    )
    images = LlavaOnevisionImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS
    )
    return LlavaOnevisionForConditionalGeneration(config).eval(), images, tokenizer


QWEN_TEXT = {"hidden_size": 24, "intermediate_size": 18, "num_hidden_layers": 1, "vocab_size": 40}
QWEN_TEXT |= {"num_attention_heads": 2, "num_key_value_heads": 1}
QWEN_TEXT |= {
    "rope_parameters": {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}
}
QWEN_IDS = {"image_token_id": 4, "vision_start_token_id": 5, "vision_end_token_id": 6}
QWEN_IDS |= {"video_token_id": 7}


def qwen2():
    torch.manual_seed(5)
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 24, "num_heads": 2, "patch_size": 5}
    config = Qwen2VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_IDS)
    return Qwen2VLForConditionalGeneration(config).eval()


def qwen2_5():
    torch.manual_seed(5)
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 24, "num_heads": 2}
    vision |= {"patch_size": 5, "window_size": 30, "fullatt_block_indexes": [1]}
    vision |= {"intermediate_size": 13}
    config = Qwen2_5_VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_IDS)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def qwen3():
    torch.manual_seed(5)
    vision = {"depth": 1, "hidden_size": 16, "out_hidden_size": 24, "num_heads": 2}
    vision |= {"patch_size": 5, "intermediate_size": 13, "deepstack_visual_indexes": []}
    vision |= {"num_position_embeddings": 64}
    config = Qwen3VLConfig(text_config=QWEN_TEXT, vision_config=vision, **QWEN_IDS)
    return Qwen3VLForConditionalGeneration(config).eval()


def pixtral(merge):
    torch.manual_seed(5)
    vision = PixtralVisionConfig(
        hidden_size=16,
        intermediate_size=18,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=60,
        patch_size=5,
    )
    text = LlamaConfig(**{k: v for k, v in QWEN_TEXT.items() if k != "rope_parameters"})
    if merge > 1:
        config = Mistral3Config(
            vision_config=vision,
            text_config=text.to_dict(),
            image_token_index=4,
            spatial_merge_size=merge,
            vision_feature_layer=-1,
        )
        return Mistral3ForConditionalGeneration(config).eval()
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=4,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return LlavaForConditionalGeneration(config).eval()


def qwen_images():
    return Qwen2VLImageProcessorPil(patch_size=5, size={"shortest_edge": 400, "longest_edge": 6000})


def layers_of(model: torch.nn.Module) -> str:
    """Path of the blocks of the vision tower, which differs between versions of transformers."""
    inner = (
        "vision_model.encoder" if hasattr(model.model.vision_tower, "vision_model") else "encoder"
    )
    return f"model.vision_tower.{inner}.layers"
