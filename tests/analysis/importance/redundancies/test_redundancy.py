"""Similarity of heads by pattern and output, against whole matrices and slow loops."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.head_table import HeadTable
from analysis.importance.behaviours.activity import output_grams
from analysis.importance.redundancies.centre import centre_distance, centre_scores
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
from probes.attention_call import AttentionCall
from probes.capture import capture
from probes.head_outputs import head_outputs
from probes.heads import Head, Site
from probes.inputs import Example
from probes.listening import listen
from probes.subject import Subject
from tests import tiny_models as tiny

TEXTS = ["a b c d e f g", "the cat sat on a mat .", "c c d", "j i h g f"]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.sharp(tiny.llama()), tiny.tokenizer("left"))


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


def shuffled_mean(mine: Tensor, other: Tensor, allowed: slice) -> float:
    """Mean cosine over random orders of another row's weights among the keys it may read."""
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(4_000):
        moved = torch.zeros_like(other)
        weights = other[allowed]
        moved[allowed] = weights[torch.randperm(len(weights), generator=generator)]
        drawn.append(cosine(mine, moved))
    return float(np.mean(drawn))


def test_the_null_is_the_mean_over_shuffled_keys(subject: Subject) -> None:
    rows = PatternRows({"language": 18})
    (batch,) = batches(subject, 4)
    rows.start(batch)
    with listen(subject, batch, rows.listener):
        subject.forward(batch)
    partner = torch.arange(18).roll(5)
    _, null, count = rows.to_partner("language", partner)
    one = patterns_alone(subject)[2]
    expected = [
        shuffled_mean(one[7, query], one[int(partner[7]), query], slice(0, query + 1))
        for query in range(1, one.shape[1])
    ]
    assert float(null[2, 7] / count[2]) == pytest.approx(np.mean(expected), abs=0.02)


def test_the_null_of_a_head_with_a_window_is_shuffled_within_its_window() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    settings = {"vocab_size": 31, "hidden_size": 30, "intermediate_size": 14, "head_dim": 10}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    found = {}
    batch_of = Example("e0", text="a b c d e f g h i j")
    for window in (3, None):
        torch.manual_seed(7)
        model = tiny.sharp(
            MistralForCausalLM(MistralConfig(**settings, sliding_window=window)).eval()
        )
        found[window] = Subject(model, tiny.tokenizer("left"))
    # Both calls in one tower: what a model with a window in every second layer shows.
    wide, narrow = found[None], found[3]
    batch = wide.prepare(examples=[batch_of])
    rows = PatternRows({"language": 4})
    rows.start(batch)
    patterns = []

    def hear(layer: int) -> Callable[[AttentionCall], None]:
        def listener(call: AttentionCall) -> None:
            patterns.append(call.pattern()[0])
            rows.listener(replace(call, site=Site("language", layer)))

        return listener

    for layer, one in enumerate((wide, narrow)):
        with listen(one, batch, hear(layer)):
            one.forward(batch)
    _, null, count = rows.to_partner("language", torch.tensor([2, 3, 0, 1]))
    full, near = patterns
    queries = range(1, full.shape[1])
    to_near = [shuffled_mean(full[0, q], near[0, q], slice(max(0, q - 2), q + 1)) for q in queries]
    to_full = [shuffled_mean(near[1, q], full[1, q], slice(0, q + 1)) for q in queries]
    assert float(null[0, 0] / count[0]) == pytest.approx(np.mean(to_near), abs=0.02)
    assert float(null[0, 3] / count[0]) == pytest.approx(np.mean(to_full), abs=0.02)


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


@pytest.mark.parametrize("side", ["left", "right"])
def test_centre_scores_are_those_of_the_last_real_positions(subject: Subject, side: str) -> None:
    (batch,) = batches(subject, 4, side)
    z = head_outputs(subject, batch).z
    scores = centre_scores(subject, batch, z, last=3)
    for number, text in enumerate(TEXTS):
        alone = subject.prepare(text=[text], chat_template=False)
        seen = capture(subject, alone, z="language.*")
        for layer in (0, 2):
            weight = subject.model.model.layers[layer].self_attn.o_proj.weight.detach()
            units = []
            for head in range(6):
                part = weight[:, head * 10 : head * 10 + 10]
                written = seen.z(f"L{layer}")[0, -3:, head] @ part.T
                units.append((written.mean(0) / written.mean(0).norm()).numpy())
            centre = np.mean(units, axis=0)
            for head in range(6):
                expected = 1 - units[head] @ centre / np.linalg.norm(centre)
                found = scores.numerator[number, layer * 6 + head]
                assert float(found) == pytest.approx(float(expected), abs=1e-5)


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
    model = tiny.sharp(tiny.llama())
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


def test_an_example_without_an_image_does_not_hide_the_vision_tower_of_its_batch() -> None:
    from PIL import Image

    subject = Subject(tiny.llava(), tiny.llava_processor())
    examples = [
        Example("0", question="describe", image=Image.effect_noise((20, 20), 90).convert("RGB")),
        Example("1", question="the cat sat on a mat"),
    ]
    found = {}
    for size in (1, 2):
        data = [
            subject.prepare(examples=examples[start : start + size]) for start in range(0, 2, size)
        ]
        study = Redundancy()
        study.begin(subject, lambda data=data: data)
        tally = Tally(replicates=20)
        for batch in data:
            tally.add(study.score(subject, batch))
        frame = tally.heads("own").frame
        lines = frame[frame["measure"] == "centre_distance"].set_index(["tower", "layer", "head"])
        found[size] = lines[["value", "n", "null_low"]]
    assert found[2].loc["vision"]["n"].eq(1).all() and found[2].loc["language"]["n"].eq(2).all()
    assert np.allclose(found[1].loc[found[2].index], found[2], atol=1e-5)


def test_a_tower_that_is_given_up_is_not_half_in_the_tables(subject: Subject) -> None:
    data = batches(subject, 1)
    study = Redundancy()
    study.begin(subject, lambda: data)
    assert study._rows is not None
    study._rows.reasons["language"] = "planted"
    tables = study.finish(subject, lambda: data, Tally())
    assert set(tables["similarity"]["kind"]) == set(tables["groups"]["kind"]) == {"output"}


def test_the_only_head_of_a_tower_is_not_its_own_double() -> None:
    one = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    subject = Subject(tiny.llama(**one), tiny.tokenizer("left"))
    data = batches(subject, 4)
    study = Redundancy()
    study.begin(subject, lambda: data)
    scores = study.score(subject, data[0])
    assert not scores.columns and study.lines(subject, "own").empty
    for measure in (PATTERN, OUTPUT):
        assert "has one head, so there is no other" in scores.reasons["language", measure]
