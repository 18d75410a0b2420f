"""Similarity of heads by pattern and output, against whole matrices and slow loops."""

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.head_table import HeadTable
from analysis.importance.behaviours.activity import output_grams
from analysis.importance.redundancies.centre import centre_distance
from analysis.importance.redundancies.head_groups import group_lines, groups_of, pair_lines
from analysis.importance.redundancies.redundancy import OUTPUT, PATTERN, Redundancy, closest
from analysis.importance.redundancies.similar_outputs import (
    OutputSample,
    cka,
    cka_interval,
    shuffled_cka,
)
from analysis.importance.redundancies.similar_patterns import PatternRows
from analysis.tally import Tally
from probes.capture import capture
from probes.heads import Head
from probes.inputs import Example
from probes.listening import listen
from probes.subject import Subject
from tests import tiny_models as tiny
from tests.probes.test_tap import sharp

TEXTS = ["a b c d e f g", "the cat sat on a mat .", "c c d", "j i h g f"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(sharp(tiny.llama()), tiny.tokenizer("left"))


def batches(subject: Subject, size: int, side: str = "left") -> list:
    examples = [Example(f"e{number}", text=text) for number, text in enumerate(TEXTS)]
    groups = [examples[start : start + size] for start in range(0, len(examples), size)]
    return [subject.prepare(examples=group, padding_side=side) for group in groups]


def patterns_alone(subject: Subject) -> list[Tensor]:
    """``[head query key]`` of all layers, one per example, without padding."""
    found = []
    for batch in batches(subject, 1):
        seen = capture(subject, batch, patterns="language.*")
        found.append(torch.cat([seen.pattern(f"L{layer}")[0] for layer in range(3)]))
    return found


def cosine(one: Tensor, other: Tensor) -> float:
    return float((one @ other) / (one.norm() * other.norm()))


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_pattern_similarity_equals_a_loop(subject: Subject, size: int, side: str) -> None:
    rows = PatternRows({"language": 18})
    total, count = torch.zeros(18, 18).double(), 0.0
    for batch in batches(subject, size, side):
        rows.start(batch)
        with listen(subject, batch, rows.listener):
            subject.forward(batch)
        part, counted = rows.similarity("language")
        total, count = total + part.sum(0), count + float(counted.sum())
    alone = patterns_alone(subject)
    assert count == sum(len(one[0]) - 1 for one in alone)
    for first, second in ((0, 1), (3, 17), (8, 9), (16, 2)):
        values = [
            cosine(one[first, query], one[second, query])
            for one in alone
            for query in range(1, one.shape[1])
        ]
        assert float(total[first, second] / count) == pytest.approx(np.mean(values), abs=1e-5)
    assert torch.allclose(total.diagonal() / count, torch.ones(18).double(), atol=1e-5)


def test_the_null_is_the_mean_over_shuffled_keys(subject: Subject) -> None:
    rows = PatternRows({"language": 18})
    (batch,) = batches(subject, 4)
    rows.start(batch)
    with listen(subject, batch, rows.listener):
        subject.forward(batch)
    partner = torch.arange(18).roll(5)
    _, null, count = rows.to_partner("language", partner)
    one = patterns_alone(subject)[2]
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for query in range(1, one.shape[1]):
        mine, other = one[7, query, : query + 1], one[int(partner[7]), query, : query + 1]
        orders = [torch.randperm(query + 1, generator=generator) for _ in range(4_000)]
        drawn.append(np.mean([cosine(mine, other[order]) for order in orders]))
    assert float(null[2, 7] / count[2]) == pytest.approx(np.mean(drawn), abs=0.02)


def test_few_rows_are_kept_of_long_sequences(monkeypatch, subject: Subject) -> None:
    from analysis.importance.redundancies import similar_patterns

    monkeypatch.setattr(similar_patterns, "MOST_ROWS", 3)
    rows = PatternRows({"language": 18})
    for size in (1, 4):
        counts, sums = [], []
        for batch in batches(subject, size):
            rows.start(batch)
            with listen(subject, batch, rows.listener):
                subject.forward(batch)
            total, count = rows.similarity("language")
            counts += count.tolist()
            sums.append(total)
        if size == 1:
            expected = torch.cat(sums)
        else:
            assert torch.allclose(torch.cat(sums), expected, atol=1e-5)  # the same rows
    assert max(counts) <= 3


def naive_cka(x: Tensor, y: Tensor) -> float:
    """By Gram matrices of tokens, in float64."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    one, other = x @ x.T, y @ y.T
    return float((one * other).sum() / ((one * one).sum() * (other * other).sum()).sqrt())


def test_cka_equals_that_of_contributions(subject: Subject) -> None:
    sample = OutputSample(output_grams(subject, ["language"]))
    for batch in batches(subject, 3):
        sample.start(batch)
        with listen(subject, batch, sample.listener):
            subject.forward(batch)
        sample.finish_batch()
    found = cka(sample.outputs("language"))
    written: dict[int, list[Tensor]] = {}
    for batch in batches(subject, 1):
        seen = capture(subject, batch, z="language.*")
        for layer in range(3):
            weight = subject.model.model.layers[layer].self_attn.o_proj.weight
            for head in range(6):
                part = weight.detach()[:, head * 10 : head * 10 + 10]
                written.setdefault(layer * 6 + head, []).append(
                    seen.z(f"L{layer}")[0, :, head] @ part.T
                )
    whole = {head: torch.cat(parts) for head, parts in written.items()}
    for first, second in ((0, 1), (4, 13), (17, 6)):
        expected = naive_cka(whole[first], whole[second])
        assert float(found[first, second]) == pytest.approx(expected, abs=1e-4)
    assert torch.allclose(found.diagonal(), torch.ones(18).double())
    assert torch.equal(found, found.T)


def test_cka_is_blind_to_rotation_and_scale_and_to_the_size_of_blocks(monkeypatch) -> None:
    from analysis.importance.redundancies import similar_outputs

    draw = torch.Generator().manual_seed(1)
    x = torch.randn(1, 47, 5, generator=draw)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=draw)).Q
    every = torch.cat([x, 3 * x @ turn, torch.randn(5, 47, 5, generator=draw)])
    every = every - every.mean(1, keepdim=True)
    whole = cka(every)
    assert float(whole[0, 1]) == pytest.approx(1, abs=1e-6)
    assert float(whole[0, 2]) < 0.5
    monkeypatch.setattr(similar_outputs, "_COLUMNS", 11)
    assert torch.allclose(cka(every), whole, atol=1e-6)


def test_a_head_that_never_varies_has_no_cka() -> None:
    every = torch.zeros(3, 7, 2)
    every[1:] = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))
    every = every - every.mean(1, keepdim=True)
    found = cka(every)
    assert bool(found[0].isnan().all()) and bool(found[1:, 1:].isfinite().all())
    assert closest(found).tolist() == [1, 2, 1]


def test_the_sample_does_not_depend_on_batches_or_padding(subject: Subject) -> None:
    kept = []
    for size, side in ((1, "left"), (3, "left"), (4, "right")):
        sample = OutputSample(output_grams(subject, ["language"]), most=11)
        for batch in batches(subject, size, side):
            sample.start(batch)
            with listen(subject, batch, sample.listener):
                subject.forward(batch)
            sample.finish_batch()
        kept.append((sample.outputs("language"), sample.examples("language")))
    for outputs, examples in kept[1:]:
        assert torch.allclose(outputs, kept[0][0], atol=1e-4)
        assert examples == kept[0][1]
    assert kept[0][0].shape[:2] == (18, 11)


def test_shuffled_tokens_are_less_alike_and_intervals_hold_the_value() -> None:
    draw = torch.Generator().manual_seed(2)
    shared = torch.randn(1, 400, 3, generator=draw)
    every = shared + 0.5 * torch.randn(4, 400, 3, generator=draw)
    every = every - every.mean(1, keepdim=True)
    matrix, partner = cka(every), torch.tensor([1, 0, 3, 2])
    names = [f"e{number // 8}" for number in range(400)]
    low, high = cka_interval(every, partner, names, 100)
    value = matrix[torch.arange(4), partner].numpy()
    assert ((low < value) & (value < high)).all()
    assert (high - low < 0.3).all()
    assert bool((shuffled_cka(every, partner) < 0.1).all())
    nothing, _ = cka_interval(every, partner, ["one"] * 400, 100)
    assert np.isnan(nothing).all()


def test_centre_distance_by_hand() -> None:
    three = torch.tensor([[[1.0, 0.0], [5.0, 0.0], [0.0, 2.0]]])
    centre = np.array([2.0, 1.0]) / np.sqrt(5)
    expected = [1 - centre[0], 1 - centre[0], 1 - centre[1]]
    assert centre_distance(three)[0].tolist() == pytest.approx(expected)
    same = torch.ones(2, 4, 3)
    assert torch.allclose(centre_distance(same), torch.zeros(2, 4).double(), atol=1e-7)


def test_groups_hold_heads_that_are_alike() -> None:
    similarity = np.eye(5)
    for one, other, value in ((0, 3, 0.95), (0, 4, 0.9), (3, 4, 0.85), (1, 2, 0.7)):
        similarity[one, other] = similarity[other, one] = value
    labels = groups_of(similarity, 0.8)
    assert labels[0] == labels[3] == labels[4]
    assert len(set(labels.tolist())) == 3
    heads = [Head("language", 1, number) for number in range(5)]
    lines = group_lines(heads, torch.tensor(similarity), "output", 0.8)
    assert lines["group"].tolist()[0] == 0 and lines["size"].tolist() == [3, 1, 1, 3, 3]
    pairs = pair_lines(heads, torch.tensor(similarity), "output")
    assert len(pairs) == 10
    mine = pairs[(pairs["head_a"] == 0) & (pairs["head_b"] == 4)]
    assert mine["value"].tolist() == [0.9]


@pytest.mark.parametrize("size", [2, 4])
def test_the_study_gives_the_highest_similarity_of_each_head(subject: Subject, size: int) -> None:
    study = Redundancy()
    data = batches(subject, size)
    study.begin(subject, lambda: data)
    tally = Tally(replicates=20)
    for batch in data:
        tally.add(study.score(subject, batch))
    tables = study.finish(subject, lambda: data, tally)
    heads = tally.heads("own")
    assert set(tables) == {"similarity", "groups"}
    own = HeadTable(study.lines(subject, "own"))
    pairs = tables["similarity"]
    assert len(pairs) == 2 * 153 and set(pairs["kind"]) == {"pattern", "output"}
    for kind, lines in (
        ("pattern", heads.lines(PATTERN)),
        ("output", own.lines(OUTPUT)),
    ):
        mine = pairs[pairs["kind"] == kind]
        for line in lines.itertuples():
            one = (mine["layer_a"] == line.layer) & (mine["head_a"] == line.head)
            other = (mine["layer_b"] == line.layer) & (mine["head_b"] == line.head)
            assert line.value == pytest.approx(mine["value"][one | other].max(), abs=1e-6)
            assert line.null_low < line.value
    distance = heads.lines("centre_distance", variant="last=8")
    assert len(distance) == 18
    assert distance["null_low"].iloc[0] == pytest.approx(1 - 6**-0.5)
    assert len(tables["groups"]) == 36


def test_a_planted_copy_of_a_head_is_found() -> None:
    model = sharp(tiny.llama())
    attention = model.model.layers[1].self_attn
    with torch.no_grad():  # heads 0 and 2 share a key head
        attention.q_proj.weight[20:30] = attention.q_proj.weight[:10]
        attention.o_proj.weight[:, 20:30] = 2 * attention.o_proj.weight[:, :10]
    subject = Subject(model, tiny.tokenizer("left"))
    data = batches(subject, 4)
    study = Redundancy()
    study.begin(subject, lambda: data)
    scores = study.score(subject, data[0])
    tables = study.finish(subject, lambda: data, Tally())
    values = dict(zip(scores.columns, scores.values.tolist(), strict=True))
    found = {(c.layer, c.head): value for c, value in values.items() if c.measure == PATTERN}
    assert found[1, 0] == pytest.approx(1) and found[1, 2] == pytest.approx(1)
    groups = tables["groups"]
    layer = groups[(groups["layer"] == 1) & (groups["kind"] == "output")].set_index("head")
    assert layer["group"][0] == layer["group"][2]
    pairs = tables["similarity"]
    mine = pairs[(pairs["kind"] == "output") & (pairs["layer_a"] == 1) & (pairs["layer_b"] == 1)]
    copy = mine[(mine["head_a"] == 0) & (mine["head_b"] == 2)]
    assert copy["value"].iloc[0] == pytest.approx(1, abs=1e-5)


def test_both_towers_of_a_vision_language_model() -> None:
    from PIL import Image

    subject = Subject(tiny.llava(), tiny.llava_processor())
    pictures = [Image.new("RGB", (20, 20), (40 * n, 30, 60)) for n in range(3)]
    batch = subject.prepare(
        text=["<image> a b c", "<image> d e", "<image> the cat"], images=pictures
    )
    study = Redundancy()
    study.begin(subject, lambda: [batch])
    scores = study.score(subject, batch)
    assert {(c.tower, c.measure) for c in scores.columns} == {
        (tower, measure)
        for tower in ("vision", "language")
        for measure in (PATTERN, "centre_distance")
    }
    tables = study.finish(subject, lambda: [batch], Tally())
    assert set(tables["similarity"]["tower"]) == {"vision", "language"}
