"""Text: roles of tokens, padding on both sides, the system prompt of a chat template."""

from __future__ import annotations

import pytest
import torch
from small_tokenizers import word_tokenizer
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config, T5Model

from probes.tokens import ROLES, map_tokens
from probes.tokens.text import special_ids, system_prompt_ids

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|im|> you are a red circle <end> {% endif %}"
    "{% for message in messages %}<|im|> {{ message['role'] }} {{ message['content'] }} <end> "
    "{% endfor %}{% if add_generation_prompt %}<|im|> assistant {% endif %}"
)


def llama():
    config = LlamaConfig(
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=40,
    )
    return LlamaForCausalLM(config).eval()


def words_of(tokens):
    return [ROLES[role] for role in tokens.role.tolist()]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_bos_special_and_text(side):
    tokenizer = word_tokenizer()
    tensors = dict(
        tokenizer(
            ["what is this </s> in", "red"],
            padding=True,
            padding_side=side,
            return_tensors="pt",
            return_token_type_ids=False,
        )
    )
    tokens = map_tokens(llama(), tokenizer, tensors, ["language"])["language"]
    first = ["bos", "text", "text", "text", "special", "text"]
    pads = ["pad"] * 4
    second = [*pads, "bos", "text"] if side == "left" else ["bos", "text", *pads]
    assert words_of(tokens) == [*first, *second]
    assert tokens.text[1:4] == ("what", "is", "this")
    assert tokens.ids.tolist() == tensors["input_ids"].flatten().tolist()
    assert tokens.position.tolist() == [*range(6), *range(6)]
    assert tokens.example.tolist() == [0] * 6 + [1] * 6


def test_a_bos_in_the_middle_is_special_and_an_absent_one_is_not_invented():
    tokenizer = word_tokenizer()
    ids = torch.tensor([[7, 1, 8], [1, 8, 9]])
    tokens = map_tokens(llama(), tokenizer, {"input_ids": ids}, ["language"])["language"]
    assert words_of(tokens) == ["text", "special", "text", "bos", "text", "text"]


def test_without_a_tokenizer_only_bos_is_known():
    ids = torch.tensor([[1, 8, 9]])
    tokens = map_tokens(llama(), None, {"input_ids": ids}, ["language"])["language"]
    assert words_of(tokens) == ["bos", "text", "text"]
    assert tokens.text == ()


def test_pad_that_is_also_eos_is_special_where_the_mask_reads_it():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "</s>"
    ids, mask = torch.tensor([[2, 2, 1, 8, 2]]), torch.tensor([[0, 0, 1, 1, 1]])
    tensors = {"input_ids": ids, "attention_mask": mask}
    tokens = map_tokens(llama(), tokenizer, tensors, ["language"])["language"]
    assert words_of(tokens) == ["pad", "pad", "bos", "text", "special"]


def test_encoder_begins_with_cls():
    tokenizer = word_tokenizer(cls_token="<cls>", sep_token="<sep>")
    tokenizer.bos_token = None
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    ids = torch.tensor([[cls, 7, 8, sep]])
    config = BertConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=6,
        vocab_size=60,
    )
    tokens = map_tokens(BertModel(config), tokenizer, {"input_ids": ids}, ["language"])["language"]
    assert words_of(tokens) == ["cls", "text", "text", "special"]


def test_encoder_decoder_has_a_map_for_each_side():
    config = T5Config(d_model=8, d_kv=4, d_ff=6, num_layers=1, num_heads=2, vocab_size=40)
    tensors = {
        "input_ids": torch.tensor([[7, 8, 9, 2]]),
        "decoder_input_ids": torch.tensor([[0, 7]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    towers = ["encoder", "decoder", "cross"]
    tokens = map_tokens(T5Model(config), word_tokenizer(), tensors, towers)
    lengths = [tokens[name].lengths.tolist() for name in towers]
    assert lengths == [[4], [2], [2]]


def chatting():
    return word_tokenizer("<|im|>", "<end>", chat_template=TEMPLATE)


def test_the_system_prompt_ends_where_the_users_turn_begins():
    tokenizer = chatting()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "what is this"}], tokenize=False, add_generation_prompt=True
    )
    tensors = dict(tokenizer([prompt, "red square"], padding=True, return_tensors="pt"))
    tokens = map_tokens(llama(), tokenizer, tensors, ["language"])["language"]
    words = words_of(tokens)[: int(tokens.lengths[0])]
    assert words == [
        "bos",
        "special",
        *["system"] * 5,
        "special",
        "special",
        *["text"] * 4,
        "special",
        "special",
        "text",
    ]
    assert "system" not in words_of(tokens)[int(tokens.lengths[0]) :]


def test_a_processors_template_is_used_where_it_has_one():
    from types import SimpleNamespace

    tokenizer = word_tokenizer("<im>")

    def apply(messages, tokenize):
        assert not tokenize
        turns = [f"{m['role']} {m['content'][0]['text']}" for m in messages]
        return " ".join(["describe the circle", *turns])

    processor = SimpleNamespace(chat_template="x", apply_chat_template=apply)
    ids = system_prompt_ids(tokenizer, processor)
    assert tokenizer.decode(ids) == "describe <unk> circle"


def test_a_template_without_a_system_prompt_has_none():
    tokenizer = word_tokenizer(
        "<|im|>",
        chat_template="{% for m in messages %}<|im|> {{ m['role'] }} {{ m['content'] }} "
        "{% endfor %}",
    )
    assert system_prompt_ids(tokenizer) == []
    assert system_prompt_ids(word_tokenizer()) == []
    assert system_prompt_ids(None) == []


def test_a_template_that_raises_gives_no_system_prompt():
    tokenizer = word_tokenizer(chat_template="{{ raise_exception('no') }}")
    assert system_prompt_ids(tokenizer) == []


def test_special_ids_hold_what_was_added_as_special():
    assert special_ids(word_tokenizer("<image>")) == {0, 1, 2, 4}  # 3 is the unknown word
    same = word_tokenizer()
    same.unk_token = "</s>"
    assert 2 in special_ids(same)
    assert special_ids(None) == set()


def test_lengths_the_model_does_not_show_are_left_out():
    tokens = map_tokens(llama(), None, {"input_ids": torch.tensor([[1, 2]])}, ["audio", "vision"])
    assert "audio" not in tokens and "vision" not in tokens


def test_embeddings_have_places_and_padding_but_no_ids():
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    tensors = {"inputs_embeds": torch.zeros(2, 5, 12), "attention_mask": mask}
    tokens = map_tokens(llama(), None, tensors, ["language"])["language"]
    assert tokens.lengths.tolist() == [5, 5]
    assert tokens.has_role("pad").tolist() == (mask == 0).flatten().tolist()
    assert (tokens.ids == -1).all()
