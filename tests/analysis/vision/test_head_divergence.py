"""Two forwards of a batch against one prompt at a time, hooked by hand."""

from __future__ import annotations

import math

import pytest
import tiny_models
import torch
from planting import scene

import headscope as hs
from analysis.vision.head_divergence import Reads, answer_reads, head_divergence, t_vhd
from probes.heads import Site
from probes.image_removal import without_image
from probes.inputs import Example, InputError
from probes.subject import Subject
from probes.written_text import continued

TEXTS = ["a b <image> c d", "<image> the cat sat on a mat . ?", "e <image>"]
ANSWERS = ["f g", "h", "i j a"]


def _subject():
    return Subject(tiny_models.llava(), tiny_models.llava_processor())


def _batch(subject, **settings):
    examples = [
        Example(str(i), text=text, image=scene(20 + 3 * i, 25, seed=i), answer=ANSWERS[i])
        for i, text in enumerate(TEXTS)
    ]
    return subject.prepare(examples=examples, **settings)


def _z_by_hand(model, layer, **tensors):
    """What enters the output projection of one layer, as lists by position and head."""
    kept = []
    projection = model.model.language_model.layers[layer].self_attn.o_proj
    handle = projection.register_forward_pre_hook(lambda _, args: kept.append(args[0][0]))
    with torch.no_grad():
        model(**tensors)
    handle.remove()
    return [[position[10 * h : 10 * h + 10].tolist() for h in range(6)] for position in kept[0]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_head_token_and_example_against_a_loop(side):
    """Six query heads on two key heads, three prompts of different lengths."""
    subject = _subject()
    batch = _batch(subject, padding_side=side)
    reads = answer_reads(batch)
    assert reads.example.tolist() == [0, 0, 1, 2, 2, 2]
    ids = batch.tensors["input_ids"][reads.example, reads.position]
    assert subject.tokenizer.convert_ids_to_tokens(ids.tolist()) == list("fghija")
    found = head_divergence(subject, batch, reads)
    assert list(found) == [Site("language", layer) for layer in range(3)]
    read, largest = 0, 0.0
    for row, (text, answer) in enumerate(zip(TEXTS, ANSWERS, strict=True)):
        whole = text.replace("<image>", "<image> " * 16) + " " + answer
        seen_ids = subject.tokenizer(whole)["input_ids"]
        unseen_ids = subject.tokenizer(f"{text.replace('<image>', '')} {answer}")["input_ids"]
        pixels = batch.tensors["pixel_values"][row : row + 1]
        for number in range(len(answer.split())):
            from_end = len(answer.split()) - number + 1  # the position before the token
            for layer in range(3):
                seen = _z_by_hand(
                    subject.model, layer, input_ids=torch.tensor([seen_ids]), pixel_values=pixels
                )[-from_end]
                unseen = _z_by_hand(subject.model, layer, input_ids=torch.tensor([unseen_ids]))
                unseen = unseen[-from_end]
                for head in range(6):
                    gap = math.dist(seen[head], unseen[head])
                    size = math.sqrt(sum(a * a for a in seen[head]))
                    other = math.sqrt(sum(a * a for a in unseen[head]))
                    dot = sum(a * b for a, b in zip(seen[head], unseen[head], strict=True))
                    ours = found[Site("language", layer)]
                    assert float(ours.vhd[read, head]) == pytest.approx(gap, rel=1e-3, abs=1e-6)
                    relative = float(ours.relative[read, head])
                    assert relative == pytest.approx(gap / size, rel=1e-3)
                    cosine = float(ours.cosine[read, head])
                    assert cosine == pytest.approx(1 - dot / size / other, abs=1e-4)
                    largest = max(largest, gap)
            read += 1
    assert read == len(reads) and largest > 1e-3


def test_blank_and_noise_keep_the_positions_and_change_the_pixels_alone():
    subject = _subject()
    batch = _batch(subject)
    reads = answer_reads(batch)
    for how in ("blank", "noise"):
        found = head_divergence(subject, batch, reads, how, seed=5)
        other = without_image(subject, batch, how, seed=5).batch
        seen = hs.capture(subject, batch, z=["language.*"])
        unseen = hs.capture(subject, other, z=["language.*"])
        for site, layer in found.items():
            places = reads.example, reads.position - 1
            gap = (seen.z(str(site))[places] - unseen.z(str(site))[places]).norm(dim=-1)
            torch.testing.assert_close(layer.vhd, gap)
    assert not torch.allclose(
        head_divergence(subject, batch, reads, "noise", 5)[Site("language", 2)].vhd,
        head_divergence(subject, batch, reads, "noise", 6)[Site("language", 2)].vhd,
    )


def test_heads_that_do_not_see_the_image_do_not_diverge():
    """Without the image's keys, and without positions, text heads have nothing to tell apart."""
    subject = _subject()
    batch = _batch(subject)
    reads = answer_reads(batch)
    rotary = subject.model.model.language_model.rotary_emb
    rotary.inv_freq.zero_()
    plain = head_divergence(subject, batch, reads)
    with hs.edit(subject, hs.edits.knock_out("language.*", queries=["text", "bos"], keys="image")):
        blind = head_divergence(subject, batch, reads)
    at_text = [
        0,
        1,
        2,
        4,
        5,
    ]  # the first token of the last answer is predicted at an image position
    for site in plain:
        assert float(blind[site].vhd[at_text].max()) < 1e-5
        assert float(plain[site].vhd[at_text].min(0).values.max()) > 1e-3
        assert float(blind[site].vhd[3].max()) > 1e-3


def test_it_is_two_forwards_without_logits_and_leaves_no_trace():
    subject = _subject()
    batch = _batch(subject)
    before = subject.forward(batch).logits
    runs, widths = [], []

    def count(module, args, output):
        runs.append(1)
        widths.append(output.logits.shape[1])

    handle = subject.model.register_forward_hook(count)
    head_divergence(subject, batch, answer_reads(batch))
    handle.remove()
    assert len(runs) == 2 and widths == [1, 1]
    assert torch.equal(subject.forward(batch).logits, before)
    hooks = [len(module._forward_pre_hooks) for module in subject.model.modules()]
    assert sum(hooks) == 0


def test_the_layers_of_two_batches_are_those_of_one():
    subject = _subject()
    batch = _batch(subject)
    reads = answer_reads(batch)
    whole = head_divergence(subject, batch, reads)
    alone = subject.prepare(examples=[batch.examples[2]])
    single = head_divergence(subject, alone, answer_reads(alone))
    for site in whole:
        torch.testing.assert_close(single[site].vhd, whole[site].vhd[3:], atol=1e-5, rtol=1e-4)


def test_t_vhd_adds_layers_and_own_text_is_read_as_it_was_written():
    subject = _subject()
    prompts = subject.prepare(examples=_batch(subject).examples, answers=False)
    written = subject.generate(prompts, 5, eos_token_id=None)
    whole = continued(subject, prompts, written.ids)
    reads = answer_reads(whole)
    found = head_divergence(subject, whole, reads)
    by_hand = sum(
        layer.vhd.sort(-1, descending=True).values[:, :2].sum(-1) for layer in found.values()
    )
    torch.testing.assert_close(t_vhd(found, 2).float(), by_hand)
    assert torch.equal(
        whole.tensors["input_ids"][reads.example, reads.position],
        torch.cat([row[: int((reads.example == i).sum())] for i, row in enumerate(written.ids)]),
    )


def test_no_tokens_and_no_image():
    subject = _subject()
    batch = _batch(subject)
    none = torch.zeros(0, dtype=torch.long)
    found = head_divergence(subject, batch, Reads(none, none))
    assert found[Site("language", 0)].vhd.shape == (0, 6)
    words = subject.prepare(text=["a b"], chat_template=False)
    with pytest.raises(InputError, match="Example '0' has no image"):
        head_divergence(subject, words, Reads(none, none))
