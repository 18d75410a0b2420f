"""Feature edits and steering, against arithmetic on captured z."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from probes.capture import capture
from probes.edits.apply import edit
from probes.edits.parse import EditTextError, parse_edit
from probes.heads import Head
from probes.subject import Subject
from sae.coders.coder import Coder
from sae.exchange.headscope_folder import save_coder
from sae.reading.interventions import (
    FeatureEdit,
    ablate_feature,
    scale_feature,
    set_feature,
    steer_feature,
)
from sae.reading.steering import difference_of_means, steer
from tests.drawn_coders import batch_of, drawn_coder, subject_of

SITE = "language.L1"


def edited_z(subject: Subject, batch: Any, *edits: Any) -> tuple[Tensor, list[Any]]:
    with edit(subject, *edits) as reports:
        z = capture(subject, batch, z=[SITE]).z(SITE)
    return z, reports


def coder_of(subject: Subject, **settings: Any) -> Coder:
    place = next(one for one in subject.layout.sites if str(one.site) == SITE)
    return drawn_coder(place.heads * place.value_width, **settings)


def test_each_change_of_a_feature_moves_z_along_its_decoder_row_alone() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_of(subject)
    z = capture(subject, batch, z=[SITE]).z(SITE)
    strengths = coder.encode(z.flatten(2).flatten(0, 1))[:, [4, 9]].reshape(2, 7, 2)
    assert 0 < int((strengths != 0).sum()) < strengths.numel()
    rows = coder.decoder[[4, 9]]
    cases = [
        (ablate_feature(coder, [4, 9], SITE), -strengths),
        (scale_feature(coder, [4, 9], 2.5, SITE), 1.5 * strengths),
        (set_feature(coder, [4, 9], 0.7, SITE), 0.7 - strengths),
        (steer_feature(coder, [4, 9], -2.0, SITE), torch.full_like(strengths, -2.0)),
    ]
    for change, moved in cases:
        found, reports = edited_z(subject, batch, change)
        expected = z + (moved @ rows).unflatten(-1, (6, 10))
        assert torch.allclose(found, expected, atol=1e-5), change.label
        assert reports[0].fired == 1 and reports[0].touched > 0


def test_what_the_coder_does_not_reconstruct_stays() -> None:
    """Ablating every latent leaves the error and the decoder bias, not nothing."""
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_of(subject)
    z = capture(subject, batch, z=[SITE]).z(SITE)
    found, _ = edited_z(subject, batch, ablate_feature(coder, list(range(23)), SITE))
    flat = z.flatten(2).flatten(0, 1)
    error = flat - coder(flat)
    assert torch.allclose(found.flatten(2).flatten(0, 1), error + coder.decoder_bias, atol=1e-5)


def test_a_scale_of_1_changes_not_one_bit() -> None:
    subject, batch = subject_of("repeat-lm"), batch_of("repeat-lm")
    before = subject.forward(batch).logits
    with edit(subject, scale_feature(coder_of(subject), [1, 2, 3], 1.0, SITE)) as reports:
        after = subject.forward(batch).logits
    assert torch.equal(before, after)
    assert reports[0].fired == 1 and reports[0].touched == 0


def test_roles_choose_positions() -> None:
    subject, batch = subject_of("shapes-llava"), batch_of("shapes-llava")
    coder = coder_of(subject)
    z = capture(subject, batch, z=[SITE]).z(SITE)
    found, _ = edited_z(subject, batch, steer_feature(coder, 3, 4.0, SITE, roles="image"))
    image = batch.tokens["language"].has_role("image").reshape(z.shape[:2])
    moved = (found - z).flatten(2)
    assert torch.equal(moved.abs().amax(-1) > 0, image)
    assert torch.allclose(moved[image], (4.0 * coder.decoder[3]).expand(int(image.sum()), -1),
                          atol=1e-4)  # fmt: skip


def test_ablating_in_half_precision_moves_as_in_full() -> None:
    import copy

    whole, batch = subject_of("repeat-lm"), batch_of("repeat-lm")
    half = Subject(copy.deepcopy(whole.model).bfloat16(), whole.processor)
    coder = coder_of(whole)
    exact = edited_z(whole, batch, steer_feature(coder, 3, 4.0, SITE))[0]
    found = edited_z(half, batch, steer_feature(coder, 3, 4.0, SITE))[0]
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), exact, atol=0.1)


def test_long_inputs_are_encoded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    change = ablate_feature(coder_of(subject), [4, 9], SITE)
    whole, _ = edited_z(subject, batch, change)
    monkeypatch.setattr("sae.reading.interventions._BLOCK", 23 * 3)
    blocks, _ = edited_z(subject, batch, change)
    assert torch.allclose(whole, blocks, atol=1e-6)


def test_the_model_is_itself_again_also_after_an_exception() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    before = subject.forward(batch).logits
    hooks = sum(len(m._forward_pre_hooks) for m in subject.model.modules())
    with (
        pytest.raises(RuntimeError, match="mine"),
        edit(subject, steer_feature(coder_of(subject), 1, 9.0, SITE)),
    ):
        assert not torch.equal(before, subject.forward(batch).logits)
        raise RuntimeError("mine")
    assert torch.equal(before, subject.forward(batch).logits)
    assert hooks == sum(len(m._forward_pre_hooks) for m in subject.model.modules())


def test_edits_by_name_and_as_text(tmp_path: Any) -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_of(subject)
    folder = save_coder(coder, tmp_path / "coder", {"site": SITE, "heads": 6, "head_width": 10})
    expected, _ = edited_z(subject, batch, ablate_feature(coder, [4, 9], SITE))
    parsed = parse_edit(f"ablate_feature:coder={folder},latents=4+9")
    assert isinstance(parsed, FeatureEdit) and parsed.heads == SITE
    assert torch.equal(edited_z(subject, batch, parsed)[0], expected)
    one = parse_edit(f"set_feature:coder={folder},latents=4,strength=0.5,roles=text")
    assert isinstance(one, FeatureEdit)
    assert (one.latents, one.amount, one.roles) == ((4,), 0.5, ("text",))
    with edit(subject, "steer_feature", coder=coder, latents=4, amount=1.0, site=SITE) as reports:
        subject.forward(batch)
    assert reports[0].label == "steer_feature(4, 1)"
    assert ablate_feature(coder, [1, 2, 3, 4, 5], SITE).label == "ablate_feature(1+2+3+4+...)"
    with pytest.raises(EditTextError, match="A latent must be between 0 and 22, got 23"):
        parse_edit(f"ablate_feature:coder={folder},latents=23")


def test_what_cannot_be_edited_is_refused() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    coder = coder_of(subject)
    with pytest.raises(ValueError, match="`site` of ablate_feature must be given"):
        ablate_feature(coder, 1)
    part = FeatureEdit("language.L1H0", coder, (1,), "scale", 0.0, "ablate_feature")
    with pytest.raises(ValueError, match="must get all heads of language.L1 side by side, 60"):
        edited_z(subject, batch, part)


def test_a_probes_direction_is_added_at_the_heads_that_were_chosen() -> None:
    subject, batch = subject_of("gqa"), batch_of("gqa")
    z = capture(subject, batch, z=[SITE]).z(SITE)
    one, other = torch.randn(2, 10, generator=torch.Generator().manual_seed(1))
    found, _ = edited_z(subject, batch, steer(f"{SITE}H2", one, 1.5))
    expected = z.clone()
    expected[:, :, 2] += 1.5 * one
    assert torch.allclose(found, expected, atol=1e-6)
    named = {f"{SITE}H0": one, f"{SITE}H5": other}
    found, _ = edited_z(subject, batch, steer(list(named), named, -1.0, roles=["text"]))
    text = batch.tokens["language"].has_role("text").reshape(2, 7, 1)
    expected = z.clone()
    expected[:, :, 0] -= text * one
    expected[:, :, 5] -= text * other
    assert torch.allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="must have a direction for language.L1H1, got 2 others"):
        edited_z(subject, batch, steer(f"{SITE}H1", named))
    with pytest.raises(ValueError, match="must have shape .10. .head_width., got .9."):
        edited_z(subject, batch, steer(f"{SITE}H1", one[:9]))
    with pytest.raises(ValueError, match="`roles` must be some of"):
        steer(f"{SITE}H1", one, roles="nobody")


def test_the_difference_of_means_equals_loops_and_takes_one_mean_to_the_other() -> None:
    subject = subject_of("gqa")
    ids = torch.randint(5, 20, (5, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    first = [
        subject.prepare(input_ids=ids[:2], attention_mask=mask[:2]),
        subject.prepare(input_ids=ids[2:3], attention_mask=mask[2:3]),
    ]
    second = [subject.prepare(input_ids=ids[3:], attention_mask=mask[3:])]
    heads = [f"{SITE}H1", f"{SITE}H4", "language.L0H3"]
    found = difference_of_means(subject, first, second, heads)
    assert found.rows == {SITE: (18, 14), "language.L0": (18, 14)}

    def mean(batches: list[Any], name: str) -> Tensor:
        total, count = torch.zeros(10), 0
        head = Head.parse(name)
        for batch in batches:
            z = capture(subject, batch, z=[str(head.site)]).z(head)
            for row in range(len(z)):
                for position in range(7):
                    if int(batch.tensors["attention_mask"][row, position]):
                        total, count = total + z[row, position], count + 1
        return total / count

    for name in heads:
        assert torch.allclose(found.directions[name], mean(first, name) - mean(second, name),
                              atol=1e-5)  # fmt: skip
    name = heads[0]
    with edit(subject, steer(name, found.directions)):
        assert torch.allclose(mean(second, name), found.means[0][name], atol=1e-5)
    last = difference_of_means(subject, first, second, name, last=True)
    ends = [capture(subject, b, z=[SITE]).z(Head.parse(name))[:, -1] for b in [*first, *second]]
    expected = torch.cat(ends[:2]).mean(0) - ends[2].mean(0)
    assert torch.allclose(last.directions[name], expected, atol=1e-5)
    assert last.rows == {SITE: (3, 2)}
    with pytest.raises(ValueError, match="The second set must have positions"):
        difference_of_means(subject, first, [], name)


def test_an_ablation_reaches_the_logits() -> None:
    subject, batch = subject_of("repeat-lm"), batch_of("repeat-lm")
    coder = coder_of(subject, latents=40, k=20)
    before = subject.forward(batch).logits
    with edit(subject, ablate_feature(coder, list(range(40)), SITE)):
        after = subject.forward(batch).logits
    assert float((before - after).abs().max()) > 0.1


def test_by_default_where_the_coder_was_trained() -> None:
    subject, batch = subject_of("shapes-llava"), batch_of("shapes-llava")
    coder = coder_of(subject)
    coder.about = {"site": SITE, "provenance": {"roles": ["image"]}}
    z = capture(subject, batch, z=[SITE]).z(SITE)
    image = batch.tokens["language"].has_role("image").reshape(z.shape[:2])
    fires = (coder.encode(z.flatten(2).flatten(0, 1))[:, :5] != 0).any(1).reshape(z.shape[:2])
    assert (fires & image).any() and (fires & ~image).any()
    for made, expected in [
        (ablate_feature(coder, [0, 1, 2, 3, 4]), fires & image),
        (ablate_feature(coder, [0, 1, 2, 3, 4], roles="all"), fires),
        (set_feature(coder, [3], 2.5), image),
        (steer_feature(coder, [3], 2.5), torch.ones_like(image)),
    ]:
        found, _ = edited_z(subject, batch, made)
        assert torch.equal((found != z).flatten(2).any(2), expected), made.label


def test_roles_and_latents_that_do_not_exist_are_refused_at_once() -> None:
    coder = drawn_coder(8)
    with pytest.raises(ValueError, match="`roles` must be some of .* got words"):
        ablate_feature(coder, 1, SITE, roles="words")
    with pytest.raises(ValueError, match="There must be at least one latent, got none"):
        ablate_feature(coder, [], SITE)
    with pytest.raises(ValueError, match=r"Latents must be whole numbers, got 1\.5"):
        ablate_feature(coder, 1.5, SITE)  # type: ignore[arg-type]
    assert ablate_feature(coder, torch.tensor([0.0, 3.0, 1.0]).argmax(), SITE).latents == (1,)
