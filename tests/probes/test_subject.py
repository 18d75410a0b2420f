"""Subjects: what they say of themselves, and prepare, forward, generate on tiny models."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import tiny_models
import torch
from torch import nn

from probes.finite import find_nonfinite
from probes.inputs import Example, InputError
from probes.kinds import context_length_of, kind_of
from probes.load_error import LoadError
from probes.loading import load
from probes.preparation import examples_of
from probes.sample_inputs import noise_image


def test_the_kind_is_read_off_the_forward() -> None:
    made = {
        "language": tiny_models.gpt2(),
        "vision": tiny_models.vit(),
        "vision-language": tiny_models.clip(),
        "encoder-decoder": tiny_models.t5(),
        "module": nn.Linear(2, 3),
    }
    assert {kind: kind_of(model) for kind, model in made.items()} == {kind: kind for kind in made}


def test_towers_of_a_llava_are_named_apart_and_its_repr_names_them() -> None:
    subject = load(tiny_models.llava(), tiny_models.llava_processor())
    assert "not observed yet" in repr(subject)
    vision, language = subject.towers["vision"], subject.towers["language"]
    assert (vision.layers, vision.heads) == (2, 3)
    assert (language.layers, language.heads, language.kv_heads) == (3, 6, 2)
    assert "vision 2 x 3" in repr(subject) and "language 3 x 6" in repr(subject)


def test_towers_are_seen_without_a_processor_too() -> None:
    assert set(load(tiny_models.llava()).towers) == {"vision", "language"}
    assert set(load(tiny_models.clip()).towers) == {"vision", "language"}
    assert set(load(tiny_models.t5()).towers) == {"encoder", "decoder", "cross"}


def test_facts_of_the_model() -> None:
    subject = load(tiny_models.gpt2(), tiny_models.tokenizer())
    assert subject.context_length == 37
    assert subject.generates
    assert subject.dtype is torch.float32
    assert subject.attention_implementation == "sdpa"
    assert subject.image_processor is None and subject.tokenizer is not None
    pictures = load(tiny_models.vit(), tiny_models.image_processor(20))
    assert pictures.tokenizer is None and pictures.image_processor is not None
    assert pictures.context_length is None and not pictures.generates


def test_the_shorter_of_two_context_limits_counts() -> None:
    class Tokenizer:
        model_max_length = 512

    class Endless:
        model_max_length = 10**30

    class Config:
        max_position_embeddings = 514

    assert context_length_of(Config(), Tokenizer()) == 512
    assert context_length_of(Config(), Endless()) == 514
    assert context_length_of(None, Endless()) is None


def test_a_padded_prompt_gives_the_logits_of_the_same_prompt_alone() -> None:
    subject = load(tiny_models.gpt2(), tiny_models.tokenizer())
    together = subject.prepare(text=["a b c", "the cat sat on a mat ."])
    alone = subject.prepare(text="a b c")
    assert together.tensors["attention_mask"][0].tolist() == [0, 0, 0, 0, 1, 1, 1]
    padded = subject.forward(together).logits[0, 4:]
    torch.testing.assert_close(padded, subject.forward(alone).logits[0], atol=1e-5, rtol=0)


def test_left_padded_tensors_of_ones_own_get_position_ids() -> None:
    subject = load(tiny_models.gpt2())
    ids = torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]])
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    batch = subject.prepare(input_ids=ids, attention_mask=mask)
    assert batch.tensors["position_ids"].tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    alone = subject.prepare(input_ids=ids[:1, 2:])
    torch.testing.assert_close(
        subject.forward(batch).logits[0, 2:], subject.forward(alone).logits[0], atol=1e-5, rtol=0
    )


def test_a_batch_carries_its_examples_and_its_token_map() -> None:
    subject = load(tiny_models.llava(), tiny_models.llava_processor())
    image = noise_image()
    batch = subject.prepare(text=["describe a cat", "describe the mat ."], images=[image, image])
    assert [example.id for example in batch.examples] == ["0", "1"]
    language, vision = batch.tokens["language"], batch.tokens["vision"]
    assert vision.rows == 2 and vision.lengths.tolist() == [17, 17]
    assert language.has_role("image").sum() == 2 * 16
    outputs = subject.forward(batch)
    assert outputs.logits.shape[:2] == batch.tensors["input_ids"].shape
    assert getattr(outputs, "past_key_values", None) is None


def test_an_encoder_decoder_reads_with_one_and_writes_with_the_other() -> None:
    subject = load(tiny_models.t5(), tiny_models.tokenizer())
    batch = subject.prepare(examples=[Example("x", text="a b c d", answer="the cat")])
    assert batch.tensors["input_ids"].shape == (1, 4)
    assert batch.tensors["decoder_input_ids"].shape == (1, 3)
    assert subject.forward(batch).logits.shape == (1, 3, 31)
    written = subject.generate(subject.prepare(text="a b c"), max_new_tokens=5)
    assert written.ids.shape[0] == 1 and written.ids.shape[1] <= 5


def test_generation_is_greedy_and_equals_the_model_run_token_by_token() -> None:
    subject = load(tiny_models.gpt2(eos_token_id=30), tiny_models.tokenizer())
    subject.model.generation_config.do_sample = True
    batch = subject.prepare(text=["a b c", "the cat sat on"])
    written = subject.generate(batch, max_new_tokens=4)
    assert written.ids.shape == (2, 4) and len(written.texts) == len(written) == 2
    ids = torch.tensor([[5, 6, 7]])
    for step in range(4):
        logits = subject.forward(subject.prepare(input_ids=ids)).logits[0, -1]
        assert int(written.ids[0, step]) == int(logits.argmax())
        ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)


def test_prompts_padded_on_the_right_are_not_continued() -> None:
    subject = load(tiny_models.gpt2(), tiny_models.tokenizer())
    batch = subject.prepare(text=["a b", "a b c d"], padding_side="right")
    with pytest.raises(InputError, match="must be padded on the left"):
        subject.generate(batch, max_new_tokens=2)


def test_a_model_without_a_language_head_does_not_generate() -> None:
    subject = load(tiny_models.vit(), tiny_models.image_processor(20))
    with pytest.raises(InputError, match="does not generate text"):
        subject.generate(subject.prepare(images=noise_image()), max_new_tokens=2)


def test_training_flags_are_put_back_after_success_and_after_an_error() -> None:
    model = tiny_models.gpt2(attn_pdrop=0.5, resid_pdrop=0.5).train()
    model.transformer.h[1].eval()
    before = [module.training for module in model.modules()]
    subject = load(model, tiny_models.tokenizer())
    batch = subject.prepare(text="a b c d")
    first, second = subject.forward(batch).logits, subject.forward(batch).logits
    assert torch.equal(first, second) and not first.requires_grad
    with pytest.raises(IndexError):
        subject.forward(subject.prepare(input_ids=torch.tensor([[99]])))
    assert [module.training for module in model.modules()] == before


def test_a_call_keeps_gradients() -> None:
    subject = load(tiny_models.gpt2(), tiny_models.tokenizer())
    assert subject.call(subject.prepare(text="a b c")).logits.requires_grad


def test_pixels_follow_the_dtype_of_the_model() -> None:
    subject = load(tiny_models.vit().to(torch.bfloat16), tiny_models.image_processor(20))
    batch = subject.prepare(images=noise_image())
    assert batch.tensors["pixel_values"].dtype is torch.float32
    assert subject.forward(batch).logits.dtype is torch.bfloat16


class TwoStreams(nn.Module):
    """A module of nobody's: self-attention on one input, cross-attention to another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(29)
        self.attend = nn.MultiheadAttention(15, 5, batch_first=True)
        self.read = nn.MultiheadAttention(15, 3, batch_first=True)

    def forward(self, x: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return x + self.read(x, memory, memory, need_weights=False)[0]


def test_a_module_of_ones_own_is_observed_on_the_first_tensors_given() -> None:
    subject = load(TwoStreams())
    assert subject.kind == "module"
    with pytest.raises(LoadError, match=r"cannot be guessed.*its own tensors by name \(x, memory"):
        _ = subject.towers
    with pytest.raises(InputError, match="takes no 'y'. It takes: x, memory"):
        subject.prepare(y=torch.zeros(2, 7, 15))
    batch = subject.prepare(x=torch.randn(2, 7, 15), memory=torch.randn(2, 11, 15))
    assert len(batch.examples) == 2
    heads = [site.heads for site in subject.layout.sites]
    assert sorted(heads) == [3, 5]
    assert subject.forward(batch).shape == (2, 7, 15)


def test_an_input_that_the_sample_had_not_is_observed_again() -> None:
    from transformers import TrOCRConfig, TrOCRForCausalLM

    torch.manual_seed(31)
    config = TrOCRConfig(
        vocab_size=31, d_model=12, decoder_layers=2, decoder_attention_heads=3, decoder_ffn_dim=14
    )
    config.cross_attention_hidden_size = 12
    subject = load(TrOCRForCausalLM(config).eval())
    assert set(subject.towers) == {"language"}
    ids = torch.tensor([[5, 6, 7, 8]])
    subject.prepare(input_ids=ids, encoder_hidden_states=torch.randn(1, 7, 12))
    assert set(subject.towers) == {"language", "cross"}
    subject.prepare(input_ids=ids)
    assert set(subject.towers) == {"language", "cross"}


def test_a_cnn_loads_and_has_no_heads(tmp_path: Path) -> None:
    path = tiny_models.saved(tmp_path, tiny_models.resnet(), tiny_models.image_processor(20))
    subject = load(path)
    assert subject.forward(subject.prepare(images=noise_image())).logits.shape == (1, 7)
    with pytest.raises(LoadError, match="has no softmax attention between tokens, so it has no"):
        _ = subject.towers


def test_weights_that_are_not_finite_are_placed_in_tower_and_layer() -> None:
    model = tiny_models.llava()
    language = model.model.language_model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        language[3, 1] = float("inf")
    subject = load(model)
    assert find_nonfinite(model) == ["model.language_model.layers.2.mlp.down_proj.weight"]
    with pytest.raises(LoadError, match=r"hold NaN or infinity in language layer 2: model\.lang"):
        subject.check_weights()
    with torch.no_grad():
        language[3, 1] = 1.0
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(LoadError, match=r"hold NaN or infinity: lm_head\.weight"):
        subject.check_weights()


def test_nan_from_the_first_layer_on_is_named_though_no_tower_can_be_seen() -> None:
    model = tiny_models.gpt2()
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.fill_(float("nan"))
    with pytest.raises(LoadError, match=r"in (language layer 0|layer 0 of transformer\.h): "):
        _ = load(model).towers


def test_large_finite_weights_are_finite() -> None:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, 3e38)
    assert find_nonfinite(layer) == []


def test_what_cannot_be_prepared_is_said() -> None:
    text = load(tiny_models.gpt2(), tiny_models.tokenizer())
    with pytest.raises(InputError, match="There is nothing to prepare"):
        text.prepare()
    with pytest.raises(InputError, match="is a language model and reads no images"):
        text.prepare(text="a", images=noise_image())
    with pytest.raises(InputError, match="Give either text, images and examples, or tensors"):
        text.prepare(text="a", input_ids=torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(InputError, match="Give either text and images, or examples"):
        text.prepare(text="a", examples=[Example("x", text="a")])
    with pytest.raises(InputError, match="has 38 tokens, and the model reads at most 37"):
        text.prepare(text="a " * 38)
    with pytest.raises(InputError, match="must be a tensor with a batch axis"):
        text.prepare(input_ids=torch.tensor(3))


def test_images_and_prompts_pair_up() -> None:
    assert [e.pictures for e in examples_of(None, ["1", "2"])] == [("1",), ("2",)]
    assert [e.pictures for e in examples_of("a", ["1", "2"])] == [("1", "2")]
    assert [e.pictures for e in examples_of(["a", "b"], [["1", "2"], "3"])] == [("1", "2"), ("3",)]
    with pytest.raises(InputError, match="3 prompts must come with 3 images"):
        examples_of(["a", "b", "c"], ["1", "2"])


def test_a_prompt_that_places_its_images_is_taken_literally() -> None:
    (asked,) = examples_of("describe", "1", "<image>")
    (placed,) = examples_of("<image> describe", "1", "<image>")
    assert (asked.question, asked.text) == ("describe", None)
    assert (placed.question, placed.text) == (None, "<image> describe")


def test_training_flags_stay_off_until_the_last_thread_is_done() -> None:
    subject = load(tiny_models.gpt2().train())
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with subject.evaluating():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    with subject.evaluating():
        leave.set()
        thread.join()
        assert not any(module.training for module in subject.model.modules())
    assert all(module.training for module in subject.model.modules())
