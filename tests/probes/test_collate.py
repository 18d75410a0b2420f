"""Examples to tensors: prompts, padding, positions, answers, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from small_tokenizers import word_tokenizer
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaProcessor,
    T5Config,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from probes.collate import collate
from probes.inputs import Example, InputError
from probes.prompts import prompt_of

SIDE = {"height": 10, "width": 10}
CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def picture(seed=0, size=(12, 9)):
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)


def llava_processor(**extra):
    return LlavaProcessor(
        CLIPImageProcessorPil(size=SIDE, crop_size=SIDE),
        word_tokenizer("<image>", ":"),
        patch_size=5,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **extra,
    )


def words(tokenizer, ids):
    return " ".join(tokenizer.convert_ids_to_tokens(ids.tolist()))


def models():
    shape = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2}
    torch.manual_seed(3)
    llama = LlamaConfig(
        hidden_size=16,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.5,
        **shape,
    )
    gpt2 = GPT2Config(n_embd=16, n_layer=2, n_head=2, initializer_range=0.5, **shape)
    return [LlamaForCausalLM(llama).eval(), GPT2LMHeadModel(gpt2).eval()]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logits(which, side):
    model, tokenizer = models()[which], word_tokenizer()
    examples = [Example("a", text="what is in this picture"), Example("b", text="red square")]
    together = collate(
        examples, None, tokenizer, kind="language", padding_side=side, config=model.config
    )
    assert ("position_ids" in together.tensors) == (side == "left")
    with torch.no_grad():
        batched = model(**together.tensors).logits
        for index, example in enumerate(examples):
            alone = collate([example], None, tokenizer, kind="language", config=model.config)
            real = together.tensors["attention_mask"][index].bool()
            single = model(**alone.tensors).logits[0]
            assert torch.allclose(batched[index][real], single, atol=1e-5)


def test_left_padding_without_position_ids_would_be_wrong():
    model, tokenizer = models()[1], word_tokenizer()
    examples = [Example("a", text="what is in this picture"), Example("b", text="red square")]
    made = collate(examples, None, tokenizer, kind="language", padding_side="left")
    tensors = dict(made.tensors)
    with torch.no_grad():
        right = model(**tensors).logits[1, -1]
        del tensors["position_ids"]
        wrong = model(**tensors).logits[1, -1]
    assert (right - wrong).abs().max() > 0.1


def test_a_tokenizer_without_a_padding_token_pads_with_eos_and_stays_as_it_was():
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    examples = [Example("a", text="red square"), Example("b", text="red")]
    made = collate(examples, None, tokenizer, kind="language", padding_side="left")
    assert made.tensors["input_ids"][1].tolist() == [2, 1, tokenizer.convert_tokens_to_ids("red")]
    assert made.tensors["attention_mask"].tolist() == [[1, 1, 1], [0, 1, 1]]
    assert tokenizer.pad_token is None


def test_answers_are_appended_and_found_on_both_sides():
    tokenizer = word_tokenizer()
    examples = [
        Example("a", question="what is this", answer="a red square"),
        Example("b", text="a circle"),
        Example("c", question="describe", answer="blue circle"),
    ]
    for side, starts in {"left": (4, -1, 5), "right": (4, -1, 2)}.items():
        made = collate(examples, None, tokenizer, kind="language", padding_side=side)
        assert made.answer_starts == starts
        tail = made.tensors["input_ids"][2, starts[2] : starts[2] + 2]
        assert words(tokenizer, tail) == "blue circle"
    made = collate(examples, None, tokenizer, kind="language", answers=False)
    assert made.answer_starts == (-1, -1, -1)
    assert made.tensors["input_ids"].shape[1] == 4


@pytest.mark.parametrize("template", [None, CHAT])
def test_images_with_a_question_and_an_answer(template):
    processor = llava_processor(chat_template=template)
    tokenizer = processor.tokenizer
    examples = [
        Example("a", question="what is this", answer="a red square", image=picture()),
        Example("b", question="describe it", answer="blue", images=(picture(1), picture(2))),
    ]
    made = collate(examples, processor, tokenizer, kind="vision-language", padding_side="left")
    ids = made.tensors["input_ids"]
    assert (ids == 4).sum(-1).tolist() == [4, 8]
    assert made.tensors["pixel_values"].shape == (3, 3, 10, 10)
    assert made.image_sizes == [(12, 9)] * 3 and made.image_examples == [0, 1, 1]
    assert [words(tokenizer, ids[i, s:]) for i, s in enumerate(made.answer_starts)] == [
        "a red square",
        "blue",
    ]
    shown = words(tokenizer, ids[0][ids[0] != 0])
    expected = "user : " if template else ""
    after = " assistant :" if template else ""
    assert shown == f"<s> {expected}{'<image> ' * 4}what is this{after} a red square"


def test_a_text_that_holds_the_image_token_is_left_alone():
    processor = llava_processor(chat_template=CHAT)
    example = Example("a", text="a <image> in red", image=picture())
    made = collate([example], processor, processor.tokenizer, kind="vision-language")
    assert words(processor.tokenizer, made.tensors["input_ids"][0]) == (
        "<s> a <image> <image> <image> <image> in red"
    )
    wrong = Example("b", text="a <image> and <image>", image=picture())
    with pytest.raises(InputError, match="'b' has 2 <image> in its text and 1 images") as caught:
        collate([wrong], processor, processor.tokenizer, kind="vision-language")
    assert caught.value.example_id == "b"


def test_text_alone_and_image_alone_go_through_a_vision_language_model():
    processor = llava_processor()
    examples = [Example("a", text="red square"), Example("b", image=picture())]
    made = collate(examples, processor, processor.tokenizer, kind="vision-language")
    assert (made.tensors["input_ids"] == 4).sum(-1).tolist() == [0, 4]
    assert made.image_examples == [1]
    alone = collate(examples[:1], processor, processor.tokenizer, kind="vision-language")
    assert "pixel_values" not in alone.tensors


def test_a_template_that_writes_bos_is_not_given_a_second():
    tokenizer = word_tokenizer(chat_template="<s> " + CHAT)
    made = collate([Example("a", question="what is this")], None, tokenizer, kind="language")
    assert (made.tensors["input_ids"] == 1).sum() == 1
    assert prompt_of(Example("a", text="raw"), None, tokenizer).text == "raw"


def test_a_vision_model_takes_images_only():
    processor = ViTImageProcessorPil(size=SIDE)
    examples = [Example("a", image=picture(), text="ignored"), Example("b", image=picture(1))]
    made = collate(examples, processor, None, kind="vision")
    assert set(made.tensors) == {"pixel_values"}
    assert made.image_examples == [0, 1]
    with pytest.raises(InputError, match="'t' has no image"):
        collate([Example("t", text="words")], processor, None, kind="vision")


@pytest.mark.parametrize("config", [BartConfig, T5Config])
def test_a_decoder_reads_its_start_token_and_the_answer(config):
    tokenizer = word_tokenizer()
    settings = config(decoder_start_token_id=2)
    examples = [Example("a", text="what is this", answer="red square"), Example("b", text="what")]
    made = collate(examples, None, tokenizer, kind="encoder-decoder", config=settings)
    red, square = tokenizer.convert_tokens_to_ids(["red", "square"])
    assert made.tensors["decoder_input_ids"].tolist() == [[2, red, square], [2, 0, 0]]
    assert made.tensors["decoder_attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert made.answer_starts == (1, -1)
    assert made.tensors["input_ids"].shape == (2, 4)


def test_encoder_decoder_tensors_run():
    config = BartConfig(
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=6,
        decoder_ffn_dim=6,
        vocab_size=40,
    )
    made = collate(
        [Example("a", text="what", answer="red")],
        None,
        word_tokenizer(),
        kind="encoder-decoder",
        config=config,
        accepts=("input_ids", "attention_mask", "decoder_input_ids", "decoder_attention_mask"),
    )
    with torch.no_grad():
        logits = BartForConditionalGeneration(config).eval()(**made.tensors).logits
    assert logits.shape[:2] == (1, 2)


def test_only_what_the_forward_accepts_is_kept():
    made = collate(
        [Example("a", text="red")], None, word_tokenizer(), kind="language", accepts={"input_ids"}
    )
    assert set(made.tensors) == {"input_ids"}


def test_faults_name_the_example(tmp_path):
    tokenizer = word_tokenizer()
    long = Example("long", text="what is in this picture")
    with pytest.raises(InputError, match="'long' has 6 tokens, and the model reads at most 5"):
        collate([Example("ok", text="red"), long], None, tokenizer, kind="language", max_length=5)
    assert collate([long], None, tokenizer, kind="language", max_length=6).tensors
    tokenizer.bos_token = None
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(InputError, match=r"Example 'x': Image .* does not decode") as caught:
        collate(
            [Example("x", image=tmp_path / "bad.png")],
            ViTImageProcessorPil(size=SIDE),
            None,
            kind="vision",
        )
    assert caught.value.example_id == "x"
    with pytest.raises(InputError, match="at least one example"):
        collate([], None, tokenizer, kind="language")


def test_models_with_positions_of_their_own_get_none():
    config = CLIPVisionConfig()
    config.text_config = LlamaConfig(
        rope_parameters={"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 1e4}
    )
    examples = [Example("a", text="red square"), Example("b", text="red")]
    made = collate(
        examples, None, word_tokenizer(), kind="language", padding_side="left", config=config
    )
    assert "position_ids" not in made.tensors
