"""Small random models of transformers classes, and tokenizers and processors made in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

WORDS = [*"abcdefghij", "the", "cat", "sat", "on", "a", "mat", "describe", "image", ".", "?"]
IMAGE_TOKEN = "<image>"
IMAGE_PROMPTS = (
    "a b <image> describe the cat on a mat ?",
    "sat <image> cat",
    "<image> the image b c e",
)
"""Of different lengths, with words before, behind, and on both sides of the image."""


def tokenizer(side: str = "right") -> Any:
    """A word-level tokenizer: <pad> 0, <s> 1, </s> 2, <unk> 3, <image> 4, then `WORDS`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>", IMAGE_TOKEN]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[IMAGE_TOKEN],
        extra_special_tokens={"image_token": IMAGE_TOKEN},
        padding_side=side,
    )
    made.model_input_names = ["input_ids", "attention_mask"]
    return made


def gpt2(**changes: Any) -> Any:
    """Two layers, three heads of width 4, context 37."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = {"vocab_size": 31, "n_positions": 37, "n_embd": 12, "n_layer": 2, "n_head": 3}
    settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    torch.manual_seed(5)
    return GPT2LMHeadModel(GPT2Config(**settings | changes)).eval()


def llama(**changes: Any) -> Any:
    """Three layers, six query heads on two key heads of width 10."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(7)
    return LlamaForCausalLM(llama_config(**changes)).eval()


def llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    settings = {"vocab_size": 31, "hidden_size": 30, "intermediate_size": 14}
    settings |= {"num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
    settings |= {"head_dim": 10, "max_position_embeddings": 61}
    settings |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return LlamaConfig(**settings | changes)


def vit(**changes: Any) -> Any:
    """Two layers, three heads, 15 x 10 pixels in patches of 5: 6 patches and a CLS token."""
    from transformers import ViTConfig, ViTForImageClassification

    settings = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3}
    settings |= {"intermediate_size": 14, "image_size": 20, "patch_size": 5, "num_labels": 7}
    torch.manual_seed(11)
    return ViTForImageClassification(ViTConfig(**settings | changes)).eval()


def image_processor(side: int) -> Any:
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": side, "width": side})


def clip() -> Any:
    """Vision 2 x 3 heads, text 3 x 2 heads."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(13)
    text = {"vocab_size": 31, "hidden_size": 10, "intermediate_size": 14}
    text |= {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 23}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = CLIPConfig(text_config=text, vision_config=_clip_vision(), projection_dim=9)
    return CLIPModel(config).eval()


def llava() -> Any:
    """CLIP vision 2 x 3 heads on 16 patches, Llama 3 x 6 heads."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(17)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**_clip_vision()),
        text_config=llama_config(),
        image_token_id=4,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config).eval()


def llava_processor() -> Any:
    from transformers import LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer("left"),
        patch_size=5,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE_TOKEN,
    )


def t5() -> Any:
    """Encoder 2 x 3 heads, decoder 2 x 3 heads and as many that read the encoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(19)
    config = T5Config(
        vocab_size=31,
        d_model=12,
        d_kv=4,
        d_ff=14,
        num_layers=2,
        num_heads=3,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    )
    return T5ForConditionalGeneration(config).eval()


def resnet() -> Any:
    """A CNN: no attention at all."""
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(23)
    config = ResNetConfig(embedding_size=6, hidden_sizes=[6, 10], depths=[1, 1], num_labels=7)
    return ResNetForImageClassification(config).eval()


def sharp(model: Any) -> Any:
    """The model with queries and keys large enough for patterns far from uniform."""
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name or "c_attn" in name:
            weight.data.mul_(9)
    return model


def saved(folder: Path, model: Any, *parts: Any) -> str:
    """The folder, with the model and its processors in it."""
    model.save_pretrained(folder)
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


def _clip_vision() -> dict[str, int]:
    vision = {"hidden_size": 12, "intermediate_size": 14, "num_hidden_layers": 2}
    return vision | {"num_attention_heads": 3, "image_size": 20, "patch_size": 5}
