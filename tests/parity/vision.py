"""Vision models: plain, windowed, pooled and detecting ones; and CLIP-like pairs."""

from __future__ import annotations

from typing import Any

from .family import VOCABULARY, Family, Seen, config, numbers, padded_text, pixels

VIT: dict[str, Any] = {
    "hidden_size": 60,
    "intermediate_size": 68,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "image_size": 28,
    "patch_size": 7,
}
CLIP_VISION: dict[str, Any] = VIT
CLIP_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 52,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
PAIR = {"vision": Seen(2, 6), "language": Seen(2, 4)}


def _vision(
    name: str, cls: str, *kinds: str, base: Any = VIT, seen: Seen | None = None, **rest: Any
) -> Family:
    known = ("refused", "aside", "note", "gain", "inputs", "towers", "change", "attention")
    options = {k: rest.pop(k) for k in known if k in rest}
    head = rest.pop("head", None) or f"{cls}Model"
    return Family(
        name,
        rest.pop("group", "vision"),
        config(rest.pop("config_class", f"{cls}Config"), **(base | rest)),
        head,
        **({"inputs": pixels, "towers": {"vision": seen or Seen(2, 6)}} | options),
        kinds=kinds,
    )


def image_and_text() -> dict[str, Any]:
    return padded_text() | pixels()


def large() -> dict[str, Any]:
    return pixels(side=64)


STAGES: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
PYRAMID: dict[str, Any] = {
    "image_size": 64,
    "num_encoder_blocks": 2,
    "depths": [2, 2],
    "hidden_sizes": [24, 40],
    "num_attention_heads": [2, 4],
    "sr_ratios": [4, 2],
    "sequence_reduction_ratios": [4, 2],
    "patch_sizes": [4, 2],
    "strides": [4, 2],
    "mlp_ratios": [2, 2],
}
FOUR_STAGES: dict[str, Any] = {
    "num_encoder_blocks": 4,
    "depths": [1, 1, 1, 1],
    "hidden_sizes": [24, 24, 40, 40],
    "num_attention_heads": [2, 2, 4, 4],
    "sequence_reduction_ratios": [4, 2, 2, 1],
    "patch_sizes": [4, 2, 2, 2],
    "strides": [4, 2, 2, 2],
    "mlp_ratios": [2, 2, 2, 2],
}
IN_STAGES = Seen(4, (2, 2, 4, 4))
DETECTOR_BACKBONE = {
    "hidden_sizes": [8, 12],
    "depths": [1, 1],
    "embedding_size": 8,
    "layer_type": "basic",
    "out_features": ["stage2"],
}


def _resnet() -> Any:
    return config("ResNetConfig", **DETECTOR_BACKBONE)()


FAMILIES = [
    _vision("vit", "ViT", head="ViTForImageClassification"),
    _vision("deit", "DeiT", head="DeiTForImageClassificationWithTeacher"),
    _vision("dinov2", "Dinov2"),
    _vision("dinov2_with_registers", "Dinov2WithRegisters", num_register_tokens=3),
    _vision("dinov3_vit", "DINOv3ViT", num_register_tokens=3, hidden_size=48),
    _vision("beit", "Beit", "position bias", use_relative_position_bias=True),
    _vision("data2vec_vision", "Data2VecVision", "position bias", use_relative_position_bias=True),
    _vision(
        "vit_mae", "ViTMAE", mask_ratio=0.0, inputs=lambda: pixels() | {"noise": numbers(2, 16)}
    ),
    _vision("vit_msn", "ViTMSN"),
    _vision("ijepa", "IJepa"),
    _vision("yolos", "Yolos", image_size=[28, 28], num_detection_tokens=5),
    _vision(
        "vitdet",
        "VitDet",
        "window",
        "position bias",
        window_size=2,
        window_block_indices=[0],
        use_relative_position_embeddings=True,
    ),
    _vision(
        "hiera",
        "Hiera",
        "window",
        base={
            "image_size": [32, 32],
            "patch_size": [7, 7],
            "patch_stride": [4, 4],
            "patch_padding": [3, 3],
            "embed_dim": 24,
            "depths": [1, 1],
            "num_heads": [2, 3],
            "query_stride": [2, 2],
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, False],
            "embed_dim_multiplier": 2.0,
            "num_query_pool": 1,
        },
        inputs=lambda: pixels(side=32),
        seen=Seen(2, (2, 3)),
    ),
    _vision(
        "swin",
        "Swin",
        "window",
        "position bias",
        base=STAGES,
        seen=IN_STAGES,
        inputs=lambda: pixels(side=32),
    ),
    _vision(
        "swinv2",
        "Swinv2",
        "window",
        "cosine",
        base=STAGES,
        seen=IN_STAGES,
        inputs=lambda: pixels(side=32),
    ),
    _vision(
        "donut_swin",
        "DonutSwin",
        "window",
        "position bias",
        base=STAGES,
        seen=IN_STAGES,
        inputs=lambda: pixels(side=32),
    ),
    _vision(
        "pvt",
        "Pvt",
        "reduced keys",
        base=PYRAMID | FOUR_STAGES,
        seen=Seen(4, (2, 2, 4, 4)),
        inputs=large,
    ),
    _vision(
        "pvt_v2",
        "PvtV2",
        "reduced keys",
        base=PYRAMID | {"patch_sizes": [7, 3]},
        seen=IN_STAGES,
        inputs=large,
    ),
    _vision(
        "segformer",
        "Segformer",
        "reduced keys",
        base=PYRAMID | {"patch_sizes": [7, 3]},
        seen=IN_STAGES,
        inputs=large,
    ),
    _vision(
        "glpn",
        "GLPN",
        "reduced keys",
        base=PYRAMID | {"patch_sizes": [7, 3]},
        seen=IN_STAGES,
        inputs=large,
    ),
    _vision(
        "cvt",
        "Cvt",
        "reduced keys",
        base={"embed_dim": [12, 24, 48], "depth": [1, 2, 3], "num_heads": [1, 2, 4]},
        seen=Seen(6, (1, 2, 2, 4, 4, 4)),
        inputs=large,
    ),
    _vision(
        "levit",
        "Levit",
        "position bias",
        base={
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "num_attention_heads": [2, 4, 5],
            "depths": [1, 1, 1],
            "key_dim": [6, 6, 6],
            "attention_ratio": [2, 2, 2],
            "mlp_ratio": [2, 2, 2],
        },
        towers={"vision": Seen(3, (2, 4, 5)), "vision_stages": Seen(2, (4, 5))},
        inputs=large,
    ),
    _vision(
        "mobilevit",
        "MobileViT",
        "patches in batch",
        base={
            "image_size": 64,
            "patch_size": 2,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [4, 8, 12, 16, 20, 24, 28],
            "num_attention_heads": 4,
        },
        gain=4.0,
        seen=Seen(9, 4),
        inputs=large,
    ),
    _vision(
        "timesformer",
        "Timesformer",
        "space and time",
        num_frames=3,
        inputs=lambda: {"pixel_values": numbers(2, 3, 3, 28, 28)},
        towers={"vision": Seen(2, 6), "vision_encoder": Seen(2, 6)},
    ),
    _vision(
        "videomae",
        "VideoMAE",
        num_frames=4,
        tubelet_size=2,
        inputs=lambda: {"pixel_values": numbers(2, 4, 3, 28, 28)},
    ),
    _vision(
        "vivit",
        "Vivit",
        num_frames=4,
        tubelet_size=[2, 7, 7],
        inputs=lambda: {"pixel_values": numbers(2, 4, 3, 28, 28)},
    ),
    _vision(
        "dpt",
        "DPT",
        base=VIT | {"num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        seen=Seen(4, 6),
    ),
    _vision(
        "pixtral",
        "Pixtral",
        head="PixtralVisionModel",
        config_class="PixtralVisionConfig",
        inputs=lambda: pixels(batch=1),
    ),
    _vision(
        "detr",
        "Detr",
        gain=1.0,
        base={
            "d_model": 60,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 6,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 68,
            "decoder_ffn_dim": 52,
            "num_queries": 5,
            "backbone_config": _resnet,
            "use_timm_backbone": False,
        },
        inputs=large,
        towers={"encoder": Seen(2, 6), "decoder": Seen(2, 4), "cross": Seen(2, 4)},
    ),
    _vision(
        "sam_vision",
        "SamVision",
        "window",
        "position bias",
        base={
            "hidden_size": 60,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "image_size": 28,
            "patch_size": 7,
            "window_size": 2,
            "global_attn_indexes": [1],
            "output_channels": 16,
        },
        head="SamVisionModel",
    ),
    _vision(
        "siglip_vision",
        "SiglipVision",
        "pooling head",
        towers={"vision": Seen(2, 6), "resampler": Seen(1, 6)},
    ),
    _vision(
        "clip",
        "CLIP",
        base={},
        group="pair",
        text_config=lambda: CLIP_TEXT,
        vision_config=lambda: CLIP_VISION,
        projection_dim=20,
        inputs=image_and_text,
        towers=PAIR,
    ),
    _vision(
        "siglip",
        "Siglip",
        "pooling head",
        base={},
        group="pair",
        text_config=lambda: CLIP_TEXT | {"hidden_size": 60},
        vision_config=lambda: CLIP_VISION,
        inputs=image_and_text,
        towers=PAIR | {"resampler": Seen(1, 6)},
    ),
    _vision(
        "chinese_clip",
        "ChineseCLIP",
        base={},
        group="pair",
        text_config=lambda: CLIP_TEXT,
        vision_config=lambda: CLIP_VISION,
        projection_dim=20,
        inputs=image_and_text,
        towers=PAIR,
    ),
    _vision(
        "altclip",
        "AltCLIP",
        base={},
        group="pair",
        text_config=lambda: CLIP_TEXT | {"project_dim": 20},
        vision_config=lambda: CLIP_VISION,
        projection_dim=20,
        inputs=image_and_text,
        towers=PAIR,
    ),
    _vision(
        "blip",
        "Blip",
        base={},
        group="pair",
        text_config=lambda: CLIP_TEXT,
        vision_config=lambda: CLIP_VISION,
        projection_dim=20,
        inputs=image_and_text,
        towers=PAIR,
    ),
    _vision(
        "owlvit",
        "OwlViT",
        base={},
        group="pair",
        text_config=lambda: CLIP_TEXT,
        vision_config=lambda: CLIP_VISION,
        projection_dim=20,
        inputs=image_and_text,
        towers=PAIR,
    ),
    _vision(
        "aimv2",
        "Aimv2",
        base={},
        group="pair",
        attention="eager",
        text_config=lambda: CLIP_TEXT,
        vision_config=lambda: CLIP_VISION,
        projection_dim=20,
        inputs=image_and_text,
        towers=PAIR | {"resampler": Seen(1, 6)},
        note="sdpa drops the causal mask of its text tower in transformers 5.23; built as eager",
    ),
    _vision(
        "resnet",
        "ResNet",
        "no attention",
        base=DETECTOR_BACKBONE,
        inputs=large,
        towers={},
        refused={"": "softmax"},
    ),
    _vision(
        "convnext",
        "ConvNext",
        "no attention",
        base={"hidden_sizes": [8, 12], "depths": [1, 1], "num_stages": 2},
        inputs=large,
        towers={},
        refused={"": "softmax"},
    ),
    _vision(
        "poolformer",
        "PoolFormer",
        "no attention",
        base={"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]},
        inputs=large,
        towers={},
        refused={"": "softmax"},
    ),
]
