"""AGLA against a loop without cache or batch, and its saliency against eager gradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import seeing_batches as seen
import torch
from torch import Tensor

from analysis.vision.gradient_attention import gradient_attention
from analysis.vision.methods.agla import agla, ensembled
from probes import edits
from probes.edits.apply import edit
from probes.heads import Site
from probes.subject import Subject
from probes.tap import TapError


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


def _saliency(model: Any, tensors: dict[str, Tensor], layers: list[int]) -> list[float]:
    """G of the 16 image positions of one prompt, from the eager model's own attention."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")
    made = twin(**tensors, output_attentions=True, use_cache=False)
    best = made.logits[0, -1].log_softmax(-1).max()
    maps = [made.attentions[layer] for layer in layers]
    slopes = torch.autograd.grad(best, maps)
    image = (tensors["input_ids"][0] == 4).nonzero()[:, 0].tolist()
    length = tensors["input_ids"].shape[1]
    found = []
    for key in image:
        total = 0.0
        for weights, slope in zip(maps, slopes, strict=True):
            for head in range(6):
                for query in range(image[-1] + 1, length):
                    rise = float(slope[0, head, query, key])
                    total += float(weights[0, head, query, key].detach()) * max(rise, 0.0)
        found.append(total / (len(layers) * 6 * (length - image[-1] - 1)))
    return found


def _masked(pixels: Tensor, saliency: list[float], keep: int) -> Tensor:
    order = sorted(range(16), key=lambda patch: -saliency[patch])
    new = pixels.clone()
    for patch in order[keep:]:
        row, column = divmod(patch, 4)
        new[:, :, 5 * row : 5 * row + 5, 5 * column : 5 * column + 5] = 0.0
    return new


def test_saliency_equals_gradients_of_the_eager_model(subject: Subject) -> None:
    sites = [Site("language", 0), Site("language", 1)]
    found = gradient_attention(subject, seen.three(subject), sites).reshape(3, 16)
    for row, tensors in enumerate(seen.alone(subject)):
        expected = _saliency(subject.model, tensors, [0, 1])
        assert found[row].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-9)
        assert max(expected) > 1e-5


def test_an_image_at_the_end_is_asked_for_by_its_last_position(subject: Subject) -> None:
    batch = subject.prepare(["a b <image>"], [seen.pictures()[0]])
    found = gradient_attention(subject, batch, [Site("language", 1)])
    assert found.shape == (16,) and float(found.max()) > 0


def test_generation_equals_a_loop_without_batch_or_cache(subject: Subject) -> None:
    alpha, beta = 1.5, 0.9
    with edit(subject, agla(alpha, beta, keep=0.55)) as (report,):
        ids = subject.generate(seen.three(subject), 4, eos_token_id=None, suppress_tokens=[4]).ids
    cut = 0
    for row, tensors in enumerate(seen.alone(subject)):
        masked = _masked(tensors["pixel_values"], _saliency(subject.model, tensors, [1]), 9)
        prompt, written = tensors["input_ids"], []
        for _ in range(4):
            with torch.no_grad():
                whole, part = (
                    subject.model(input_ids=prompt, pixel_values=pixels).logits[0, -1].tolist()
                    for pixels in (tensors["pixel_values"], masked)
                )
            whole[4] = -math.inf
            least = max(whole) + math.log(beta)
            sums = {
                word: whole[word] + alpha * part[word] for word in range(31) if whole[word] >= least
            }
            cut += 31 - len(sums)
            written.append(max(sums, key=lambda word: sums[word]))
            prompt = torch.cat([prompt, torch.tensor([[written[-1]]])], dim=1)
        assert ids[row].tolist() == written
    assert cut > 0, "the cut took words away"
    assert (report.fired, report.touched) == (4, 12)
    assert report.label == "agla(alpha=1.5, keep=0.55)"


def test_the_ensemble_by_hand() -> None:
    """log .5 = -.69: of 3, 2.4, 2 and 1 the last two are implausible."""
    scores = torch.tensor([[3.0, 2.4, 2.0, 1.0], [0.0, 0.0, -9.0, -math.inf]])
    masked = torch.tensor([[0.0, 1.0, 9.0, 9.0], [1.0, 2.0, 9.0, 9.0]])
    found = ensembled(scores, masked, 2.0, 0.5).tolist()
    assert found[0] == pytest.approx([3.0, 4.4, -math.inf, -math.inf])
    assert found[1] == pytest.approx([2.0, 4.0, -math.inf, -math.inf])
    assert ensembled(scores, masked, 2.0, 0.0)[0].tolist() == pytest.approx([3.0, 4.4, 20.0, 19.0])
    assert ensembled(scores, masked, 2.0, 1.0)[1].tolist()[2:] == [-math.inf, -math.inf]


def test_with_the_whole_image_nothing_but_words_of_equal_rank_change(subject: Subject) -> None:
    batch = seen.three(subject)
    settings: dict[str, Any] = {"eos_token_id": None, "suppress_tokens": [4]}
    plain = subject.generate(batch, 5, **settings).ids
    with edit(subject, "agla", keep=1.0):
        assert torch.equal(subject.generate(batch, 5, **settings).ids, plain)
    knock = edits.knock_out("language.*", queries=["text", "generated"], keys="image")
    with edit(subject, knock):
        blind = subject.generate(batch, 5, **settings).ids
    with edit(subject, knock, agla(keep=1.0)):
        assert torch.equal(subject.generate(batch, 5, **settings).ids, blind)
    with edit(subject, "agla", keep=0.1):
        assert not torch.equal(subject.generate(batch, 5, **settings).ids, plain)


@pytest.mark.parametrize(
    "settings", [{"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}]
)
@pytest.mark.parametrize("count", [1, 3])
def test_several_rows_of_a_prompt_are_refused(
    subject: Subject, settings: dict[str, Any], count: int
) -> None:
    batch = subject.prepare(list(seen.TEXTS[:count]), seen.pictures()[:count], padding_side="left")
    said = f"must get one row per prompt, {count}, got {2 * count}. Generate greedily"
    with pytest.raises(ValueError, match=said), edit(subject, "agla"):
        subject.generate(batch, 2, **settings)


def test_where_nothing_is_written_nothing_is_done(subject: Subject) -> None:
    batch = seen.three(subject)
    plain = subject.forward(batch).logits
    with pytest.raises(TapError, match=r"Edit agla\(alpha=2, keep=0.8\) on"), edit(subject, "agla"):
        assert torch.equal(subject.forward(batch).logits, plain)
    with (
        pytest.raises(ValueError, match="must change heads to have a control of random heads"),
        edit(subject, edits.matched_random(agla())),
    ):
        pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha": -1.0}, "`alpha` of agla must be at least 0, got -1"),
        ({"beta": 2.0}, "`beta` of agla must lie between 0 and 1, got 2"),
        ({"keep": 0.0}, "`keep` of agla must lie between 0 and 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        agla(**settings)


def test_an_image_that_is_equally_relevant_everywhere() -> None:
    """Values without weights: no attention moves the output."""
    still = seen.seeing()
    for layer in still.model.model.language_model.layers:  # type: ignore[union-attr]
        layer.self_attn.v_proj.weight.data.zero_()
    said = "in example '0' all are equally relevant. Choose other layers"
    with pytest.raises(ValueError, match=said), edit(still, "agla"):
        still.generate(seen.three(still), 2)
