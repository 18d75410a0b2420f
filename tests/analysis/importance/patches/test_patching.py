"""Activation patching against plain hooks, its identities, and the table it makes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from analysis.importance.patches.both_runs import BothRuns, head_effects
from analysis.importance.patches.pairs import Pairs, pair_up
from analysis.importance.patches.patch_map import patch_map
from analysis.importance.patches.patched_positions import Positions
from analysis.importance.patches.patching import Patching, differences
from analysis.importance.study import StudyOptions
from analysis.tally import Tally
from analysis.touched import Touched
from probes.heads import Head, Site
from probes.inputs import Example
from probes.loading import load
from probes.subject import Subject
from tests import small_pairs

HEADS = {"llama": 6, "gpt2": 3}


def projections(model: Any) -> list[nn.Module]:
    if hasattr(model, "transformer"):
        return [block.attn.c_proj for block in model.transformer.h]
    return [layer.self_attn.o_proj for layer in model.model.layers]


def plain(subject: Subject, batch: Any, changes: dict[int, Any]) -> tuple[Any, list[Tensor]]:
    """Output and z with hooks of the test's own; a change gets ``z [batch query width]``."""
    seen: list[Tensor] = []

    def hook(layer: int) -> Any:
        def change(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            z = args[0].clone()
            if layer in changes:
                changes[layer](z)
            seen.append(z)
            return (z, *args[1:])

        return change

    handles = [
        module.register_forward_pre_hook(hook(layer))
        for layer, module in enumerate(projections(subject.model))
    ]
    try:
        return subject.forward(batch), seen
    finally:
        for handle in handles:
            handle.remove()


def by_hand(subject: Subject, pairs: Pairs, direction: str, heads: int) -> list[list[Tensor]]:
    """Effect ``[example]`` of every layer and head, each by a forward of its own."""
    base, other = pairs.clean, pairs.corrupted
    if direction == "denoising":
        base, other = other, base
    (output, own), (_, theirs) = plain(subject, base, {}), plain(subject, other, {})
    before = pairs.difference(output)[0]
    found = []
    for layer, donor in enumerate(theirs):
        width, row = own[layer].shape[-1] // heads, []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)

            def put(z: Tensor, part: slice = part, donor: Tensor = donor) -> None:
                z[..., part] = donor[..., part]

            after = pairs.difference(plain(subject, base, {layer: put})[0])[0]
            row.append(before - after if direction == "noising" else after - before)
        found.append(row)
    return found


@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_head_equals_plain_hooks(family: str, direction: Any, copies: int) -> None:
    subject = getattr(small_pairs, family)()
    pairs = pair_up(subject, small_pairs.examples())
    runs = BothRuns.of(subject, pairs)
    heads = {site: range(HEADS[family]) for site in runs.clean.z}
    donor = runs.donor(direction).z
    found, reasons = head_effects(runs, direction, donor, heads, Positions(), copies)
    assert not reasons
    expected = by_hand(subject, pairs, direction, HEADS[family])
    assert len(found) == len(expected)
    for layer, row in enumerate(expected):
        effect = found[Site("language", layer)]
        assert torch.allclose(effect, torch.stack(row, dim=1), atol=2e-5)
    assert max(float(effect.abs().max()) for effect in found.values()) > 1e-2


def test_right_padding_and_half_precision() -> None:
    """The same effects as with padding on the left; in bfloat16 up to its rounding."""
    subject, right = small_pairs.llama(), small_pairs.llama("right")
    tables = []
    for one, side in ((subject, "left"), (right, "right")):
        runs = BothRuns.of(one, pair_up(one, small_pairs.examples(), side))
        tables.append(head_effects(runs, "noising", runs.corrupted.z, {LAST: [0, 5]}, Positions()))
    assert torch.allclose(tables[0][0][LAST], tables[1][0][LAST], atol=2e-5)
    half = small_pairs.llama()
    half.model.to(torch.bfloat16)
    runs = BothRuns.of(half, pair_up(half, small_pairs.examples()))
    made = head_effects(runs, "noising", runs.corrupted.z, {LAST: [0, 5]}, Positions())[0][LAST]
    assert torch.allclose(made, tables[0][0][LAST], atol=0.05)


LAST = Site("language", 2)


def test_a_heads_own_output_changes_nothing() -> None:
    subject = small_pairs.llama()
    runs = BothRuns.of(subject, pair_up(subject, small_pairs.examples()))
    heads = {site: range(6) for site in runs.clean.z}
    for direction in ("noising", "denoising"):
        own = runs.base(direction).z
        found, _ = head_effects(runs, direction, own, heads, Positions())
        assert all(not bool(effect.any()) for effect in found.values())


def attention_only() -> Subject:
    """One layer without MLP or final norm: logits are a sum over heads."""
    subject = small_pairs.gpt2(n_layer=1)
    model: Any = subject.model
    model.transformer.ln_f = nn.Identity()
    model.transformer.h[0].mlp.c_proj.weight.data.zero_()
    model.transformer.h[0].mlp.c_proj.bias.data.zero_()
    model.transformer.h[0].attn.c_proj.weight.data.mul_(1000)
    return subject


def test_where_logits_are_a_sum_over_heads_effects_add_up_to_the_gap() -> None:
    subject = attention_only()
    runs = BothRuns.of(subject, pair_up(subject, small_pairs.examples()))
    site = Site("language", 0)
    noising, denoising = (
        head_effects(runs, d, runs.donor(d).z, {site: range(3)}, Positions("answer"))[0][site]
        for d in ("noising", "denoising")
    )
    assert torch.allclose(noising.sum(1), runs.gap, atol=1e-4)
    assert torch.allclose(noising, denoising, atol=1e-4)
    assert runs.gap.abs().min() > 1e-2


def test_positions_against_plain_hooks() -> None:
    """Behind the answer, and by role, padding on the left."""
    subject = small_pairs.llama()
    examples = small_pairs.examples(3)
    pairs = pair_up(subject, examples)
    runs = BothRuns.of(subject, pairs)
    site, part = Site("language", 1), slice(20, 30)
    theirs = plain(subject, pairs.corrupted, {})[1][1]
    before = pairs.difference(plain(subject, pairs.clean, {})[0])[0]
    real = pairs.clean.tensors["attention_mask"].bool()

    def effect(chosen: Tensor) -> Tensor:
        def put(z: Tensor) -> None:
            z[..., part] = torch.where(chosen[..., None], theirs[..., part], z[..., part])

        return before - pairs.difference(plain(subject, pairs.clean, {1: put})[0])[0]

    last = torch.zeros_like(real)
    last[:, -1] = True
    for at, chosen in (("answer", last), (["text", "bos"], real), ("pad", ~real)):
        found, _ = head_effects(runs, "noising", runs.corrupted.z, {site: [2]}, Positions(at))
        assert torch.allclose(found[site][:, 0], effect(chosen), atol=2e-5), at
    each = patch_map(subject, [pairs], [Head("language", 1, 2)], copies=4)
    for row, example in enumerate(examples):
        lines = each[each["example"] == example.id]
        assert lines["text"].tolist() == (example.text or "").split()
        for line in lines.itertuples():
            one = torch.zeros_like(real)
            one[row, line.position] = True
            assert abs(float(effect(one)[row]) - line.value) < 2e-5


def test_positions_that_are_not_there_are_said() -> None:
    subject = small_pairs.llama()
    study = Patching(StudyOptions(), at=Positions("image"), directions=("noising",))
    batch = subject.prepare(examples=small_pairs.examples())
    study.begin(subject, lambda: [batch])
    scores = study.score(subject, batch)
    measure = ("language", "patch_noising_logit_difference")
    assert scores.reasons == {measure: "No position of language has the role image."}
    for wrong in ("words", [], ["answer", "text"]):
        with pytest.raises(ValueError, match="`at` must be"):
            Positions(wrong)


def test_the_study_gives_sums_shares_and_a_null_that_no_batching_changes() -> None:
    subject = small_pairs.llama()
    free = Example("free", text="a b c")
    batches = [
        subject.prepare(examples=[*small_pairs.examples(2), free]),
        subject.prepare(examples=small_pairs.examples()[2:]),
        subject.prepare(examples=[replace(free, id="other")]),
    ]
    whole = [subject.prepare(examples=[*small_pairs.examples(), free, replace(free, id="other")])]
    tables = []
    for data in (batches, whole):
        study = Patching(StudyOptions())
        study.begin(subject, lambda data=data: data)
        tally = Tally()
        for batch in data:
            tally.add(study.score(subject, batch))
        tables.append(tally.heads("pairs").frame)
    one, other = tables
    assert one.drop(columns="unit").select_dtypes("number").shape == (72, 7 + 1)
    numbers = one.select_dtypes("number").to_numpy() - other.select_dtypes("number").to_numpy()
    assert abs(numbers).max() < 2e-4
    assert set(one["n"]) == {5}
    assert one[["null_low", "null_high"]].notna().all(axis=None)
    pairs = pair_up(subject, small_pairs.examples())
    runs = BothRuns.of(subject, pairs)
    lost = head_effects(runs, "noising", runs.corrupted.z, {LAST: [3]}, Positions())[0][LAST]
    line = one[(one["layer"] == 2) & (one["head"] == 3)].set_index("measure")["value"]
    assert line["patch_noising_logit_difference"] == pytest.approx(float(lost.mean()), abs=1e-4)
    share = float(lost.sum() / runs.gap.sum())
    assert line["patch_noising_logit_difference_share"] == pytest.approx(share, abs=1e-3)
    frame = study.finish(subject, lambda: whole, tally)["pairs"]
    assert frame["example"].tolist() == list(pairs.ids)
    assert (frame["clean"] - frame["corrupted"]).to_numpy() == pytest.approx(runs.gap.numpy())
    assert differences(subject, pairs).equals(frame)


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_before_the_first_changed_word_are_no_others_in_the_other_run(side: str) -> None:
    subject = small_pairs.llama(side)
    study = Patching(StudyOptions(), heads={LAST: [4, 1]}, null=False)
    free = Example("free", text="a b c")
    batch = subject.prepare(examples=[*small_pairs.examples(), free], padding_side=side)
    study.begin(subject, lambda: [batch])
    rows, words = 24, (3, 4, 2, 3, 4)  # of each pair, from the word that was changed on
    expected = Touched(5, 10, {4: (rows, sum(words)), 1: (rows, sum(words))})
    measures = [
        f"patch_{direction}_logit_difference{share}"
        for direction in ("noising", "denoising")
        for share in ("", "_share")
    ]
    places = {("language", 2, measure, "") for measure in measures}
    assert study.score(subject, batch).touched == dict.fromkeys(places, expected)
    answer = replace(study, at=Positions("answer"), directions=("noising",))
    touched = answer.score(subject, batch).touched
    place = ("language", 2, "patch_noising_logit_difference", "at=answer")
    assert touched[place] == Touched(5, 10, {4: (5, 5), 1: (5, 5)})


def test_the_null_is_another_pair_of_the_same_length() -> None:
    subject = small_pairs.llama()
    examples = small_pairs.examples()
    batch = subject.prepare(examples=examples)
    study = Patching(StudyOptions())
    study.begin(subject, lambda: [batch])
    assert study.strangers is not None
    theirs = [example.id for example in study.strangers.of(examples)]
    assert {theirs[0], theirs[3], theirs[4]} == {"p0", "p3", "p4"}
    assert all(own.id != other for own, other in zip(examples, theirs, strict=True))
    first = pair_up(subject, [examples[0]])
    stranger = pair_up(subject, [next(e for e in examples if e.id == theirs[0])])
    runs, strange = BothRuns.of(subject, first), BothRuns.of(subject, stranger)
    heads = {LAST: range(6)}
    expected = head_effects(runs, "denoising", strange.clean.z, heads, Positions())[0][LAST]
    scores = study.score(subject, subject.prepare(examples=[examples[0]]))
    kept = [
        index
        for index, column in enumerate(scores.columns)
        if column.layer == 2 and column.measure == "patch_denoising_logit_difference"
    ]
    assert torch.allclose(scores.null_numerator[:, kept], expected, atol=1e-5)


def test_data_without_pairs_and_pairs_that_do_not_fit() -> None:
    subject = small_pairs.llama()
    study = Patching(StudyOptions())
    batch = subject.prepare(text=["a b", "c d"])
    with pytest.raises(ValueError, match="must have pairs: examples with `corrupt`"):
        study.begin(subject, lambda: [batch])
    examples = small_pairs.examples()
    examples[2] = replace(examples[2], wrong="zebra")
    batch = subject.prepare(examples=examples)
    with pytest.raises(ValueError, match=r"1 of 5 do not \(p2\).*'p2': `wrong` must be in"):
        study.begin(subject, lambda: [batch])


def test_a_single_pair_has_no_null() -> None:
    subject = small_pairs.llama()
    study = Patching(StudyOptions())
    batch = subject.prepare(examples=small_pairs.examples(1))
    study.begin(subject, lambda: [batch])
    scores = study.score(subject, batch)
    assert not scores.null_denominator.any()
    assert scores.denominator.all()


def test_hooks_are_gone_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = small_pairs.llama()
    batch = subject.prepare(examples=small_pairs.examples())
    study = Patching(StudyOptions())
    study.begin(subject, lambda: [batch])

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("cable pulled")

    monkeypatch.setattr(Pairs, "difference", broken)
    with pytest.raises(RuntimeError, match="cable pulled"):
        study.score(subject, batch)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.model.modules())


def test_a_describers_heads_are_patched_in_both_towers() -> None:
    """Only the image differs: heads of the vision tower carry it, and heads that read it there."""
    from probes.readers import read_examples

    subject = load("shapes-llava")
    pairs = pair_up(subject, list(read_examples("pairs-scenes", subject.kind, 6)))
    runs = BothRuns.of(subject, pairs)
    largest: dict[str, float] = {}
    for site, z in runs.clean.z.items():
        heads = {site: range(z.shape[2])}
        lost = head_effects(runs, "noising", runs.corrupted.z, heads, Positions())[0][site]
        share = float((lost.sum(0) / runs.gap.sum()).max())
        largest[site.tower] = max(share, largest.get(site.tower, 0.0))
    assert largest.keys() == {"vision", "language"}
    assert all(0.03 < share < 1 for share in largest.values())
