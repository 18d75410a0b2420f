"""Which donor position each position takes."""

import numpy as np
import tiny_models
import torch

from analysis.importance.replacements import matched_positions
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
