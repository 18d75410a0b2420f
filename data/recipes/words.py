"""Word-level tokenizers: one word, one token, BOS in front."""

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import Lowercase
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN, IMAGE = "<pad>", "<bos>", "<eos>", "<unk>", "<image>"


def word_tokenizer(
    words: list[str], special: list[str], *, context: int, **extra
) -> PreTrainedTokenizerFast:
    """Lower-case, split at white space and punctuation, look each word up, put BOS in front.

    Token ids follow the order `special + words`. Of PAD, EOS and UNKNOWN those not in `special`
    stay unset; `extra` goes to `PreTrainedTokenizerFast`.
    """
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    unknown = UNKNOWN if UNKNOWN in special else None
    backend = Tokenizer(WordLevel(vocabulary, unk_token=unknown or words[0]))
    backend.normalizer = Lowercase()
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS if EOS in special else None,
        pad_token=PAD if PAD in special else EOS,
        unk_token=unknown,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
        **extra,
    )
