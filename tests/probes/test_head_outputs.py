"""What heads give out in a forward whose logits nobody reads."""

import pytest
import tiny_models
import torch
from PIL import Image

from probes.head_outputs import head_outputs
from probes.replay import logits_unread
from probes.subject import Subject


class Positions:
    """Of how many positions an unembedding gave logits, forward by forward."""

    def __init__(self, module):
        self.seen = []
        self.handle = module.register_forward_hook(lambda m, args, out: self.seen.append(out.shape))

    @property
    def most(self):
        return max(shape[1] for shape in self.seen)


def _text():
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    return subject, subject.prepare(text=["a b c d e", "the cat"]), subject.model.lm_head


def _picture():
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    image = Image.effect_noise((20, 20), 60).convert("RGB")
    batch = subject.prepare(text=["describe the image"], images=[[image]])
    return subject, batch, subject.model.lm_head


@pytest.mark.parametrize("made", [_text, _picture])
def test_the_unembedding_sees_one_position_and_z_is_what_it_was(made):
    subject, batch, unembedding = made()
    sites = [site.site for site in subject.layout.sites]
    expected = {}
    for site in sites:
        projection = subject.model.get_submodule(subject.layout.anatomy.projections[site].path)
        projection.register_forward_pre_hook(
            lambda m, args, site=site: expected.setdefault(site, args[0].clone())
        )
    logits_unread(subject, batch)  # found out once for each model
    expected.clear()
    subject.forward(batch)
    positions = Positions(unembedding)
    found = head_outputs(subject, batch)
    assert positions.most == 1 and len(positions.seen) == 1
    assert list(found.z) == sites
    for site, z in found.z.items():
        assert torch.equal(z.flatten(2), expected[site])


def test_z_is_put_elsewhere_layer_by_layer_as_a_copy():
    subject, batch, _ = _text()
    found = head_outputs(subject, batch, device="meta")
    assert {z.device.type for z in found.z.values()} == {"meta"}
    here, again = head_outputs(subject, batch), head_outputs(subject, batch, device="cpu")
    for site, z in here.z.items():
        assert torch.equal(z, again.z[site]) and z.data_ptr() != again.z[site].data_ptr()


def test_models_that_give_all_logits_are_left_alone():
    subject = Subject(tiny_models.vit(), tiny_models.image_processor(20))
    batch = subject.prepare(images=[Image.effect_noise((20, 20), 60).convert("RGB")])
    assert logits_unread(subject, batch) == {}
    assert list(head_outputs(subject, batch).z) == [site.site for site in subject.layout.sites]
