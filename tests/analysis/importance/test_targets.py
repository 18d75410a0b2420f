"""Where outputs are read and what should stand there."""

import pytest
import tiny_models
import torch

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
    with pytest.raises(ReadingError, match="'nothing' of|must have a 'nothing'|has no"):
        reader = _reader(subject, batch, label="nothing")
        assert not reader.known_targets
        reader.known_targets = True
        reader.reading(batch)


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


def _clip_processor():
    from transformers import CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 20}, crop_size={"height": 20, "width": 20}
    )
    return CLIPProcessor(image_processor=pictures, tokenizer=tiny_models.tokenizer())
