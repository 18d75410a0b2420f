"""A word tokenizer that every family of processors can be built with."""

from __future__ import annotations

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

WORDS = "what is in this picture a red square and blue circle describe it user assistant \n".split(
    " "
)


def word_tokenizer(*special: str, **extra: object) -> PreTrainedTokenizerFast:
    """PAD 0, BOS 1, EOS 2, unknown 3, then the special tokens, then a few words."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *special, *WORDS]
    vocabulary = {name: index for index, name in enumerate(names)}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(special),
        model_max_length=4096,
        **extra,
    )
