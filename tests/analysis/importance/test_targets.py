"""Where outputs are read and what should stand there."""

import pytest
import tiny_models
import torch

from analysis.importance.effects import effect_named
from analysis.importance.readings import ReadingError
from analysis.importance.targets import PREDICTED, Reader
from probes.inputs import Example
from probes.subject import Subject


def _image(seed):
    draw = torch.Generator().manual_seed(seed)
    return (torch.rand(20, 20, 3, generator=draw) * 255).byte().numpy()


def _reader(subject, *batches, **settings):
    return Reader(subject, lambda: batches, **settings)


def test_every_word_but_the_first_is_predicted_and_padding_is_not():
    subject = Subject(tiny_models.gpt2(), tiny_models.tokenizer())
    for side in ("right", "left"):
        batch = subject.prepare(text=["a b c", "the cat sat on"], padding_side=side)
        reading = _reader(subject, batch).reading(batch)
        ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"]
        lengths = mask.sum(-1).tolist()
        assert reading.counts.tolist() == [n - 1 for n in lengths]
        expected = [ids[row][mask[row].bool()][1:].tolist() for row in range(2)]
        for row in range(2):
            mine = reading.example == row
            assert reading.target[mine].tolist() == expected[row]
            # A position predicts the one behind it.
            assert torch.equal(ids[row, reading.position[mine] + 1], reading.target[mine])


def test_only_the_answer_is_read_where_there_is_one_and_the_picture_never():
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    examples = [
        Example("0", image=_image(0), question="describe", answer="the cat"),
        Example("1", image=_image(1), question="describe image", answer="sat on a mat"),
    ]
    batch = subject.prepare(examples=examples)
    reading = _reader(subject, batch).reading(batch)
    assert reading.counts.tolist() == [2, 4]
    tokenizer = subject.tokenizer
    words = tokenizer.convert_ids_to_tokens(reading.target.tolist())
    assert words == ["the", "cat", "sat", "on", "a", "mat"]
    unanswered = [Example("0", image=_image(0), question="describe")]
    batch = subject.prepare(examples=unanswered)
    reading = _reader(subject, batch).reading(batch)
    assert 4 not in reading.target.tolist()


def test_shuffled_targets_are_wrong_ones_of_the_same_example_whatever_the_batch():
    subject = Subject(tiny_models.gpt2(), tiny_models.tokenizer())
    examples = [
        Example("x", text="a b c d e"),
        Example("y", text="cat cat cat"),
        Example("z", text="a b a b a"),
    ]
    whole = subject.prepare(examples=examples)
    reader = _reader(subject, whole)
    together = reader.reading(whole)
    assert bool((together.shuffled != together.target).all())
    for row, example in enumerate(examples):
        alone = reader.reading(subject.prepare(examples=[example]))
        mine = together.example == row
        assert together.shuffled[mine].tolist() == alone.shuffled.tolist()
        own = set(together.target[mine].tolist())
        if len(own) > 1:
            assert set(together.shuffled[mine].tolist()) <= own


def test_labels_may_be_numbers_words_or_another_field():
    model = tiny_models.vit(id2label={i: f"kind{i}" for i in range(7)})
    subject = Subject(model, tiny_models.image_processor(20))
    examples = [
        Example("0", image=_image(0), label=3, extra={"other": "kind1"}),
        Example("1", image=_image(1), label="kind6", extra={"other": 5}),
    ]
    batch = subject.prepare(examples=examples)
    reading = _reader(subject, batch).reading(batch)
    assert reading.target.tolist() == [3, 6]
    assert bool((reading.shuffled != reading.target).all())
    other = _reader(subject, batch, label="other").reading(batch)
    assert other.target.tolist() == [1, 5]
    with pytest.raises(ReadingError, match="Example '0' must have a 'nothing' for this effect"):
        reader = _reader(subject, batch, label="nothing")
        assert not reader.known_targets
        reader.known_targets = True
        reader.reading(batch)


def test_a_class_is_told_from_the_wrong_one_that_the_data_names():
    model = tiny_models.vit(id2label={i: f"kind{i}" for i in range(7)})
    subject = Subject(model, tiny_models.image_processor(20))
    examples = [
        Example("0", image=_image(0), label=3, wrong="kind5"),
        Example("1", image=_image(1), label="kind6"),
    ]
    batch = subject.prepare(examples=examples)
    reading = _reader(subject, batch).reading(batch)
    assert reading.wrong.tolist() == [5, -1]
    logits = subject.forward(batch).logits
    margin = effect_named("margin").objective(logits, reading.target[:, None], reading.wrong)
    best_other = logits[1].topk(2).values[1 if logits[1].argmax() == 6 else 0]
    expected = torch.stack([logits[0, 3] - logits[0, 5], logits[1, 6] - best_other])
    assert torch.allclose(margin[:, 0], expected, atol=1e-6)
    with pytest.raises(ReadingError, match="The 'wrong' of example '2' must be a class"):
        bad = subject.prepare(examples=[Example("2", image=_image(2), label=1, wrong=9)])
        _reader(subject, batch).reading(bad)


def test_predicted_takes_what_the_intact_model_says():
    subject = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    batch = subject.prepare(images=[_image(0), _image(1)])
    reader = _reader(subject, batch, label=PREDICTED)
    assert reader.known_targets
    output = subject.forward(batch)
    reading = reader.reading(batch)
    reading = reader.predicted(reading, batch, reading.of(output))
    assert reading.target.tolist() == output.logits.argmax(-1).tolist()


def test_a_masked_language_model_has_logits_but_nothing_to_be_right_about():
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=31, hidden_size=12, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=14, max_position_embeddings=37, pad_token_id=0,
    )  # fmt: skip
    subject = Subject(BertForMaskedLM(config).eval(), tiny_models.tokenizer())
    batch = subject.prepare(text=["a b c", "the cat"])
    reader = _reader(subject, batch)
    assert (reader.kind, reader.known_targets) == ("tokens", False)
    read = reader.reading(batch).of(subject.forward(batch))
    assert read.shape[1] == 31


def test_an_encoder_decoder_reads_the_answer_in_the_decoder():
    subject = Subject(tiny_models.t5(), tiny_models.tokenizer())
    examples = [Example("0", text="a b c", answer="d e"), Example("1", text="a", answer="cat")]
    batch = subject.prepare(examples=examples)
    reading = _reader(subject, batch).reading(batch)
    words = subject.tokenizer.convert_ids_to_tokens(reading.target.tolist())
    assert words == ["d", "e", "cat"]
    assert reading.position.tolist() == [0, 1, 0]


def test_clip_gives_a_vector_per_tower_and_zero_shot_classes_from_word_labels():
    processor = _clip_processor()
    subject = Subject(tiny_models.clip(), processor)
    examples = [Example(str(i), image=_image(i), text="a cat") for i in range(2)]
    batch = subject.prepare(examples=examples)
    reader = _reader(subject, batch)
    assert (reader.kind, reader.known_targets) == ("features", False)
    output = subject.forward(batch)
    reading = reader.reading(batch)
    assert torch.equal(reading.of(output, tower="vision"), output.image_embeds)
    assert torch.equal(reading.of(output, tower="language"), output.text_embeds)
    labelled = [
        Example(str(i), image=_image(i), text="a cat", label=word)
        for i, word in enumerate(["cat", "mat", "cat"])
    ]
    batch = subject.prepare(examples=labelled)
    reader = _reader(subject, batch)
    assert (reader.kind, reader.known_targets, reader.classes) == ("class", True, 2)
    reading = reader.reading(batch)
    assert reading.target.tolist() == [0, 1, 0]
    texts = [
        subject.forward(
            subject.prepare(text=f"a photo of a {word}", images=[_image(0)])
        ).text_embeds
        for word in ("cat", "mat")
    ]
    output = subject.forward(batch)
    unit = torch.nn.functional.normalize(output.image_embeds, dim=-1)
    words = torch.nn.functional.normalize(torch.cat(texts), dim=-1)
    expected = subject.model.logit_scale.exp() * unit @ words.T
    torch.testing.assert_close(reading.of(output), expected.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_model_of_text_without_a_head_is_read_where_it_knows_the_whole_text(side):
    from transformers import BertConfig, BertModel, LlamaModel

    torch.manual_seed(3)
    settings = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3}
    config = BertConfig(vocab_size=31, intermediate_size=14, pad_token_id=0, **settings)
    causal = LlamaModel(tiny_models.llama_config()).eval()
    for model, place in ((causal, -1), (BertModel(config, add_pooling_layer=False).eval(), 0)):
        subject = Subject(model, tiny_models.tokenizer())
        texts = ["a b c", "the cat sat on a mat"]
        batch = subject.prepare(text=texts, padding_side=side)
        reader = _reader(subject, batch)
        assert (reader.kind, reader.known_targets) == ("features", False)
        found = reader.reading(batch).of(subject.forward(batch), tower="language")
        for row, text in enumerate(texts):
            ids = torch.tensor([subject.tokenizer(text)["input_ids"]])
            alone = model(ids).last_hidden_state[0, place].detach()
            torch.testing.assert_close(found[row], alone, atol=1e-5, rtol=1e-5)


def test_a_model_of_images_without_cls_is_read_as_the_mean_of_its_patches():
    from transformers import PvtV2Config, PvtV2Model

    torch.manual_seed(3)
    config = PvtV2Config(
        hidden_sizes=[6, 10], depths=[1, 1], num_attention_heads=[1, 2], sr_ratios=[2, 1],
        num_encoder_blocks=2, patch_sizes=[3, 3], strides=[2, 2], mlp_ratios=[2, 2],
    )  # fmt: skip
    subject = Subject(PvtV2Model(config).eval())
    batch = subject.prepare(pixel_values=torch.randn(2, 3, 24, 32))
    output = subject.forward(batch)
    assert output.last_hidden_state.shape == (2, 10, 6, 8)
    found = _reader(subject, batch).reading(batch).of(output, tower="vision")
    assert torch.allclose(found, output.last_hidden_state.mean((2, 3)), atol=1e-6)
    # The same for a sequence; with a class token it is that token.
    for name, place in (("vit", 0), ("siglip", None)):
        model = _backbone(name)
        subject = Subject(model)
        batch = subject.prepare(pixel_values=torch.randn(2, 3, 20, 20))
        output = subject.forward(batch)
        found = _reader(subject, batch).reading(batch).of(output, tower="vision")
        sequence = output.last_hidden_state
        expected = sequence.mean(1) if place is None else sequence[:, place]
        assert torch.allclose(found, expected, atol=1e-6)


def _backbone(name):
    from transformers import SiglipVisionConfig, SiglipVisionModel, ViTConfig, ViTModel

    settings = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3}
    settings |= {"intermediate_size": 14, "image_size": 20, "patch_size": 5}
    if name == "vit":
        return ViTModel(ViTConfig(**settings), add_pooling_layer=False).eval()
    return SiglipVisionModel(SiglipVisionConfig(**settings, vision_use_head=False)).eval()


def test_a_listener_that_writes_is_read_in_its_decoder():
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(3)
    config = WhisperConfig(
        vocab_size=31, num_mel_bins=6, d_model=12, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=3, decoder_attention_heads=3, encoder_ffn_dim=14,
        decoder_ffn_dim=14, max_source_positions=10, max_target_positions=20,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    subject = Subject(WhisperForConditionalGeneration(config).eval())
    batch = subject.prepare(
        input_features=torch.randn(2, 6, 20), decoder_input_ids=torch.tensor([[1, 9, 7]] * 2)
    )
    reader = _reader(subject, batch)
    assert (reader.kind, reader.known_targets) == ("tokens", False)
    reading = reader.reading(batch)
    assert reading.position.tolist() == [0, 1, 0, 1]
    assert reading.of(subject.forward(batch)).shape == (4, 31)


def test_classes_of_words_are_no_next_words():
    from transformers import LlamaForTokenClassification

    torch.manual_seed(3)
    model = LlamaForTokenClassification(tiny_models.llama_config(num_labels=5)).eval()
    subject = Subject(model, tiny_models.tokenizer())
    batch = subject.prepare(text=["a b c", "the cat"])
    reader = _reader(subject, batch)
    assert (reader.kind, reader.known_targets, reader.classes) == ("tokens", False, 5)
    assert reader.reading(batch).target.tolist() == [-1] * 3


def _clip_processor():
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}
    )
    return CLIPProcessor(image_processor=pictures, tokenizer=tiny_models.tokenizer())
