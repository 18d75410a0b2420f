"""A small random LLaVA with sharp attention, and three prompts of different lengths with images."""

from __future__ import annotations

from typing import Any

import tiny_models as tiny
import torch
from planting import planted, scene
from torch import Tensor

from probes.inputs import Batch
from probes.subject import Subject

TEXTS = ("a b <image> c d", "<image> the cat sat on a mat . ?", "e f g <image> h")
STEPS = 3
SHARPENED = ("q_proj.w", "k_proj.w", "v_proj.w", "o_proj.w", "_embedding", "projector.linear")


def seeing(feature_layer: int = -2, **changes: Any) -> Subject:
    """Vision 5 x 3 heads on 16 patches, Llama 3 x 6 heads on two key heads."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(29)
    vision = {"hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 5}
    vision |= {"num_attention_heads": 3, "image_size": 20, "patch_size": 5}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=tiny.llama_config(**changes),
        image_token_id=4,
        vision_feature_layer=feature_layer,
    )
    model = LlavaForConditionalGeneration(config).eval()
    for name, weight in model.named_parameters():
        if any(part in name for part in SHARPENED):
            weight.data.mul_(6)
    return Subject(model, tiny.llava_processor())


def pictures() -> list[Any]:
    """20 x 20 pixels, dark but for one bright patch each."""
    corners = [(0, 5), (10, 15), (15, 0)]
    return [
        planted(scene(20, 20, seed), [left, top, left + 5, top + 5])
        for seed, (left, top) in enumerate(corners)
    ]


def three(subject: Subject, **settings: Any) -> Batch:
    """The three prompts, padded on the left."""
    return subject.prepare(list(TEXTS), pictures(), padding_side="left", **settings)


def alone(subject: Subject) -> list[dict[str, Tensor]]:
    """The tensors of each prompt by itself, without padding or a mask."""
    made = []
    for text, picture in zip(TEXTS, pictures(), strict=True):
        tensors = subject.prepare([text], [picture]).tensors
        made.append({name: tensors[name] for name in ("input_ids", "pixel_values")})
    return made


class Logits:
    """A logits processor that keeps what it sees: ``[step example word]``."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self.seen.append(scores.clone())
        return scores


def written_together(
    subject: Subject, batch: Batch, steps: int = STEPS, **settings: Any
) -> tuple[Tensor, Tensor]:
    """New tokens ``[example step]`` and logits ``[step example word]`` of a whole batch."""
    kept = Logits()
    settings = {"eos_token_id": None, **settings}
    made = subject.generate(batch, steps, logits_processor=[kept], **settings)
    return made.ids, torch.stack(kept.seen)
