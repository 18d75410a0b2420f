"""A small input made for a subject, on which its towers, layers and heads are observed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probes.inputs import Example

if TYPE_CHECKING:
    from probes.subject import Subject

SENTENCE = "The small cat sat on the mat and the other cat sat on the rug."
_IDS = 11
_DECODER_IDS = 5
_SIDE = 56
_SEED = 20_261


def sample_tensors(subject: Subject) -> dict[str, Any] | None:
    """The tensors of one example for this subject; ``None`` if its inputs cannot be guessed.

    Encoder and decoder get different lengths, so that their attention cannot be confused.
    """
    if subject.kind == "module":
        return None
    if subject.tokenizer is not None or subject.image_processor is not None:
        made = _by_processor(subject)
        if made is not None:
            return made
    return _by_config(subject)


def _by_processor(subject: Subject) -> dict[str, Any] | None:
    text = SENTENCE if subject.tokenizer is not None else None
    image = noise_image() if subject.image_processor is not None else None
    needs_image = subject.kind in ("vision", "vision-language")
    needs_text = subject.kind != "vision"
    if (needs_image and image is None) or (needs_text and text is None) or subject.kind == "audio":
        return None
    answer = SENTENCE if "decoder_input_ids" in subject.arguments else None
    example = Example("sample", question=text, image=image if needs_image else None, answer=answer)
    tensors = subject.collate([example]).tensors
    return tensors if needs_image == ("pixel_values" in tensors) else None


def _by_config(subject: Subject) -> dict[str, Any] | None:
    config, names = subject.config, subject.arguments.names
    tensors: dict[str, Any] = {}
    if "pixel_values" in names:
        tensors["pixel_values"] = _noise(1, *_pixel_shape(config))
    if "input_features" in names:
        tensors["input_features"] = _noise(1, *_feature_shape(config))
    if "input_values" in names:
        tensors["input_values"] = _noise(1, 4_000)
    audio = "input_features" in tensors or "input_values" in tensors
    if "input_ids" in names and not audio:
        tensors["input_ids"] = _ids(config, _IDS)
    if "decoder_input_ids" in names:
        tensors["decoder_input_ids"] = _ids(config, _DECODER_IDS)
    if "input_ids" in tensors and "pixel_values" in tensors:
        tensors["input_ids"] = _with_image_tokens(subject, tensors)
    return tensors or None


def _with_image_tokens(subject: Subject, tensors: dict[str, Any]) -> Tensor:
    """The ids, with as many image tokens in their middle as the model has image features."""
    ids, config = tensors["input_ids"], subject.config
    token = getattr(config, "image_token_id", None)
    token = token if token is not None else getattr(config, "image_token_index", None)
    count = getattr(subject.model, "get_image_features", None)
    if token is None or count is None:
        return ids
    pixels = tensors["pixel_values"].to(subject.device, subject.dtype)
    with torch.no_grad():
        features = count(pixel_values=pixels)
    features = getattr(features, "pooler_output", features)
    pieces = features if isinstance(features, (list, tuple)) else [features]
    width = getattr(config, "text_config", config).hidden_size
    images = torch.full((1, sum(piece.numel() for piece in pieces) // width), token)
    return torch.cat([ids[:, :3], images, ids[:, 3:]], dim=1)


def _ids(config: Any, length: int) -> Tensor:
    text = getattr(config, "text_config", None) or getattr(config, "decoder", None) or config
    vocabulary = int(getattr(text, "vocab_size", 0) or 2)
    generator = torch.Generator().manual_seed(_SEED)
    lowest = min(3, vocabulary - 1)  # padding, BOS and EOS usually come first
    return torch.randint(lowest, vocabulary, (1, length), generator=generator)


def _pixel_shape(config: Any) -> tuple[int, int, int]:
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    size = getattr(vision, "image_size", None) or getattr(config, "image_size", None) or 224
    rows, columns = (size[0], size[-1]) if isinstance(size, (list, tuple)) else (size, size)
    return int(getattr(vision, "num_channels", 3) or 3), int(rows), int(columns)


def _feature_shape(config: Any) -> tuple[int, int]:
    bins = getattr(config, "num_mel_bins", None)
    positions = getattr(config, "max_source_positions", None)
    if bins and positions and getattr(config, "model_type", "") == "whisper":
        return int(bins), 2 * int(positions)
    width = bins or getattr(config, "input_feat_per_channel", None)
    return 96, int(width or getattr(config, "feature_projection_input_dim", None) or 80)


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(_SEED))


def noise_image() -> Any:
    """A PIL image of noise, the same at every call."""
    from PIL import Image

    generator = torch.Generator().manual_seed(_SEED)
    pixels = torch.randint(0, 256, (_SIDE, _SIDE, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())
