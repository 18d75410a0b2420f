"""The model and prompts of the edits' figures: a LLaVA of GPT-2 small's size, random weights."""

from __future__ import annotations

from typing import Any

import torch

PATCH = 14
WORDS = 32_000
LARGE = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
LARGE |= {"num_attention_heads": 12, "num_key_value_heads": 12}
TOY = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4}
TOY |= {"num_attention_heads": 4, "num_key_value_heads": 2}
TOWER = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}
TOWER |= {"num_attention_heads": 6, "patch_size": PATCH}
TOY_TOWER = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 3}
TOY_TOWER |= {"num_attention_heads": 2, "patch_size": PATCH}
_SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
_ASKED = "describe what is in the picture and say where each of the objects stands".split()


def random_llava(
    grid: int = 24, device: str = "cpu", dtype: str = "float32", toy: bool = False
) -> Any:
    """A subject: CLIP tower, projector, Llama 12 x 12 x 64 with 32,000 words, ``grid x grid``
    image tokens; the same weights every time. It never ends by itself."""
    from transformers import (
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    import headscope as hs

    side = grid * PATCH
    words = 97 if toy else WORDS
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**(TOY_TOWER if toy else TOWER), image_size=side),
        text_config=LlamaConfig(
            **(TOY if toy else LARGE),
            vocab_size=words,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        ),
        image_token_id=_SPECIAL.index("<image>"),
        vision_feature_layer=-2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config)
    model = model.eval().to(device, getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    return hs.load(model, processor=_processor(side, words))


def prompts(subject: Any, count: int, grid: int = 24, answered: int = 0) -> Any:
    """A batch of prompts of different lengths with an image each; with answers of so many words."""
    import numpy as np

    from headscope import Example

    words = [name for name in subject.tokenizer.get_vocab() if name.startswith("w")]
    dice = np.random.default_rng(3)
    examples = []
    for number in range(count):
        asked = [*_ASKED, *dice.choice(words, 3 + number % 7)]
        said = " ".join(dice.choice(words, answered)) if answered else None
        pixels = dice.integers(0, 256, (grid * PATCH, grid * PATCH, 3)).astype("uint8")
        examples.append(
            Example(f"prompt-{number}", image=pixels, question=" ".join(asked), answer=said)
        )
    return subject.prepare(examples=examples)


def _processor(side: int, words: int) -> Any:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    names = dict.fromkeys([*_SPECIAL, *_ASKED])
    names |= dict.fromkeys(f"w{number}" for number in range(words - len(names)))
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
        model_max_length=2048,
        padding_side="left",
    )
    size = {"height": side, "width": side}
    return LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    )
