"""A small random LLaVA with sharp attention, and three prompts of different lengths with images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import tiny_models as tiny
import torch
from planting import planted, scene
from torch import Tensor

from probes.attention_call import AttentionCall
from probes.capture import capture
from probes.edits.apply import edit
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


@contextmanager
def short_tiles(few: int = 5) -> Iterator[None]:
    """Patterns are read in tiles of so few rows, where nothing else is asked for."""
    plain = AttentionCall.tiles
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            AttentionCall, "tiles", lambda call, *, rows=None: plain(call, rows=rows or few)
        )
        yield


def assert_tiles_change_nothing(subject: Subject, method: Any, layers: Sequence[int]) -> None:
    """Under an edit, rows of real queries sum to one, and short tiles give the same logits."""
    batch = three(subject)
    with edit(subject, method) as (whole,):
        once = capture(subject, batch, patterns="language.*")
    real = ~batch.tokens["language"].has_role("pad").view(3, -1)
    for layer in layers:
        pattern = once.pattern(f"language.L{layer}")
        assert isinstance(pattern, Tensor)
        sums = pattern.sum(-1).transpose(1, 2)[real]
        assert torch.allclose(sums, torch.ones_like(sums), atol=1e-6)
    with short_tiles(), edit(subject, method) as (tiled,):
        again = capture(subject, batch, patterns="language.*")
    assert torch.allclose(again.output.logits, once.output.logits, atol=1e-6)
    assert tiled.fired > whole.fired and tiled.touched == whole.touched > 0


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
