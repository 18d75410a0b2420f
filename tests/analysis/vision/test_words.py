"""Characters of tokens, for tokenizers of every make, and which object each belongs to."""

from __future__ import annotations

import pytest
import tiny_models
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from analysis.hallucination.vocabulary import Vocabulary
from analysis.vision.words import Word, token_spans, words

TEXT = "There is a naïve fire-truck, two dogs \U0001f415 and a couch."


def _byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=275, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(["the dogs and the couch is a dog, there is a truck"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def _pieces():
    names = ["<unk>", *(f"<0x{number:02X}>" for number in range(256))]
    names += ["▁", *sorted(set("Therisatfduckwogn-,.")), "do", "dog", "▁a", "▁t"]
    backend = Tokenizer(
        models.BPE(
            vocab={name: index for index, name in enumerate(names)},
            merges=[("d", "o"), ("do", "g"), ("▁", "a"), ("▁", "t")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def _word_pieces():
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=60, special_tokens=["[UNK]"], show_progress=False
    )
    backend.train_from_iterator([TEXT.replace("\U0001f415", "")] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.mark.parametrize("make", [_byte_level, _pieces])
def test_pieces_of_all_tokens_put_together_are_the_text(make):
    tokenizer = make()
    ids = tokenizer(TEXT)["input_ids"]
    text, spans = token_spans(tokenizer, ids)
    assert text == TEXT
    assert len(spans) == len(ids) > len(TEXT.split())
    assert "".join(text[start:end] for start, end in spans) == TEXT
    assert [start for start, _ in spans[1:]] == [end for _, end in spans[:-1]]
    dog = TEXT.index("\U0001f415")
    assert sum(start <= dog < end for start, end in spans) == 1, "its last byte's token"


def test_decoders_that_glue_pieces_together():
    tokenizer = _word_pieces()
    ids = tokenizer("two dogs, a couch.")["input_ids"]
    text, spans = token_spans(tokenizer, ids)
    assert text == tokenizer.decode(ids)
    known = words(tokenizer, ids, ["couch"], Vocabulary.of(["couch", "dog"]))
    for word, (start, end) in zip(known, spans, strict=True):
        assert word.text == text[start:end]
    couch = "".join(word.text for word in known if word.kind == "couch")
    assert couch.strip() == "couch"


@pytest.mark.parametrize("make", [_byte_level, _pieces])
def test_each_piece_of_an_object_belongs_to_it_and_its_neighbours_do_not(make):
    tokenizer = make()
    vocabulary = Vocabulary({"fire truck": (), "dog": (), "couch": ("sofa",), "cat": ()})
    found = words(tokenizer, tokenizer(TEXT)["input_ids"], ["Dogs", "sofa", "cat"], vocabulary)
    said = {}
    for word in found:
        said.setdefault((word.mention, word.kind, word.group), []).append(word.text)
    joined = {key: "".join(pieces).strip(" ,.") for key, pieces in said.items() if key[0] >= 0}
    assert joined == {
        (0, "fire truck", "hallucinated_object"): "fire-truck",
        (1, "dog", "true_object"): "dogs",
        (2, "couch", "true_object"): "couch",
    }
    assert {word.group for word in found if word.mention < 0} == {"other"}


def test_the_same_object_twice_is_two_mentions_and_nothing_known_is_nothing_said():
    tokenizer = tiny_models.tokenizer()
    ids = tokenizer("the cat sat on a mat . the cat")["input_ids"]
    found = words(tokenizer, ids, ["mat"], Vocabulary.of(["cat", "mat"]))
    assert [word.mention for word in found] == [-1, 0, -1, -1, -1, 1, -1, -1, 2]
    assert found[1] == Word(" cat", "hallucinated_object", "cat", 0)
    assert found[5].group == "true_object" and found[8].group == "hallucinated_object"
    plain = words(tokenizer, ids)
    assert {(word.group, word.kind, word.mention) for word in plain} == {("", "", -1)}
    assert words(tokenizer, []) == []
