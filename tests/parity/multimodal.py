"""Models that read images and text together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .family import VOCABULARY, Family, Seen, config, ids, numbers, padded_text, pixels, text

IMAGE_TOKEN = 4
VISION: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 7,
}
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 60,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"vision": Seen(2, 4), "language": Seen(2, 6, 2)}
Tensors = dict[str, Any]


def _lvlm(name: str, cls: str, *kinds: str, inputs: Callable[[], Tensors], **rest: Any) -> Family:
    known = ("refused", "aside", "note", "gain", "towers", "change", "attention")
    options = {k: rest.pop(k) for k in known if k in rest}
    head = rest.pop("head", None) or f"{cls}ForConditionalGeneration"
    made = config(rest.pop("config_class", f"{cls}Config"), **rest)
    return Family(
        name,
        "multimodal",
        made,
        head,
        **({"inputs": inputs, "towers": GROUPED} | options),
        kinds=kinds,
    )


def sequence(image_tokens: int, *, batch: int = 2, before: int = 2, after: int = 6) -> Tensors:
    """Text with a run of image tokens in it."""
    tokens = ids(batch, before + image_tokens + after)
    tokens[:, before : before + image_tokens] = IMAGE_TOKEN
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def llava_inputs() -> Tensors:
    return sequence(16) | pixels()


def llava_next_inputs() -> Tensors:
    # A 28 x 28 image: thumbnail 16, one tile of 4 x 4 with 4 newline tokens.
    tiles = numbers(2, 2, 3, 28, 28, seed=3)
    return sequence(16 + 20) | {
        "pixel_values": tiles,
        "image_sizes": torch.tensor([[28, 28], [28, 28]]),
    }


def qwen_inputs(patch: int = 7, rows: int = 4, columns: int = 6) -> Tensors:
    patches = rows * columns
    tensors = sequence(patches // 4)
    tensors["pixel_values"] = numbers(2 * patches, 3 * 2 * patch * patch, seed=3)
    tensors["image_grid_thw"] = torch.tensor([[1, rows, columns]] * 2)
    tensors["mm_token_type_ids"] = (tensors["input_ids"] == IMAGE_TOKEN).long()
    return tensors


def idefics_inputs() -> Tensors:
    return sequence(4) | {"pixel_values": numbers(2, 1, 3, 28, 28, seed=3)}


def typed(tensors: Tensors) -> Tensors:
    return tensors | {"token_type_ids": (tensors["input_ids"] == IMAGE_TOKEN).long()}


def mllama_inputs() -> Tensors:
    tensors = text()
    tensors["input_ids"][:, 0] = IMAGE_TOKEN
    return tensors | {
        "pixel_values": numbers(2, 1, 2, 3, 28, 28, seed=3),
        "aspect_ratio_ids": torch.tensor([[2], [2]]),
        "aspect_ratio_mask": torch.ones(2, 1, 2, dtype=torch.long),
        "cross_attention_mask": torch.ones(2, 11, 1, 2, dtype=torch.long),
    }


def lxmert_inputs() -> Tensors:
    return padded_text() | {
        "visual_feats": numbers(2, 5, 20),
        "visual_pos": numbers(2, 5, 4, seed=9).sigmoid(),
    }


def vilt_inputs() -> Tensors:
    return padded_text() | pixels() | {"pixel_mask": torch.ones(2, 28, 28, dtype=torch.long)}


QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "num_heads": 4,
    "patch_size": 7,
    "in_channels": 3,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
QWEN_TOKENS: dict[str, Any] = {
    "image_token_id": IMAGE_TOKEN,
    "video_token_id": 3,
    "vision_start_token_id": 97,
    "vision_end_token_id": 98,
}
QWEN_TEXT: dict[str, Any] = TEXT | {
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 2, 2]}
}
WITH_TYPE = lambda kind, base, **more: lambda: base | {"model_type": kind} | more  # noqa: E731
CLIP = WITH_TYPE("clip_vision_model", VISION)
SIGLIP = WITH_TYPE("siglip_vision_model", VISION, vision_use_head=False)
LLAMA = WITH_TYPE("llama", TEXT)

FAMILIES = [
    _lvlm(
        "llava",
        "Llava",
        "gqa",
        inputs=llava_inputs,
        vision_config=CLIP,
        text_config=LLAMA,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
    ),
    _lvlm(
        "vipllava",
        "VipLlava",
        "gqa",
        inputs=llava_inputs,
        vision_config=CLIP,
        text_config=LLAMA,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layers=[-1, -2],
    ),
    _lvlm(
        "llava_next",
        "LlavaNext",
        "gqa",
        "tiles",
        inputs=llava_next_inputs,
        vision_config=CLIP,
        text_config=LLAMA,
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[28, 28]],
    ),
    _lvlm(
        "llava_onevision",
        "LlavaOnevision",
        "gqa",
        "tiles",
        inputs=llava_next_inputs,
        vision_config=SIGLIP,
        text_config=WITH_TYPE("qwen2", TEXT),
        image_token_index=IMAGE_TOKEN,
        vision_feature_layer=-1,
        image_grid_pinpoints=[[28, 28]],
        vision_feature_select_strategy="full",
    ),
    _lvlm(
        "qwen2_vl",
        "Qwen2VL",
        "gqa",
        "packed images",
        inputs=qwen_inputs,
        vision_config=lambda: QWEN_VISION | {"embed_dim": 48, "hidden_size": 60},
        text_config=lambda: QWEN_TEXT,
        **QWEN_TOKENS,
    ),
    _lvlm(
        "qwen2_5_vl",
        "Qwen2_5_VL",
        "gqa",
        "window",
        "packed images",
        inputs=qwen_inputs,
        vision_config=lambda: (
            QWEN_VISION
            | {
                "hidden_size": 48,
                "intermediate_size": 52,
                "out_hidden_size": 60,
                "window_size": 28,
                "fullatt_block_indexes": [1],
            }
        ),
        text_config=lambda: QWEN_TEXT,
        **QWEN_TOKENS,
    ),
    _lvlm(
        "qwen3_vl",
        "Qwen3VL",
        "gqa",
        "packed images",
        inputs=qwen_inputs,
        vision_config=lambda: (
            QWEN_VISION
            | {
                "hidden_size": 48,
                "intermediate_size": 52,
                "out_hidden_size": 60,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0],
            }
        ),
        text_config=lambda: QWEN_TEXT | {"head_dim": 10},
        **QWEN_TOKENS,
    ),
    _lvlm(
        "idefics3",
        "Idefics3",
        "gqa",
        inputs=idefics_inputs,
        vision_config=lambda: VISION,
        text_config=LLAMA,
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    ),
    _lvlm(
        "smolvlm",
        "SmolVLM",
        "gqa",
        inputs=idefics_inputs,
        vision_config=lambda: VISION,
        text_config=LLAMA,
        image_token_id=IMAGE_TOKEN,
        scale_factor=2,
    ),
    _lvlm(
        "idefics2",
        "Idefics2",
        "gqa",
        "resampler",
        inputs=lambda: sequence(3) | {"pixel_values": numbers(2, 1, 3, 28, 28, seed=3)},
        vision_config=lambda: VISION,
        perceiver_config=lambda: {
            "hidden_size": 60,
            "resampler_n_latents": 3,
            "resampler_depth": 2,
            "resampler_n_heads": 5,
            "resampler_head_dim": 12,
            "num_key_value_heads": 5,
        },
        text_config=WITH_TYPE("mistral", TEXT),
        image_token_id=IMAGE_TOKEN,
        towers=GROUPED | {"resampler": Seen(2, 5)},
    ),
    _lvlm(
        "paligemma",
        "PaliGemma",
        "gqa",
        inputs=lambda: typed(llava_inputs()),
        vision_config=SIGLIP,
        text_config=WITH_TYPE("gemma", TEXT, head_dim=10),
        image_token_index=IMAGE_TOKEN,
        projection_dim=60,
        vocab_size=VOCABULARY,
    ),
    _lvlm(
        "gemma3",
        "Gemma3",
        "gqa",
        "window",
        inputs=lambda: typed(sequence(4) | pixels()),
        vision_config=SIGLIP,
        text_config=WITH_TYPE(
            "gemma3_text",
            TEXT,
            head_dim=10,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
        ),
        image_token_index=IMAGE_TOKEN,
        mm_tokens_per_image=4,
    ),
    _lvlm(
        "internvl",
        "InternVL",
        "gqa",
        inputs=lambda: sequence(4) | pixels(),
        vision_config=WITH_TYPE("internvl_vision", VISION, image_size=[28, 28], patch_size=[7, 7]),
        text_config=WITH_TYPE("qwen2", TEXT),
        image_token_id=IMAGE_TOKEN,
        image_seq_length=4,
        downsample_ratio=0.5,
    ),
    _lvlm(
        "aya_vision",
        "AyaVision",
        "gqa",
        inputs=lambda: sequence(4) | pixels(),
        vision_config=SIGLIP,
        text_config=WITH_TYPE(
            "cohere2", TEXT, sliding_window=5, layer_types=["sliding_attention", "full_attention"]
        ),
        image_token_index=IMAGE_TOKEN,
        downsample_factor=2,
        alignment_intermediate_size=36,
    ),
    _lvlm(
        "mllama",
        "Mllama",
        "gqa",
        "cross",
        inputs=mllama_inputs,
        vision_config=lambda: {
            "hidden_size": 48,
            "intermediate_size": 52,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 28,
            "patch_size": 7,
            "max_num_tiles": 2,
            "vision_output_dim": 96,
            "intermediate_layers_indices": [0],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
        text_config=lambda: TEXT | {"cross_attention_layers": [1]},
        image_token_index=IMAGE_TOKEN,
        towers={
            "vision": Seen(2, 4),
            "vision_global_transformer": Seen(1, 4),
            "language": Seen(1, 6, 2),
            "cross": Seen(1, 6, 2),
        },
    ),
    _lvlm(
        "blip_2",
        "Blip2",
        "resampler",
        inputs=lambda: sequence(5) | pixels(),
        vision_config=lambda: VISION,
        qformer_config=lambda: {
            "hidden_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 5,
            "intermediate_size": 44,
            "encoder_hidden_size": 48,
            "cross_attention_frequency": 2,
        },
        text_config=WITH_TYPE(
            "opt",
            {k: v for k, v in TEXT.items() if k != "num_key_value_heads"},
            ffn_dim=68,
            word_embed_proj_dim=60,
        ),
        num_query_tokens=5,
        image_token_index=IMAGE_TOKEN,
        towers={
            "vision": Seen(2, 4),
            "resampler": Seen(2, 5),
            "cross": Seen(1, 5),
            "language": Seen(2, 6),
        },
    ),
    _lvlm(
        "vilt",
        "Vilt",
        inputs=vilt_inputs,
        head="ViltModel",
        **(VISION | {"vocab_size": VOCABULARY, "max_position_embeddings": 32}),
        towers={"language": Seen(2, 4)},
    ),
    _lvlm(
        "lxmert",
        "Lxmert",
        "cross",
        inputs=lxmert_inputs,
        head="LxmertModel",
        vocab_size=VOCABULARY,
        hidden_size=60,
        num_attention_heads=6,
        intermediate_size=68,
        l_layers=2,
        x_layers=1,
        r_layers=1,
        visual_feat_dim=20,
        max_position_embeddings=32,
        towers={
            "language": Seen(2, 6),
            "language_r_layers": Seen(1, 6),
            "language_lang_self_att": Seen(1, 6),
            "vision": Seen(1, 6),
            "cross": Seen(2, 6),
        },
    ),
    _lvlm(
        "visual_bert",
        "VisualBert",
        inputs=lambda: padded_text() | {"visual_embeds": numbers(2, 5, 20)},
        head="VisualBertModel",
        vocab_size=VOCABULARY,
        hidden_size=60,
        num_attention_heads=6,
        intermediate_size=68,
        num_hidden_layers=2,
        visual_embedding_dim=20,
        max_position_embeddings=32,
        towers={"language": Seen(2, 6)},
    ),
    _lvlm(
        "bridgetower",
        "BridgeTower",
        "cross",
        inputs=lambda: padded_text() | pixels(),
        head="BridgeTowerModel",
        hidden_size=60,
        num_attention_heads=6,
        num_hidden_layers=1,
        text_config=lambda: {
            "vocab_size": VOCABULARY,
            "hidden_size": 60,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "intermediate_size": 68,
            "max_position_embeddings": 32,
        },
        vision_config=lambda: {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "patch_size": 7,
            "image_size": 28,
        },
        towers={
            "language": Seen(2, 6),
            "vision": Seen(2, 1),
            "language_cross_modal_text_layers": Seen(1, 6),
            "vision_cross_modal_image_layers": Seen(1, 6),
            "cross": Seen(1, 6),
            "cross_crossattention": Seen(1, 6),
        },
    ),
    _lvlm(
        "git",
        "Git",
        inputs=lambda: text() | pixels(),
        head="GitForCausalLM",
        vision_config=lambda: VISION,
        vocab_size=VOCABULARY,
        hidden_size=60,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=68,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        towers={"vision": Seen(2, 4), "language": Seen(2, 6)},
    ),
    _lvlm(
        "layoutlmv3",
        "LayoutLMv3",
        "position bias",
        inputs=lambda: (
            padded_text()
            | pixels()
            | {"bbox": ids(2, 11 * 4, high=60).view(2, 11, 4).sort(-1).values}
        ),
        head="LayoutLMv3Model",
        vocab_size=VOCABULARY,
        hidden_size=60,
        num_hidden_layers=2,
        num_attention_heads=6,
        intermediate_size=68,
        input_size=28,
        patch_size=7,
        coordinate_size=10,
        shape_size=10,
        max_2d_position_embeddings=64,
        pad_token_id=0,
        max_position_embeddings=32,
        towers={"language": Seen(2, 6)},
    ),
    _lvlm(
        "trocr",
        "TrOCR",
        "decoder alone",
        inputs=lambda: text() | {"encoder_hidden_states": numbers(2, 5, 60)},
        head="TrOCRForCausalLM",
        vocab_size=VOCABULARY,
        d_model=60,
        decoder_layers=2,
        decoder_attention_heads=6,
        decoder_ffn_dim=68,
        max_position_embeddings=64,
        towers={"language": Seen(2, 6), "cross": Seen(2, 6)},
    ),
]
