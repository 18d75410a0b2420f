"""Vision models of timm and torchvision, cut down in depth and image size where they allow it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .family import Seen, numbers, redraw

ALIASES = {"pixel_values": "x"}
"""What the loader of timm models says of the name of their input."""


@dataclass(frozen=True)
class ImageFamily:
    """A family of image models.

    Attributes:
        model: name for ``timm.create_model``, or ``torchvision:`` and a name of its models.
        side: image height and width.
        settings: keyword arguments for the model.
    """

    name: str
    model: str
    side: int = 64
    settings: Mapping[str, Any] = field(default_factory=dict)
    towers: Mapping[str, Seen] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    aside: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    note: str = ""
    gain: float = 1.5

    @property
    def package(self) -> str:
        return "torchvision" if self.model.startswith("torchvision:") else "timm"

    def build(self, *, fused: bool | None = None) -> nn.Module:
        """The model in eval mode, weights drawn anew; ``fused=False`` for its own eager code."""
        if self.package == "torchvision":
            models = importlib.import_module("torchvision.models")
            make = getattr(models, self.model.partition(":")[2])
            model = make(weights=None, **self.settings)
        else:
            make = importlib.import_module("timm").create_model
            model = make(self.model, pretrained=False, num_classes=5, **self.settings)
        redraw(model, self.name, self.gain)
        for module in model.modules():
            if fused is not None and hasattr(module, "fused_attn"):
                module.fused_attn = fused
        return model.eval()

    def inputs(self) -> dict[str, Tensor]:
        return {"x": numbers(2, 3, self.side, self.side, seed=3)}


def _family(
    name: str, model: str, towers: Seen | dict[str, Seen] | None = None, *kinds: str, **rest: Any
) -> ImageFamily:
    seen = {"vision": towers} if isinstance(towers, Seen) else towers or {}
    return ImageFamily(name, model, towers=seen, kinds=kinds, **rest)


SMALL = {"img_size": 64, "depth": 2}
AT_64 = {"img_size": 64}
TWO_STAGES = {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}
IN_STAGES = Seen(4, (2, 2, 4, 4))
NO_QUERY_TIMES_KEY = "query times key"
CHANNELS = "between channels"

FAMILIES = [
    _family("vision_transformer", "vit_tiny_patch16_224", Seen(2, 3), settings=SMALL),
    _family(
        "vision_transformer_registers", "vit_wee_patch16_reg1_gap_256", Seen(2, 4), settings=SMALL
    ),
    _family("deit", "deit_tiny_distilled_patch16_224", Seen(2, 3), settings=SMALL),
    _family(
        "beit",
        "beit_base_patch16_224",
        Seen(2, 4),
        "position bias",
        settings=SMALL | {"embed_dim": 96, "num_heads": 4},
    ),
    _family(
        "eva", "eva02_tiny_patch14_224", Seen(2, 3), side=56, settings={"img_size": 56, "depth": 2}
    ),
    _family(
        "eva_rope_registers", "vit_betwixt_patch16_rope_reg4_gap_256", Seen(2, 10), settings=SMALL
    ),
    _family(
        "vision_transformer_relpos",
        "vit_relpos_small_patch16_224",
        Seen(2, 6),
        "position bias",
        settings=SMALL,
    ),
    _family(
        "vision_transformer_sam",
        "samvit_base_patch16_224",
        Seen(2, 4),
        "window",
        settings=SMALL
        | {"embed_dim": 96, "num_heads": 4, "global_attn_indexes": (1,), "window_size": 2},
    ),
    _family(
        "swin_transformer",
        "swin_tiny_patch4_window7_224",
        IN_STAGES,
        "window",
        side=56,
        settings=TWO_STAGES | {"img_size": 56, "window_size": 7},
    ),
    _family(
        "swin_transformer_v2",
        "swinv2_tiny_window8_256",
        IN_STAGES,
        "window",
        "cosine",
        settings=TWO_STAGES | AT_64,
    ),
    _family(
        "swin_transformer_v2_cr",
        "swinv2_cr_tiny_224",
        IN_STAGES,
        "window",
        settings=TWO_STAGES | {"img_size": 64, "window_size": (4, 4)},
    ),
    _family(
        "cait",
        "cait_xxs24_224",
        {"vision": Seen(2, 4), "vision_blocks_token_only": Seen(2, 4)},
        "talking heads",
        settings=SMALL,
    ),
    _family(
        "xcit",
        "xcit_nano_12_p8_224",
        Seen(2, 4),
        "channel attention",
        side=32,
        settings={"img_size": 32, "depth": 2},
        refused={"blocks.0.attn": CHANNELS, "blocks.1.attn": CHANNELS},
        aside=("blocks.0.attn", "blocks.1.attn"),
        note="its class attention is captured",
    ),
    _family(
        "convit",
        "convit_tiny",
        Seen(2, 4),
        "gated sum of two maps",
        settings=SMALL | {"local_up_to_layer": 1},
    ),
    _family(
        "levit",
        "levit_128s",
        {
            "vision": Seen(9, (4, 4, 6, 6, 6, 8, 8, 8, 8)),
            "vision_attn_downsample": Seen(2, (8, 16)),
        },
        "position bias",
        side=224,
    ),
    _family("pit", "pit_ti_224", Seen(12, (2,) * 2 + (4,) * 6 + (8,) * 4), settings=AT_64),
    _family(
        "tiny_vit",
        "tiny_vit_5m_224",
        Seen(3, (4, 5, 10)),
        "window",
        "position bias",
        settings={"depths": (1, 1, 1, 1)},
        gain=3.0,
    ),
    _family(
        "maxvit",
        "test_maxvit",
        {"vision": Seen(4, (1, 2, 3, 4)), "vision_attn_grid": Seen(4, (1, 2, 3, 4))},
        "window",
        settings=AT_64,
    ),
    _family("coatnet", "coatnet_pico_rw_224", Seen(7, (4, 8, 8, 8, 8, 8, 16)), settings=AT_64),
    _family("efficientvit_msra", "efficientvit_m0", Seen(6, 4), "one call per head", side=224),
    _family(
        "volo",
        "volo_d1_224",
        {"vision": Seen(14, 12), "vision_post_network": Seen(2, 12)},
        "outlook",
        settings=AT_64,
        refused={"network.0.0.attn": NO_QUERY_TIMES_KEY},
        aside=("network.0.",),
    ),
    _family(
        "mvitv2",
        "mvitv2_tiny",
        Seen(10, (1, 2, 2, 4, 4, 4, 4, 4, 8, 8)),
        "pooled queries",
        settings=AT_64,
    ),
    _family(
        "hiera",
        "hiera_tiny_224",
        Seen(12, (1, 2, 2, 4, 4, 4, 4, 4, 4, 4, 8, 8)),
        "window",
        "pooled queries",
        side=96,
        settings={"img_size": 96},
    ),
    _family(
        "twins",
        "twins_svt_small",
        Seen(8, (2, 2, 4, 4, 8, 8, 16, 16)),
        "window",
        settings=AT_64 | {"depths": (2, 2, 2, 2)},
    ),
    _family("pvt_v2", "pvt_v2_b0", Seen(8, (1, 1, 2, 2, 5, 5, 8, 8)), "reduced keys"),
    _family(
        "gcvit",
        "gcvit_xxtiny",
        Seen(12, (2, 2, 4, 4, 8, 8, 8, 8, 8, 8, 16, 16)),
        "window",
        side=224,
    ),
    _family("mobilevit", "mobilevit_xxs", Seen(9, 4), "patches in batch"),
    _family(
        "crossvit",
        "crossvit_tiny_240",
        {"vision": Seen(15, 3), "vision_fusion": Seen(6, 3)},
        side=240,
    ),
    _family(
        "tnt",
        "tnt_s_patch16_224",
        {"vision": Seen(2, 4), "vision_attn_out": Seen(2, 6)},
        "pixels in batch",
        settings=SMALL,
    ),
    _family("halonet", "halonet26t", Seen(3, (4, 4, 1)), "overlapping windows", side=256),
    _family(
        "davit",
        "davit_tiny",
        Seen(4, (3, 6, 12, 24)),
        "window",
        "channel attention",
        settings={"depths": (1, 1, 1, 1)},
        refused={"stages.0.blocks.0.1.attn": CHANNELS},
        aside=("blocks.0.1.attn",),
    ),
    _family("efficientformer", "efficientformer_l1", Seen(1, 8), "position bias", side=224),
    _family("caformer", "caformer_s18", Seen(12, (10,) * 9 + (16,) * 3)),
    _family(
        "naflexvit",
        "naflexvit_base_patch16_siglip",
        {"vision": Seen(2, 12), "resampler": Seen(1, 12)},
        "pooling head",
        settings=SMALL,
    ),
    _family(
        "torchvision_vit",
        "torchvision:vit_b_16",
        Seen(12, 12),
        "fast path",
        settings={"image_size": 64},
    ),
    _family(
        "torchvision_swin",
        "torchvision:swin_t",
        Seen(12, (3, 3, 6, 6) + (12,) * 6 + (24,) * 2),
        "window",
    ),
    _family(
        "torchvision_maxvit",
        "torchvision:maxvit_t",
        {
            "vision": Seen(11, (2, 2, 4, 4) + (8,) * 5 + (16,) * 2),
            "vision_attn_layer": Seen(11, (2, 2, 4, 4) + (8,) * 5 + (16,) * 2),
        },
        "window",
        side=224,
    ),
    _family(
        "coat",
        "coat_mini",
        None,
        "factorised",
        settings=AT_64,
        refused={"serial_blocks1.0.factoratt_crpe": NO_QUERY_TIMES_KEY},
    ),
    _family(
        "edgenext",
        "edgenext_xx_small",
        None,
        "channel attention",
        refused={"stages.1.blocks.1.xca": CHANNELS},
    ),
    _family("resnet", "resnet10t", None, "no attention", refused={"": "softmax"}),
]
