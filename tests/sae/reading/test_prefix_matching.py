"""Prefix tests: made sequences are what they say, and curves are what patterns show."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch

from probes.capture import capture
from probes.inputs import InputError
from probes.readers import bundled_set
from sae.reading.prefix_matching import _needed, prefix_curves
from sae.reading.prefix_pairs import PairSearch
from sae.reading.prefix_replacement import replaced_before_features, replaced_before_heads
from sae.reading.prefix_sequences import sequences_for
from tests.drawn_coders import batch_of, drawn_coder, subject_of


def test_sequences_are_distinct_but_for_the_copy() -> None:
    subject = subject_of("repeat-lm")
    made = sequences_for(subject, None, 41, 5, seed=3)
    plain = next(made.batches(subject, 0, 13, 13))
    for length in (1, 3, 5):
        batch, source = next(made.batches(subject, length, 13, 13))
        assert torch.equal(source, plain[1])
        ids, base = batch.tensors["input_ids"], plain[0].tensors["input_ids"]
        assert ids.shape == (13, 41)
        assert torch.equal(ids[:, : 41 - length], base[:, : 41 - length])
        for row, at in zip(ids.tolist(), source.tolist(), strict=True):
            assert row[-length:] == row[at - length : at]
            assert len(set(row)) == 41 - length
            assert row.count(row[at]) == 1 and at < 41 - 5
            assert row[-length - 1] != row[at - length - 1]
    assert all(len(set(row)) == 41 for row in plain[0].tensors["input_ids"].tolist())
    assert len(set(plain[1].tolist())) > 5
    with pytest.raises(ValueError, match="A sequence must have between 12 tokens"):
        sequences_for(subject, None, 11, 5, seed=3)


def test_curves_equal_captured_patterns_and_strengths() -> None:
    subject = subject_of("repeat-lm")
    coder = drawn_coder(128, 30, k=6)
    found = prefix_curves(
        subject,
        ["language.L1H4", "language.L0H2"],
        {"language.L1": (coder, [3, 8])},
        lengths=(0, 2, 4),
        sequence=31,
        samples=11,
        batch_size=4,
    )
    made = sequences_for(subject, None, 31, 4, seed=0)
    for number, length in enumerate((0, 2, 4)):
        batch, source = next(made.batches(subject, length, 11, 11))
        seen = capture(subject, batch, patterns=["language.*"], z=["language.L1"])
        for column, (site, head) in enumerate((("language.L0", 2), ("language.L1", 4))):
            pattern = seen.pattern(site)[:, head]
            values = torch.stack([pattern[i, -1, int(source[i])] for i in range(11)])
            assert float(found.attention[number, column]) == pytest.approx(float(values.mean()))
            error = float(values.std() / 11**0.5)
            assert float(found.attention_error[number, column]) == pytest.approx(error)
        strengths = coder.encode(seen.z("language.L1")[:, -1].flatten(1))[:, [3, 8]]
        assert torch.allclose(found.strength[number], strengths.mean(0), atol=1e-5)
    assert found.heads == ("language.L0H2", "language.L1H4")
    assert found.features == (("language.L1", 3), ("language.L1", 8))


def test_the_induction_model_attends_only_where_there_is_a_copy() -> None:
    subject = subject_of("repeat-lm")
    found = prefix_curves(subject, lengths=(0, 1, 4), sequence=61, samples=24)
    best = int(found.attention[2].argmax())
    assert found.heads[best].startswith("language.L1")
    assert float(found.attention[0, best]) < 0.05 < 0.4 < float(found.attention[2, best])
    assert found.direct_logit is not None and not found.missing
    assert float(found.direct_logit[2, best]) > float(found.direct_logit[0, best]) + 0.2
    assert bool((found.needed_by_heads[8:].nan_to_num(1) <= 4).all())


def test_the_length_that_is_needed_by_hand() -> None:
    curves = torch.tensor([[0.1, 0.1, 0.5], [0.2, 0.9, 0.4], [0.6, 0.9, 0.5], [0.9, 0.8, 0.4]])
    needed = _needed((0, 1, 2, 3), curves, torch.full((4, 3), 0.02))
    assert needed.tolist()[:2] == [2.0, 1.0] and bool(needed[2].isnan())
    shuffled = _needed((3, 0, 2, 1), curves[[3, 0, 2, 1]], torch.full((4, 3), 0.02))
    assert shuffled.tolist()[:2] == [2.0, 1.0]
    assert bool(_needed((0, 1, 2, 3), curves, torch.full((4, 3), 0.9)).isnan().all())


def pairs_of(batch: Any, **settings: Any) -> PairSearch:
    search = PairSearch(subject_of("repeat-lm"), None, settings.get("most", 9), 0)
    search.begin(batch)
    return search


def test_prefixes_are_counted_back_from_the_query() -> None:
    subject = subject_of("repeat-lm")
    words = sequences_for(subject, None, None, 1, 0).words[:12].tolist()
    a, b, c, d, e, f, g = words[:7]
    #      0  1  2  3  4  5  6  7  8  9
    row = [a, b, c, d, e, f, b, c, d, g]
    search = pairs_of(subject.prepare(input_ids=torch.tensor([row])))
    assert [p.matched for p in search.pair("x", 0, 8, 4, 0.5)] == [3]  # b c d before e, up to d
    assert [p.matched for p in search.pair("x", 0, 7, 3, 0.5)] == [2]
    assert [p.matched for p in search.pair("x", 0, 8, 3, 0.5)] == [0]
    assert not list(search.pair("x", 0, 8, 1, 0.5))  # nothing stands two before it
    changed = search._changed([*search.pair("x", 0, 8, 4, 0.5)])
    ids = changed.tensors["input_ids"][0].tolist()
    assert ids[:2] + ids[3:] == row[:2] + row[3:]
    assert ids[2] not in row
    few = pairs_of(subject.prepare(input_ids=torch.tensor([row])), most=1)
    assert len([*few.pair("x", 0, 8, 4, 0.5), *few.pair("x", 0, 8, 4, 0.5)]) == 1


def test_replacing_the_prefix_is_measured_as_a_run_by_hand() -> None:
    subject = subject_of("repeat-lm")
    batch = subject.prepare(examples=list(islice(bundled_set.read("repeats"), 3)))
    found = replaced_before_heads(subject, [batch], "language.L1H4", most_pairs=6)
    pattern = capture(subject, batch, patterns=["language.L1H4"]).pattern("language.L1H4")
    assert len(found.pairs) > 10
    for pair, _ in found.pairs:
        assert pair.before >= 0.3
        assert pair.before == pytest.approx(float(pattern[pair.example, pair.query, pair.source]))
    frame = found.frame()
    assert frame.n.max() <= 6 and set(frame.columns) == {"reader", "matched", "n", "before",
                                                         "after"}  # fmt: skip
    long = frame[frame.matched >= 2]
    weights = long.n / long.n.sum()
    assert (long.after * weights).sum() < (long.before * weights).sum() - 0.1
    again = replaced_before_heads(subject, [batch], "language.L1H4", most_pairs=6)
    assert again.pairs == found.pairs


def test_replacing_nothing_leaves_values_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the old token as the new one, before and after agree: the same rows are compared."""

    def same(search: PairSearch, pair: Any) -> int:
        return int(search.ids[pair.example, pair.source - 2])

    monkeypatch.setattr(PairSearch, "_other_word", same)
    subject = subject_of("repeat-lm")
    batch = subject.prepare(examples=list(islice(bundled_set.read("repeats"), 3)))
    heads = replaced_before_heads(subject, [batch], "language.L1H4", most_pairs=4)
    coder = drawn_coder(128, 30, k=6)
    features = replaced_before_features(subject, [batch], coder, "language.L1", [3, 8])
    for pair, after in [*heads.pairs, *features.pairs]:
        assert after == pytest.approx(pair.before, abs=1e-4)
    assert len(features.pairs) > 5
    assert {pair.reader for pair, _ in features.pairs} <= {
        "language.L1 latent 3",
        "language.L1 latent 8",
    }


def test_images_are_refused() -> None:
    with pytest.raises(InputError, match="Prefixes are replaced in text alone"):
        replaced_before_heads(subject_of("shapes-llava"), [batch_of("shapes-llava")])
