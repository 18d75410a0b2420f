"""Own text behind prompts: what one forward reads must be what was written token by token."""

from __future__ import annotations

import pytest
import small_vlms
import tiny_models
import torch
from packed_batch import packed_batch
from planting import scene
from small_tokenizers import word_tokenizer

from probes.inputs import Example, InputError
from probes.subject import Subject
from probes.tokens import ROLES
from probes.written_text import continued, written_lengths

TEXTS = ["<image> a b c", "d <image>", "<image> the cat sat on a"]


def _prompts(subject, side="left"):
    examples = [
        Example(str(i), text=text, image=scene(20 + i, 25, seed=i)) for i, text in enumerate(TEXTS)
    ]
    return subject.prepare(examples=examples, padding_side=side)


def _subject():
    return Subject(tiny_models.llava(), tiny_models.llava_processor())


def test_one_forward_over_what_was_written_predicts_it_again():
    subject = _subject()
    batch = _prompts(subject)
    settings = {"eos_token_id": None, "output_logits": True, "return_dict_in_generate": True}
    subject.model.generation_config.eos_token_id = None
    made = subject.model.generate(**batch.tensors, max_new_tokens=7, do_sample=False, **settings)
    start = batch.tensors["input_ids"].shape[1]
    ids = made.sequences[:, start:]
    subject.tokenizer.pad_token_id = None
    subject.tokenizer.eos_token_id = None
    subject.model.generation_config.pad_token_id = None
    whole = continued(subject, batch, ids)
    assert whole.answer_starts == (start,) * 3
    logits = subject.forward(whole).logits[:, start - 1 : -1]
    torch.testing.assert_close(logits, torch.stack(made.logits, dim=1), atol=2e-5, rtol=1e-4)


def test_rows_end_at_their_first_end_of_text():
    subject = _subject()
    batch = _prompts(subject)
    ids = torch.tensor([[7, 8, 2, 9, 9], [2, 7, 7, 7, 7], [9, 10, 11, 0, 0]])
    assert written_lengths(subject, ids).tolist() == [2, 0, 3]
    whole = continued(subject, batch, ids)
    start = batch.tensors["input_ids"].shape[1]
    assert whole.answer_starts == (start, -1, start)
    assert whole.tensors["input_ids"][:, start:].tolist() == [[7, 8, 0], [0, 0, 0], [9, 10, 11]]
    assert whole.tensors["attention_mask"][:, start:].tolist() == [[1, 1, 0], [0, 0, 0], [1, 1, 1]]
    last = batch.tensors["position_ids"][:, -1].tolist()
    assert whole.tensors["position_ids"][0, start:].tolist() == [last[0] + 1, last[0] + 2, 0]
    tokens = whole.tokens["language"]
    assert tokens.lengths.tolist() == [start + 3] * 3
    roles = [ROLES[role] for role in tokens.role.reshape(3, -1)[0, start:].tolist()]
    assert roles == ["generated", "generated", "pad"]
    assert tokens.ids.reshape(3, -1)[2, start:].tolist() == [9, 10, 11]
    assert tokens.text[2 * (start + 3) + start] == subject.tokenizer.decode([9])
    assert torch.equal(tokens.ids.reshape(3, -1)[:, :start], batch.tensors["input_ids"])
    alone = subject.forward(continued(subject, batch, ids[:, :2])).logits[0, start : start + 2]
    torch.testing.assert_close(subject.forward(whole).logits[0, start : start + 2], alone)


def test_qwen_counts_its_own_positions_behind_the_image():
    tokenizer = word_tokenizer("<image>", "<start>", "<end>", "<video>")

    def prompt(counts):
        ends = ("a is", "this")
        return [f"<start> {'<image> ' * n}<end> {t}" for n, t in zip(counts, ends, strict=True)]

    subject, batch = packed_batch(small_vlms.qwen2(), tokenizer, prompt)
    made = subject.model.generate(
        **batch.tensors,
        max_new_tokens=4,
        do_sample=False,
        eos_token_id=None,
        suppress_tokens=[4, 5, 6, 7],  # a model that wrote image tokens would have to read them
        output_logits=True,
        return_dict_in_generate=True,
    )
    start = batch.tensors["input_ids"].shape[1]
    whole = continued(subject, batch, made.sequences[:, start:])
    assert not whole.tensors["mm_token_type_ids"][:, start:].any()
    reached = int(written_lengths(subject, made.sequences[:, start:]).min())
    logits = subject.forward(whole).logits[:, start - 1 : start - 1 + reached + 1]
    expected = torch.stack(made.logits[: reached + 1], dim=1)
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-3)


def test_what_cannot_be_continued():
    subject = _subject()
    with pytest.raises(InputError, match="must be padded on the left to be continued"):
        continued(subject, _prompts(subject, "right"), torch.ones(3, 2, dtype=torch.long))
    t5 = Subject(tiny_models.t5(), tiny_models.tokenizer())
    batch = t5.prepare(text=["a b"], chat_template=False)
    with pytest.raises(InputError, match="T5ForConditionalGeneration reads them apart"):
        continued(t5, batch, torch.ones(1, 2, dtype=torch.long))
