"""Head-specific modulation and plain scaling of attention by role, against loops and by hand."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import seeing_batches as seen
import torch
from loop_attention import Row, Rule, looping, written
from torch import Tensor

from analysis.vision.methods.modulation import modulation
from probes import edits
from probes.capture import capture
from probes.edits.apply import edit
from probes.heads import Head
from probes.subject import Subject


@pytest.fixture(scope="module")
def subject() -> Subject:
    return seen.seeing()


@dataclass
class Modulated(Rule):
    """The image's share of a row, made larger in the half of the heads that has most of it."""

    image: int = 0
    gain: float = 2.0
    only: dict[tuple[int, int], float] | None = None

    def weights(self, rows: list[tuple[Row, list[float]]]) -> list[list[float]]:
        weights = super().weights(rows)
        if rows[0][0].tower == "vision" or not rows[0][0].last:
            return weights
        mine = range(self.image, self.image + 16)
        shares = [sum(row[key] for key in mine) for row in weights]
        best = sorted(range(6), key=lambda head: -shares[head])[:3]
        new = []
        for (row, _), old in zip(rows, weights, strict=True):
            gain = self.gain if row.head in best else 1.0
            if self.only is not None:
                gain = self.only.get((row.layer, row.head), 1.0)
            share = shares[row.head]
            below = 1 + (gain - 1) * share
            new.append([a * (gain if key in mine else 1) / below for key, a in enumerate(old)])
        return new


@pytest.mark.parametrize("gain", [2.0, 0.25])
def test_generation_equals_a_loop(subject: Subject, gain: float) -> None:
    with edit(subject, "modulation", gain=gain) as (report,):
        ids, logits = seen.written_together(subject, seen.three(subject))
    for row, tensors in enumerate(seen.alone(subject)):
        start = int((tensors["input_ids"][0] == 4).nonzero()[0, 0])
        twin = looping(subject.model, Modulated(image=start, gain=gain))
        expected_ids, expected = written(twin, tensors, seen.STEPS)
        assert ids[row].tolist() == expected_ids
        assert torch.allclose(logits[:, row], expected, atol=2e-5)
    assert report.touched == 3 * 3 * 3 * seen.STEPS, "half of the heads, in one row per example"


def test_a_table_of_gains_equals_a_loop(subject: Subject) -> None:
    gains = {"language.L0H5": 3.0, Head("language", 2, 1): 0.5, "language.L2H4": 8.0}
    with edit(subject, modulation(gains=gains)) as (report,):
        ids, logits = seen.written_together(subject, seen.three(subject))
    only = {(0, 5): 3.0, (2, 1): 0.5, (2, 4): 8.0}
    for row, tensors in enumerate(seen.alone(subject)):
        start = int((tensors["input_ids"][0] == 4).nonzero()[0, 0])
        twin = looping(subject.model, Modulated(image=start, only=only))
        expected_ids, expected = written(twin, tensors, seen.STEPS)
        assert ids[row].tolist() == expected_ids
        assert torch.allclose(logits[:, row], expected, atol=2e-5)
    assert report.label == "modulation(3 gains)" and len(report.heads) == 3
    assert report.touched == 3 * 3 * seen.STEPS


def _patterns(subject: Subject, *changes: object) -> Tensor:
    batch = seen.three(subject)
    if not changes:
        found = capture(subject, batch, patterns="language.L1").pattern("language.L1")
    else:
        with edit(subject, *changes):  # type: ignore[arg-type]
            found = capture(subject, batch, patterns="language.L1").pattern("language.L1")
    assert isinstance(found, Tensor)
    return found


def test_rows_keep_their_sum_and_proportions(subject: Subject) -> None:
    plain = _patterns(subject)
    found = _patterns(subject, modulation(4.0, heads="language.L1H2"))
    image = seen.three(subject).tokens["language"].has_role("image").reshape(3, -1)
    assert torch.equal(found[:, [0, 1, 3, 4, 5]], plain[:, [0, 1, 3, 4, 5]])
    assert torch.equal(found[:, 2, :-1], plain[:, 2, :-1])
    for row in range(3):
        old, new = plain[row, 2, -1].double(), found[row, 2, -1].double()
        share = old[image[row]].sum()
        assert float(new.sum()) == pytest.approx(1, abs=1e-6)
        assert float(new[image[row]].sum()) == pytest.approx(float(4 * share / (1 + 3 * share)))
        inside, outside = new / old, ~image[row] & (old > 1e-6)
        assert torch.allclose(inside[image[row]], inside[image[row]][0].expand(16), rtol=1e-4)
        assert torch.allclose(inside[outside], inside[outside][0], rtol=1e-4)


def test_a_gain_of_one_and_no_gain_at_all(subject: Subject) -> None:
    batch = seen.three(subject)
    with edit(subject, modulation(1.0)) as (report,):
        subject.forward(batch)
    assert report.fired > 0
    hidden = _patterns(subject, modulation(0.0, share=1.0, depth=(0.4, 0.6)))
    image = batch.tokens["language"].has_role("image").reshape(3, -1)
    for row in range(3):
        assert float(hidden[row, :, -1, image[row]].abs().max()) == 0
    assert torch.allclose(hidden[:, :, -1].sum(-1), torch.ones(3, 6), atol=1e-6)


def test_scaling_by_role(subject: Subject) -> None:
    """The third prompt's last row reads the 16 image keys; two rows read as text."""
    plain = _patterns(subject)
    change = edits.scale_attention("language.L1H4", 3.0, queries="text")
    found = _patterns(subject, change)
    tokens = seen.three(subject).tokens["language"]
    image = tokens.has_role("image").reshape(3, -1)
    text = tokens.has_role("text").reshape(3, -1)
    assert change.label == "scale_attention(text -> image, 3)"
    for row in range(3):
        for query in range(found.shape[2]):
            old = plain[row, 4, query].tolist()
            expected = old
            if bool(text[row, query]):
                scaled = [3 * a if image[row, key] else a for key, a in enumerate(old)]
                expected = [a / sum(scaled) for a in scaled]
            assert found[row, 4, query].tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(found[:, :4], plain[:, :4]) and torch.equal(found[:, 5:], plain[:, 5:])


def test_a_row_with_nothing_else_to_read_stays(subject: Subject) -> None:
    """The first and third prompt begin with text, whose first token reads itself alone."""
    plain = _patterns(subject)
    found = _patterns(subject, edits.scale_attention("language.L1", 0.0, keys=("bos", "text")))
    first = [int(row.nonzero()[0, 0]) for row in seen.three(subject).tensors["attention_mask"]]
    for row, query in ((0, first[0]), (2, first[2])):
        assert torch.equal(found[row, :, query], plain[row, :, query])
        assert float(found[row, :, query + 6, query].abs().max()) == 0
    assert torch.allclose(found.sum(-1), plain.sum(-1), atol=1e-6)


def test_no_image_no_change() -> None:
    """An edit by role has nothing to do in a language model, and says so."""
    import tiny_models as tiny

    language = Subject(tiny.llama(), tiny.tokenizer("left"))
    batch = language.prepare(["a b c", "the cat"])
    with edit(language, edits.scale_attention("*", 2.0)) as (report,):
        language.forward(batch)
    assert report.touched == 0 and report.fired > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gain": -1.0}, "A gain of modulation must be at least 0, got -1"),
        ({"share": 0.0}, "`share` of modulation must lie between 0 and 1, got 0"),
        ({"gains": {}}, "must be given `heads` or a table of `gains` that names some, got an"),
        ({"gains": {"language.L0H0": 2.0}, "heads": "language.L0"}, "that names some, got both"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        modulation(**settings)
