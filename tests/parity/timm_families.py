"""Vision models of timm and torchvision, cut down in depth and image size where they allow it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from .family import Seen, numbers, redraw


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
    group: str = "timm"

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


SMALL = {"img_size": 64, "depth": 2}
TWO_STAGES = {"depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4)}

FAMILIES = [
    ImageFamily("vision_transformer", "vit_tiny_patch16_224", settings=SMALL),
    ImageFamily("registers", "vit_wee_patch16_reg1_gap_256", settings=SMALL),
    ImageFamily("deit", "deit_tiny_distilled_patch16_224", settings=SMALL),
    ImageFamily(
        "beit", "beit_base_patch16_224", settings=SMALL | {"embed_dim": 96, "num_heads": 4}
    ),
    ImageFamily("eva", "eva02_tiny_patch14_224", 56, {"img_size": 56, "depth": 2}),
    ImageFamily("rope", "vit_betwixt_patch16_rope_reg4_gap_256", settings=SMALL),
    ImageFamily("relpos", "vit_relpos_small_patch16_224", settings=SMALL),
    ImageFamily(
        "sam",
        "samvit_base_patch16_224",
        settings=SMALL
        | {"embed_dim": 96, "num_heads": 4, "global_attn_indexes": (1,), "window_size": 2},
    ),
    ImageFamily(
        "swin", "swin_tiny_patch4_window7_224", 56, TWO_STAGES | {"img_size": 56, "window_size": 7}
    ),
    ImageFamily("swinv2", "swinv2_tiny_window8_256", settings=TWO_STAGES | {"img_size": 64}),
    ImageFamily(
        "swinv2_cr",
        "swinv2_cr_tiny_224",
        settings=TWO_STAGES | {"img_size": 64, "window_size": (4, 4)},
    ),
    ImageFamily("cait", "cait_xxs24_224", settings=SMALL),
    ImageFamily("xcit", "xcit_nano_12_p8_224", 32, {"img_size": 32, "depth": 2}),
    ImageFamily("convit", "convit_tiny", settings=SMALL | {"local_up_to_layer": 1}),
    ImageFamily("levit", "levit_128s", 224),
    ImageFamily("pit", "pit_ti_224", settings={"img_size": 64}),
    ImageFamily(
        "tiny_vit", "tiny_vit_5m_224", settings={"img_size": 64, "depths": (1, 1, 1, 1)}, gain=3.0
    ),
    ImageFamily("maxvit", "test_maxvit", settings={"img_size": 64}),
    ImageFamily("coatnet", "coatnet_pico_rw_224", settings={"img_size": 64}),
    ImageFamily("efficientvit_msra", "efficientvit_m0", 224),
    ImageFamily("volo", "volo_d1_224", settings={"img_size": 64}),
    ImageFamily("mvitv2", "mvitv2_tiny", settings={"img_size": 64}),
    ImageFamily("hiera", "hiera_tiny_224", settings={"img_size": 64}),
    ImageFamily("twins", "twins_svt_small", settings={"img_size": 64, "depths": (2, 2, 2, 2)}),
    ImageFamily("pvt_v2", "pvt_v2_b0"),
    ImageFamily("gcvit", "gcvit_xxtiny", 224),
    ImageFamily("mobilevit", "mobilevit_xxs"),
    ImageFamily("crossvit", "crossvit_tiny_240", 240),
    ImageFamily("tnt", "tnt_s_patch16_224", settings=SMALL),
    ImageFamily("halonet", "halonet26t", 256),
    ImageFamily("coat", "coat_mini", settings={"img_size": 64}),
    ImageFamily("davit", "davit_tiny", settings={"depths": (1, 1, 1, 1)}),
    ImageFamily("edgenext", "edgenext_xx_small"),
    ImageFamily("efficientformer", "efficientformer_l1", 224),
    ImageFamily("caformer", "caformer_s18"),
    ImageFamily(
        "naflexvit", "naflexvit_base_patch16_siglip", settings={"depth": 2, "img_size": 64}
    ),
    ImageFamily("resnet", "resnet10t"),
    ImageFamily("torchvision_vit", "torchvision:vit_b_16", settings={"image_size": 64}),
    ImageFamily("torchvision_swin", "torchvision:swin_t"),
    ImageFamily("torchvision_maxvit", "torchvision:maxvit_t", 224),
]
