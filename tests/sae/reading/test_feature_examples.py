"""Examples of features against a whole pass kept in memory, in any order and any batches."""

from __future__ import annotations

from itertools import chain, islice
from typing import Any

import pytest
import torch

from probes.capture import capture
from probes.inputs import Example
from probes.readers import bundled_set
from sae.activations.store import store_activations
from sae.activations.stored_rows import StoredActivations
from sae.activations.subject_rows import SubjectActivations
from sae.reading.direct_attribution import direct_attribution
from sae.reading.feature_examples import FeatureExamples, Firing, feature_examples
from sae.reading.kept_firings import mixed
from sae.reading.windows import firing_views, window_at
from tests.drawn_coders import drawn_coder, subject_of

SITE = "language.L1"


def data(count: int = 23) -> list[Example]:
    return list(islice(bundled_set.read("repeats"), count))


def source_of(examples: list[Example] | None = None, **settings: Any) -> SubjectActivations:
    settings = {"batch_size": 5, **settings}
    given = data() if examples is None else examples
    return SubjectActivations(subject_of("repeat-lm"), given, sites=[SITE], **settings)


def together(groups: list[list[Firing]]) -> list[Firing]:
    return list(chain.from_iterable(groups))


def places_of(found: list[Firing]) -> list[tuple[str, int]]:
    return [(one.example, one.position) for one in found]


def every_firing(coder: Any) -> dict[int, list[Firing]]:
    """Every firing of every latent, from one capture per example."""
    subject, found = subject_of("repeat-lm"), {latent: [] for latent in range(coder.latents)}
    for index, example in enumerate(data()):
        batch = subject.prepare(examples=[example])
        z = capture(subject, batch, z=[SITE]).z(SITE)[0]
        strengths = coder.encode(z.flatten(1))
        for position, latent in strengths.nonzero().tolist():
            value = float(strengths[position, latent])
            found[latent].append(Firing(latent, example.id, index, position, value))
    return found


@pytest.fixture(scope="module")
def coder() -> Any:
    return drawn_coder(128, 40, k=5)


@pytest.fixture(scope="module")
def firings(coder: Any) -> dict[int, list[Firing]]:
    return every_firing(coder)


@pytest.fixture(scope="module")
def examples(coder: Any) -> FeatureExamples:
    return feature_examples(source_of(), coder, SITE, top=4, sample=30)


def test_the_strongest_examples_are_those_of_a_whole_pass(
    examples: FeatureExamples, firings: dict[int, list[Firing]]
) -> None:
    seen = 0
    for latent, every in firings.items():
        best: dict[str, Firing] = {}
        for one in every:
            if one.example not in best or one.strength > best[one.example].strength:
                best[one.example] = one
        expected = sorted(best.values(), key=lambda one: -one.strength)[:4]
        found = examples.top(latent)
        assert places_of(found) == places_of(expected)
        strengths = [one.strength for one in expected]
        assert [one.strength for one in found] == pytest.approx(strengths, abs=1e-4)
        assert int(examples.firings[latent]) == len(every)
        largest = max((one.strength for one in every), default=0.0)
        assert float(examples.largest[latent]) == pytest.approx(largest, abs=1e-4)
        seen += len(found)
    assert seen > 100
    subject = subject_of("repeat-lm")
    tokens = [subject.prepare(examples=[example]).tokens["language"] for example in data()]
    assert examples.rows == sum(len(one) for one in tokens)  # every row of the data set


def test_batches_their_size_and_their_order_change_nothing(
    coder: Any, examples: FeatureExamples
) -> None:
    for changed in (
        source_of(batch_size=23),
        source_of(batch_size=2, seed=77),
        source_of(list(reversed(data()))),
    ):
        other = feature_examples(changed, coder, SITE, top=4, sample=30)
        for latent in range(40):
            assert places_of(other.top(latent)) == places_of(examples.top(latent))
            kept = [sorted(places_of(together(one.quantiles(latent, 1, 30)))) for one in
                    (examples, other)]  # fmt: skip
            assert kept[0] == kept[1]


def test_blocks_of_rows_change_nothing(
    coder: Any, examples: FeatureExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae.reading.feature_examples._BLOCK", 40 * 7)
    other = feature_examples(source_of(), coder, SITE, top=4, sample=30)
    for latent in range(40):
        assert places_of(other.top(latent)) == places_of(examples.top(latent))
        kept = [places_of(together(one.quantiles(latent))) for one in (examples, other)]
        assert sorted(kept[0]) == sorted(kept[1])


def test_memory_is_bounded_and_the_sample_is_a_sample(
    coder: Any, examples: FeatureExamples, firings: dict[int, list[Firing]]
) -> None:
    counts = torch.bincount(examples.sample.slot, minlength=40)
    expected = torch.tensor([min(len(firings[latent]), 30) for latent in range(40)])
    assert torch.equal(counts, expected)
    assert int(torch.bincount(examples.strongest.slot, minlength=40).max()) == 4
    every = {(one.latent, one.example, one.position) for some in firings.values() for one in some}
    drawn = [one for latent in range(40) for one in together(examples.quantiles(latent, 1, 30))]
    assert {(one.latent, one.example, one.position) for one in drawn} <= every
    # Means of the sample are those of all firings: a sample of the first rows would not be.
    many = [latent for latent in range(40) if len(firings[latent]) > 60]
    for quantity in ("position", "strength"):
        whole = [getattr(one, quantity) for latent in many for one in firings[latent]]
        part = [getattr(one, quantity) for one in drawn if one.latent in many]
        whole_mean, part_mean = sum(whole) / len(whole), sum(part) / len(part)
        assert part_mean == pytest.approx(whole_mean, rel=0.1)
    other = feature_examples(source_of(), coder, SITE, top=4, sample=30, seed=1)
    assert places_of(together(other.quantiles(many[0]))) != places_of(
        together(examples.quantiles(many[0]))
    )


def test_firings_wait_to_be_sorted_in_and_what_is_kept_stays_the_same(
    coder: Any, examples: FeatureExamples, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae.reading import kept_firings

    sorts, order = [], kept_firings._order
    monkeypatch.setattr(kept_firings, "_order", lambda *c: sorts.append(1) or order(*c))
    monkeypatch.setattr("sae.reading.feature_examples._BLOCK", 40 * 7)

    def sorted_how_often(fewest: int) -> int:
        sorts.clear()
        monkeypatch.setattr(kept_firings, "_FEWEST", fewest)
        other = feature_examples(source_of(), coder, SITE, top=4, sample=30)
        for latent in range(40):
            assert places_of(other.top(latent)) == places_of(examples.top(latent))
            drawn = [places_of(together(one.quantiles(latent))) for one in (other, examples)]
            assert drawn[0] == drawn[1]
        return len(sorts)

    blocks = -(-examples.rows // 7)
    assert sorted_how_often(1 << 20) == 3  # at the end, once for each of both
    # As many wait as are kept: not at every block, which would be 3 times their number.
    assert 9 < sorted_how_often(0) < blocks


def test_quantile_groups_have_equal_numbers_and_descend(examples: FeatureExamples) -> None:
    latent = int(examples.firings.argmax())
    groups = examples.quantiles(latent, groups=3, per_group=4)
    assert [len(group) for group in groups] == [4, 4, 4]
    values = [one.strength for group in groups for one in group]
    assert values == sorted(values, reverse=True)
    whole = examples.quantiles(latent, groups=3, per_group=10)
    assert [len(group) for group in whole] == [10, 10, 10]
    assert {one for group in groups for one in group} <= {one for group in whole for one in group}
    rare = int(torch.where(examples.firings > 0, examples.firings, 1 << 40).argmin())
    every = together(examples.quantiles(rare, groups=50, per_group=5))
    assert len(every) == min(int(examples.firings[rare]), 30)


def test_only_the_latents_that_are_asked_for(coder: Any, examples: FeatureExamples) -> None:
    some = feature_examples(source_of(), coder, SITE, [31, 4], top=4, sample=30)
    for latent in (31, 4):
        assert some.top(latent) == examples.top(latent)
        assert some.quantiles(latent) == examples.quantiles(latent)
    with pytest.raises(ValueError, match="Latent 5 must be one of the 2 that were followed"):
        some.top(5)
    with pytest.raises(ValueError, match="`top` and `sample` must be positive, got 0 and 3"):
        feature_examples(source_of(), coder, SITE, top=0, sample=3)


def test_the_hash_is_splitmix_and_uniform() -> None:
    def reference(value: int) -> int:
        mask = (1 << 64) - 1
        value = (value + 0x9E3779B97F4A7C15) & mask
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    numbers = [0, 1, 2, 12345, -7]
    found = mixed(torch.tensor(numbers)).tolist()
    assert [n & ((1 << 64) - 1) for n in found] == [reference(n & ((1 << 64) - 1)) for n in numbers]
    spread = mixed(torch.arange(10_000)).double()
    assert abs(float(spread.mean())) < 0.02 * 2**63


def test_views_show_the_destination_and_its_strongest_source(
    coder: Any, examples: FeatureExamples
) -> None:
    subject = subject_of("repeat-lm")
    wanted = [*examples.top(int(examples.firings.argmax())), *examples.top(7)[:2]]
    views = firing_views(subject, source_of(), coder, SITE, wanted, reach=2)
    assert [view.firing for view in views] == wanted
    by_id = {example.id: example for example in data()}
    for view in views:
        batch = subject.prepare(examples=[by_id[view.firing.example]])
        place = (0, view.firing.position)
        alone = direct_attribution(subject, batch, coder, SITE, view.firing.latent, place)[0]
        best = int(alone.by_source.argmax())
        assert view.source_score == pytest.approx(float(alone.by_source[best]), abs=1e-4)
        assert view.attribution.strength == pytest.approx(view.firing.strength, abs=1e-4)
        text = batch.tokens["language"].text
        around = range(max(0, place[1] - 2), min(len(text), place[1] + 3))
        assert view.destination.words == tuple(text[i] for i in around)
        assert view.destination.words[view.destination.centre] == text[place[1]]
        assert view.source is not None
        assert view.source.words[view.source.centre] == text[best]
        assert "<pad>" not in view.destination.words
        assert view.example.text == by_id[view.firing.example].text


def test_views_of_pictures_tell_the_patch() -> None:
    subject = subject_of("shapes-llava")
    examples = list(islice(bundled_set.read("scenes"), 5))
    source = SubjectActivations(subject, examples, sites=["language.L2"], batch_size=3)
    coder = drawn_coder(128, 12, k=3)
    found = feature_examples(source, coder, "language.L2", top=3)
    wanted = [one for latent in range(12) for one in found.top(latent)]
    views = firing_views(subject, source, coder, "language.L2", wanted)
    pictured = [v for v in views if v.destination.role == "image"]
    assert pictured
    for view in pictured:
        assert view.destination.patch is not None
        batch = subject.prepare(examples=[examples[view.firing.index]])
        tokens = batch.tokens["language"]
        flat = view.firing.position
        patch = view.destination.patch
        assert (patch.row, patch.column) == (int(tokens.row[flat]), int(tokens.column[flat]))
        assert patch.box == pytest.approx(tokens.box[flat].tolist())
        assert patch.image == 0
        assert view.example.id == view.firing.example and len(view.example.pictures) == 1
    assert all(v.destination.patch is None for v in views if v.destination.role == "text")


def test_other_data_and_stores_are_refused(
    coder: Any, examples: FeatureExamples, tmp_path: Any
) -> None:
    subject = subject_of("repeat-lm")
    wanted = examples.top(int(examples.firings.argmax()))
    with pytest.raises(ValueError, match="must be '.*' as where the firing was found"):
        firing_views(subject, source_of(list(reversed(data()))), coder, SITE, wanted)
    far = [Firing(0, "nowhere", 400, 3, 1.0)]
    with pytest.raises(ValueError, match="Every firing must be in the data, 1 of 1 are not"):
        firing_views(subject, source_of(), coder, SITE, far)
    store_activations(source_of(), tmp_path / "store")
    stored = StoredActivations(tmp_path / "store")
    same = feature_examples(stored, coder, SITE, top=4, sample=30)
    assert places_of(same.top(3)) == places_of(examples.top(3))
    with pytest.raises(ValueError, match="this stream was read from a disk"):
        firing_views(subject, stored, coder, SITE, same.top(3))


def test_a_window_stops_at_its_row_and_leaves_padding_out() -> None:
    from tests.drawn_coders import batch_of

    tokens = batch_of("gpt2").tokens["language"]
    first = window_at(tokens, 3, 2)
    assert (len(first.words), first.centre) == (3, 0)
    assert first.words == tokens.text[3:6]
    last = window_at(tokens, 7, 3)
    assert last.words == tokens.text[7:11] and last.centre == 0
