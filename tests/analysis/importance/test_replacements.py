"""Which donor position each position takes."""

import numpy as np
import pytest
import tiny_models
import torch

import headscope as hs
from analysis.importance.leave_one_out import importance
from analysis.importance.replacements import matched_positions
from analysis.importance.study import StudyOptions
from probes.head_outputs import head_outputs
from probes.heads import Site
from probes.inputs import Example
from probes.subject import Subject


def _image(seed):
    return np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)


def test_every_image_takes_an_image_of_its_own_examples_donor():
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    two = Example("two", images=(_image(0), _image(1)), question="describe", answer="the cat")
    one = Example("one", images=(_image(2),), question="describe", answer="sat")
    batch = subject.prepare(examples=[two, one])
    donors = subject.prepare(examples=[one, two])
    site = Site("vision", 1)
    z, theirs = head_outputs(subject, batch).z[site], head_outputs(subject, donors).z[site]
    index = matched_positions(batch, donors, site, z, theirs)
    rows, length = z.shape[:2]
    assert (rows, theirs.shape[0]) == (3, 3)
    owner_of_donor_row = [0, 1, 1]  # the donors' first example has one image, the second two
    taken = index // length
    for row, example in enumerate([0, 0, 1]):
        assert {owner_of_donor_row[r] for r in taken[row].tolist()} == {example}
    # The class token takes a class token, patches take patches in order.
    assert index[0, 0].item() == 0
    assert torch.equal(index[2] % length, torch.arange(length))


def test_words_take_words_by_number_whatever_side_is_padded():
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    batch = subject.prepare(text=["a b c", "the cat sat on a mat"], padding_side="left")
    donors = subject.prepare(text=["d e f g h", "i j"], padding_side="left")
    site = Site("language", 0)
    z, theirs = head_outputs(subject, batch).z[site], head_outputs(subject, donors).z[site]
    index = matched_positions(batch, donors, site, z, theirs)
    ids, other = batch.tensors["input_ids"], donors.tensors["input_ids"]
    mask = batch.tensors["attention_mask"].bool()
    words = subject.tokenizer.convert_ids_to_tokens
    first = words(other.flatten()[index[0][mask[0]]].tolist())
    second = words(other.flatten()[index[1][mask[1]]].tolist())
    plain = [word for word in first if word not in ("<s>", "<pad>")]
    assert plain == ["d", "e", "f"]
    counted_round = [word for word in second if word not in ("<s>", "<pad>")]
    assert counted_round == ["i", "j", "i", "j", "i", "j"]
    assert ids.shape == index.shape


def test_a_mean_pattern_keeps_the_values_and_equals_the_edit_of_the_pattern():
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    texts = ["a b c d e", "the cat sat on a", "j i h g f", "c c d d e"]
    batches = [subject.prepare(text=texts[:3]), subject.prepare(text=texts[3:])]
    batches[1] = hs.Batch(
        batches[1].tensors, batches[1].tokens, (Example("3", text=texts[3]),), (-1,)
    )
    study = importance(StudyOptions(ablation="mean_pattern", effects=("logit",)))
    study.begin(subject, lambda: batches)
    scores = study.score(subject, batches[0])
    patterns = [
        hs.capture(subject, b, patterns="language.L1").pattern("language.L1") for b in batches
    ]
    mean = torch.cat(patterns).mean(0)[4]

    def averaged(pattern, place):
        rows, keys = place.tile.rows, place.tile.keys
        return mean[rows, :keys].expand_as(pattern)

    ids = batches[0].tensors["input_ids"]

    def logits():
        found = subject.forward(batches[0]).logits
        return found[:, :-1].gather(2, ids[:, 1:, None])[..., 0].sum(1)

    before = logits()
    with hs.edit(subject, hs.edits.edit_pattern("language.L1H4", averaged)):
        after = logits()
    (place,) = [
        i
        for i, c in enumerate(scores.columns)
        if (c.layer, c.head, c.measure) == (1, 4, "importance_logit")
    ]
    expected = (before - after).double()
    torch.testing.assert_close(scores.numerator[:, place], expected, atol=1e-5, rtol=1e-4)
    assert expected.abs().max() > 1e-4


def test_a_mean_pattern_of_inputs_of_several_lengths_is_refused():
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    study = importance(StudyOptions(ablation="mean_pattern"))
    padded = subject.prepare(text=["a b c d", "a b"])
    with pytest.raises(ValueError, match="must be taken over inputs of one length, .*language"):
        study.begin(subject, lambda: [padded])
    one, other = subject.prepare(text=["a b c d"]), subject.prepare(text=["a b"])
    with pytest.raises(ValueError, match="must be taken over inputs of one length"):
        study.begin(subject, lambda: [one, other])
