"""The exact study against the naive loop, on models of every kind."""

import pytest
import tiny_models
import torch

import headscope as hs
from analysis.importance.effects import EFFECTS
from analysis.importance.leave_one_out import importance, keep_one
from analysis.importance.study import StudyOptions
from analysis.tally import Tally
from probes.heads import Site
from probes.inputs import Example
from probes.subject import Subject

TEXTS = ["a b c d e f", "the cat sat on a mat .", "c c d", "j i h g f e d c b a"]


def _text_subject(model, side="right"):
    return Subject(model, tiny_models.tokenizer(side))


def _examples(texts):
    return [Example(str(i), text=text) for i, text in enumerate(texts)]


def _batches(subject, examples, size, **settings):
    groups = [examples[i : i + size] for i in range(0, len(examples), size)]
    return [subject.prepare(examples=group, **settings) for group in groups]


def _score(study, subject, batches):
    study.begin(subject, lambda: batches)
    return [study.score(subject, batch) for batch in batches]


def _table(scores):
    tally = Tally(replicates=20)
    for part in scores:
        tally.add(part)
    return tally.heads()


def _naive_losses(subject, batch):
    """Mean loss per token of each example, by transformers' own shift and torch's own loss."""
    output = subject.forward(batch)
    ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"]
    losses = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none"
    )
    real = (mask[:, 1:] * mask[:, :-1]).bool()
    return [float(losses[row][real[row]].mean()) for row in range(ids.shape[0])]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [tiny_models.gpt2, tiny_models.llama])
def test_zero_ablation_equals_the_loop_of_whole_forwards(make, side):
    subject = _text_subject(make(), side)
    batch = subject.prepare(text=TEXTS, padding_side=side, chat_template=False)
    (scores,) = _score(importance(StudyOptions(ablation="zero")), subject, [batch])
    before = _naive_losses(subject, batch)
    column = {
        (c.layer, c.head): (scores.numerator[:, i] / scores.denominator[:, i])
        for i, c in enumerate(scores.columns)
        if c.measure == "importance_cross_entropy"
    }
    layers, heads = len(subject.towers["language"].sites), subject.towers["language"].heads
    assert len(column) == layers * heads
    for (layer, head), ours in column.items():
        with hs.edit(subject, hs.edits.zero(f"language.L{layer}H{head}")):
            after = _naive_losses(subject, batch)
        expected = torch.tensor([b - a for a, b in zip(before, after, strict=True)]).double()
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)
    assert max(float(v.abs().max()) for v in column.values()) > 1e-4


def test_mean_ablation_puts_the_mean_over_all_real_positions_of_the_data():
    subject = _text_subject(tiny_models.llama())
    batches = _batches(subject, _examples(TEXTS), 2, padding_side="right")
    study = importance(StudyOptions(ablation="mean"))
    scores = _score(study, subject, batches)
    capture = [hs.capture(subject, batch, z=["language.L1"]) for batch in batches]
    rows = [
        one.z("language.L1")[row][batch.tensors["attention_mask"][row].bool()]
        for one, batch in zip(capture, batches, strict=True)
        for row in range(batch.size)
    ]
    mean = torch.cat(rows).mean(0)
    torch.testing.assert_close(study.replacement.mean(Site("language", 1)).float(), mean)
    with hs.edit(subject, hs.edits.mean("language.L1H4", {"language.L1H4": mean[4]})):
        after = _naive_losses(subject, batches[1])
    before = _naive_losses(subject, batches[1])
    (place,) = [
        i
        for i, c in enumerate(scores[1].columns)
        if (c.layer, c.head, c.measure) == (1, 4, "importance_cross_entropy")
    ]
    ours = scores[1].numerator[:, place] / scores[1].denominator[:, place]
    expected = torch.tensor([b - a for a, b in zip(before, after, strict=True)]).double()
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)


def test_batch_size_and_padding_side_change_little():
    subject = _text_subject(tiny_models.llama())
    options = StudyOptions(ablation="mean")
    frames = []
    for size, side in ((1, "right"), (4, "right"), (4, "left"), (3, "left")):
        batches = _batches(subject, _examples(TEXTS), size, padding_side=side)
        table = _table(_score(importance(options), subject, batches))
        frames.append(table.grid("importance_cross_entropy"))
    for other in frames[1:]:
        torch.testing.assert_close(
            torch.tensor(frames[0]), torch.tensor(other), atol=2e-6, rtol=1e-5
        )


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_in_one_batch_change_nothing(copies):
    subject = _text_subject(tiny_models.llama())
    batches = _batches(subject, _examples(TEXTS), 3)
    one = _table(_score(importance(StudyOptions()), subject, batches))
    many = _table(_score(importance(StudyOptions(copies=copies)), subject, batches))
    torch.testing.assert_close(
        torch.tensor(one.grid("importance_cross_entropy")),
        torch.tensor(many.grid("importance_cross_entropy")),
        atol=2e-6,
        rtol=1e-5,
    )


def test_answers_are_what_is_read_where_there_are_answers():
    subject = _text_subject(tiny_models.llama())
    examples = [
        Example("x", question="a b c d", answer="e f"),
        Example("y", question="the cat", answer="sat on a"),
    ]
    batch = subject.prepare(examples=examples, chat_template=False)
    (scores,) = _score(importance(StudyOptions(ablation="zero")), subject, [batch])
    assert scores.denominator[:, 0].tolist() == [2.0, 3.0]


def test_a_classifier_reads_labels_and_its_null_is_another_class():
    subject = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    torch.manual_seed(0)
    examples = [
        Example(str(i), image=(torch.rand(20, 20, 3) * 255).byte().numpy(), label=i % 7)
        for i in range(5)
    ]
    batch = subject.prepare(examples=examples)
    options = StudyOptions(effects=("probability", "flip", "layer_cosine"), ablation="zero")
    (scores,) = _score(importance(options), subject, [batch])
    before = subject.forward(batch).logits.softmax(-1)
    place = {(c.layer, c.head, c.measure): i for i, c in enumerate(scores.columns)}
    for layer in (0, 1):
        for head in range(3):
            with hs.edit(subject, hs.edits.zero(f"vision.L{layer}H{head}")):
                after = subject.forward(batch).logits.softmax(-1)
            index = place[layer, head, "importance_probability"]
            rows = torch.arange(5)
            labels = torch.tensor([e.label for e in examples])
            expected = (before[rows, labels] - after[rows, labels]).double()
            torch.testing.assert_close(scores.numerator[:, index], expected, atol=1e-6, rtol=1e-4)
            flips = (before.argmax(-1) != after.argmax(-1)).double()
            assert torch.equal(scores.numerator[:, place[layer, head, "importance_flip"]], flips)
    null = scores.null_numerator[:, place[0, 0, "importance_probability"]]
    assert not torch.equal(null, scores.numerator[:, place[0, 0, "importance_probability"]])


def test_layer_cosine_is_the_cosine_of_the_class_token_behind_the_block():
    subject = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    torch.manual_seed(1)
    images = [(torch.rand(20, 20, 3) * 255).byte().numpy() for _ in range(3)]
    batch = subject.prepare(images=images)
    options = StudyOptions(effects=("layer_cosine",), ablation="zero")
    (scores,) = _score(importance(options), subject, [batch])
    states = subject.forward(batch, output_hidden_states=True).hidden_states
    with hs.edit(subject, hs.edits.zero("vision.L0H2")):
        changed = subject.forward(batch, output_hidden_states=True).hidden_states
    expected = 1 - torch.cosine_similarity(
        states[1][:, 0].double(), changed[1][:, 0].double(), dim=-1
    )
    (place,) = [
        i
        for i, c in enumerate(scores.columns)
        if (c.layer, c.head, c.measure) == (0, 2, "importance_layer_cosine")
    ]
    torch.testing.assert_close(scores.numerator[:, place], expected, atol=1e-6, rtol=1e-4)


def test_keep_one_takes_all_others_of_the_layer_away():
    subject = _text_subject(tiny_models.gpt2())
    batch = subject.prepare(text=TEXTS[:2], chat_template=False)
    (scores,) = _score(keep_one(StudyOptions(ablation="zero")), subject, [batch])
    with hs.edit(subject, hs.edits.zero(["language.L1H0", "language.L1H2"])):
        after = _naive_losses(subject, batch)
    before = _naive_losses(subject, batch)
    (place,) = [i for i, c in enumerate(scores.columns) if (c.layer, c.head) == (1, 1)]
    ours = scores.numerator[:, place] / scores.denominator[:, place]
    expected = torch.tensor([b - a for a, b in zip(before, after, strict=True)]).double()
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)


def test_the_first_word_of_a_uniform_pattern_is_the_mean_of_allowed_values():
    subject = _text_subject(tiny_models.llama())
    batch = subject.prepare(text=TEXTS, padding_side="left", chat_template=False)
    (scores,) = _score(importance(StudyOptions(ablation="uniform")), subject, [batch])
    before = _naive_losses(subject, batch)

    def flat(pattern, place):
        allowed = place.call.allowed(place.tile.batch, place.tile.rows, place.tile.keys).float()
        return (allowed / allowed.sum(-1, keepdim=True).clamp_min(1)).expand_as(pattern)

    with hs.edit(subject, hs.edits.edit_pattern("language.L2H3", flat)):
        after = _naive_losses(subject, batch)
    (place,) = [
        i
        for i, c in enumerate(scores.columns)
        if (c.layer, c.head, c.measure) == (2, 3, "importance_cross_entropy")
    ]
    ours = scores.numerator[:, place] / scores.denominator[:, place]
    expected = torch.tensor([b - a for a, b in zip(before, after, strict=True)]).double()
    torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-4)


def test_knock_out_by_role_equals_the_edit():
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    torch.manual_seed(2)
    pictures = [(torch.rand(20, 20, 3) * 255).byte().numpy() for _ in range(2)]
    examples = [
        Example(str(i), image=picture, question="describe", answer="the cat sat")
        for i, picture in enumerate(pictures)
    ]
    batch = subject.prepare(examples=examples)
    options = StudyOptions(ablation="knock_out:text->image", effects=("logit",))
    (scores,) = _score(importance(options), subject, [batch])
    starts, ids = batch.answer_starts, batch.tensors["input_ids"]

    def logits():
        found = subject.forward(batch).logits
        return [
            float(sum(found[row, t - 1, ids[row, t]] for t in range(start, ids.shape[1])))
            for row, start in enumerate(starts)
        ]

    before = logits()
    with hs.edit(subject, hs.edits.knock_out("language.L1H2", "text", "image")):
        after = logits()
    (place,) = [
        i
        for i, c in enumerate(scores.columns)
        if (c.tower, c.layer, c.head, c.measure) == ("language", 1, 2, "importance_logit")
    ]
    expected = torch.tensor([b - a for b, a in zip(before, after, strict=True)]).double()
    torch.testing.assert_close(scores.numerator[:, place], expected, atol=1e-5, rtol=1e-4)
    assert {column.tower for column in scores.columns} == {"language"}
    assert "finds no such queries and keys" in scores.reasons["vision", "importance_logit"]


def test_resample_takes_another_example_position_by_position():
    subject = _text_subject(tiny_models.llama())
    texts = ["a b c d e f", "f e d c b a", "the cat sat on a mat"]
    batches = _batches(subject, _examples(texts), 3)
    options = StudyOptions(ablation="resample", draws=2, effects=("cross_entropy",))
    (scores,) = _score(importance(options), subject, batches)
    (batch,) = batches
    z = hs.capture(subject, batch, z=["language.L0"]).z("language.L0")[:, :, 1]
    before = torch.tensor(_naive_losses(subject, batch))
    total = torch.zeros(3)
    for shift in (1, 2):  # with three examples two draws are both others, in some order
        with hs.edit(
            subject, hs.edits.replace("language.L0H1", {"language.L0H1": z.roll(shift, 0)})
        ):
            total += torch.tensor(_naive_losses(subject, batch)) - before
    (place,) = [
        i
        for i, c in enumerate(scores.columns)
        if (c.layer, c.head, c.measure) == (0, 1, "importance_cross_entropy")
    ]
    ours = scores.numerator[:, place] / scores.denominator[:, place]
    torch.testing.assert_close(ours.float(), total / 2, atol=2e-6, rtol=1e-4)


def test_what_cannot_be_done_is_a_sentence():
    subject = _text_subject(tiny_models.llama())
    few = _batches(subject, _examples(TEXTS[:3]), 3)
    with pytest.raises(ValueError, match="at least 6 examples, got 3"):
        importance(StudyOptions(ablation="resample")).begin(subject, lambda: few)
    with pytest.raises(ValueError, match="An ablation must be one of zero, .*got 'noise'"):
        StudyOptions(ablation="noise")
    with pytest.raises(ValueError, match="compares vectors, and this model gives logits"):
        importance(StudyOptions(effects=("cosine",))).begin(subject, lambda: few)
    vit = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    image = (torch.rand(20, 20, 3) * 255).byte().numpy()
    bare = [vit.prepare(examples=[Example("0", image=image)])]
    with pytest.raises(ValueError, match="the data has no 'label'"):
        importance(StudyOptions(effects=("probability",))).begin(vit, lambda: bare)
    wrong = [vit.prepare(examples=[Example("0", image=image, label=7)])]
    study = importance(StudyOptions())
    study.begin(vit, lambda: wrong)
    with pytest.raises(ValueError, match="must be a class of the model \\(0 to 6: .*got 7"):
        study.score(vit, wrong[0])


def test_nan_in_the_output_names_the_layer():
    model = tiny_models.llama()
    subject = _text_subject(model)
    batch = subject.prepare(text=TEXTS, chat_template=False)
    with torch.no_grad():  # finite weights that overflow on the way
        model.model.layers[1].self_attn.v_proj.weight.fill_(3e38)
    study = importance(StudyOptions(ablation="zero"))
    study.begin(subject, lambda: [batch])
    with pytest.raises(
        ValueError,
        match="must be finite, got NaN or infinity, first in the head outputs of language.L1",
    ):
        study.score(subject, batch)


def test_without_labels_the_effect_is_the_divergence_and_its_null_the_other_heads():
    vit = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    images = [(torch.rand(20, 20, 3) * 255).byte().numpy() for _ in range(2)]
    batch = vit.prepare(images=images)
    study = importance(StudyOptions(ablation="zero"))
    (scores,) = _score(study, vit, [batch])
    assert [effect.name for effect in study.effects] == ["jsd"]
    mine = [i for i, c in enumerate(scores.columns) if c.measure == "importance_jsd"]
    value = scores.numerator[:, mine].reshape(2, 2, 3)
    others = (value.sum(2, keepdim=True) - value) / 2
    torch.testing.assert_close(scores.null_numerator[:, mine].reshape(2, 2, 3), others)
    assert set(EFFECTS) >= {"jsd"}


def test_an_example_without_an_image_does_not_count_for_vision_heads():
    from PIL import Image

    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    picture = Image.effect_noise((20, 20), 90).convert("RGB")
    examples = [
        Example("0", question="describe the image", image=picture, answer="a cat sat"),
        Example("1", question="the cat sat on", answer="a mat"),
    ]
    options = StudyOptions(ablation="zero")
    found = []
    for size in (1, 2):
        scores = _score(importance(options), subject, _batches(subject, examples, size))
        frame = _table(scores).frame
        frame = frame[frame["measure"] == "importance_cross_entropy"]
        found.append(frame.set_index(["tower", "layer", "head"]))
    one, both = found
    assert both["n"].groupby("tower").first().to_dict() == {"language": 2, "vision": 1}
    assert both["value"].to_dict() == pytest.approx(one["value"].to_dict(), abs=1e-5)


@pytest.mark.parametrize("copies", [1, 3])
def test_the_only_head_of_a_layer_has_no_others_to_take_away(copies):
    model = tiny_models.llama(num_attention_heads=1, num_key_value_heads=1)
    subject = _text_subject(model)
    batches = _batches(subject, _examples(TEXTS), 2)
    options = StudyOptions(effects=("cross_entropy", "layer_cosine"), copies=copies)
    table = _table(_score(keep_one(options), subject, batches))
    assert table.grid("keep_one_cross_entropy").ravel().tolist() == [0, 0, 0]
    assert abs(table.grid("keep_one_layer_cosine")).max() < 1e-12


@pytest.mark.parametrize("ablation", ["knock_out:text->image", "mean"])
def test_a_text_without_an_image_counts_as_little_in_a_batch_with_images_as_alone(ablation):
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    draw = torch.Generator().manual_seed(3)
    image = (torch.rand(20, 20, 3, generator=draw) * 255).byte().numpy()
    examples = [
        Example("0", question="a b c", image=image, answer="d e"),
        Example("1", question="the cat", answer="sat"),
        Example("2", question="describe", image=255 - image, answer="a mat ."),
    ]
    options = StudyOptions(effects=("cross_entropy", "layer_cosine"), ablation=ablation)
    tables = [
        _table(_score(importance(options), subject, _batches(subject, examples, size)))
        for size in (1, 3)
    ]
    tower = "vision" if ablation == "mean" else "language"
    for name in ("importance_cross_entropy", "importance_layer_cosine"):
        alone, together = (table.lines(name, tower=tower) for table in tables)
        assert alone["n"].unique().tolist() == together["n"].unique().tolist() == [2]
        values = [torch.tensor(table["value"].to_numpy()) for table in (alone, together)]
        torch.testing.assert_close(*values, atol=2e-6, rtol=1e-5)


def test_a_donor_without_an_image_is_a_sentence():
    from PIL import Image

    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    picture = Image.effect_noise((20, 20), 90).convert("RGB")
    examples = [
        Example("0", question="describe the image", image=picture, answer="a cat sat"),
        Example("1", question="the cat sat on", answer="a mat"),
    ]
    batches = _batches(subject, examples, 1)
    with pytest.raises(ValueError, match="The donor of example '0' must have positions in vision"):
        _score(importance(StudyOptions(ablation="resample", draws=1)), subject, batches)
