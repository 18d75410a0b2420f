"""Sets of heads taken away together, against edits of the whole model."""

import re

import numpy as np
import pytest

from analysis.importance.joint import joint_effect, pruning_curve
from analysis.importance.leave_one_out import Ablation
from analysis.importance.set_effects import effects_of_sets
from analysis.importance.study import StudyOptions
from probes import edits
from probes.edits.apply import edit
from probes.heads import Head
from probes.inputs import Example
from probes.subject import Subject
from tests import tiny_models as tiny

TEXTS = ["a b c d e f", "the cat sat on a mat .", "c c d", "j i h g f e d c b a", "e d c"]
SETS = [
    [Head("language", 0, 1), Head("language", 2, 5), Head("language", 2, 0)],
    [],
    [Head("language", 1, 3)],
]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(tiny.llama(), tiny.tokenizer("left"))


@pytest.fixture(scope="module")
def batches(subject: Subject) -> list:
    examples = [Example(f"e{number}", text=text) for number, text in enumerate(TEXTS)]
    return [subject.prepare(examples=examples[:3]), subject.prepare(examples=examples[3:])]


def begun(subject: Subject, batches: list, **options: object) -> Ablation:
    ablation = Ablation(StudyOptions(**options))  # type: ignore[arg-type]
    ablation.begin(subject, lambda: batches)
    return ablation


def loss_and_right(subject: Subject, batch: object, *changes: object) -> tuple[list, list, list]:
    """Per example: sum of log p of the next tokens, number right, and how many."""
    with edit(subject, *changes):  # type: ignore[arg-type]
        logits = subject.forward(batch).logits.log_softmax(-1)  # type: ignore[arg-type]
    ids, mask = batch.tensors["input_ids"], batch.tensors["attention_mask"]
    good, right, count = [], [], []
    for row in range(len(ids)):
        first = int((mask[row] == 0).sum())
        places = range(first + 1, ids.shape[1])
        good.append(sum(float(logits[row, p - 1, ids[row, p]]) for p in places))
        right.append(sum(int(logits[row, p - 1].argmax()) == int(ids[row, p]) for p in places))
        count.append(len(places))
    return good, right, count


def test_effects_equal_those_of_edits(subject: Subject, batches: list) -> None:
    found = effects_of_sets(
        subject, lambda: batches, SETS, begun(subject, batches, ablation="zero")
    )
    frame = found.frame()
    for line, heads in zip(frame.itertuples(), SETS, strict=True):
        lost, before, right, count = 0.0, 0, 0, 0
        for batch in batches:
            intact = loss_and_right(subject, batch, edits.scale("L0H0", 1.0))
            change = edits.zero(heads) if heads else edits.scale("L0H0", 1.0)
            without = loss_and_right(subject, batch, change)
            lost += sum(intact[0]) - sum(without[0])
            before += sum(intact[1])
            right += sum(without[1])
            count += sum(intact[2])
        assert line.value == pytest.approx(lost / count, abs=1e-6)
        assert line.accuracy == pytest.approx(right / count)
        assert line.accuracy_intact == pytest.approx(before / count)
        assert line.n == 5
    assert frame["value"][1] == 0
    assert frame["heads"][0] == "language.L0H1 language.L2H0 language.L2H5"
    assert frame["ci_low"][0] < frame["value"][0] < frame["ci_high"][0]


def test_mean_replacement_of_several_layers_at_once(subject: Subject, batches: list) -> None:
    ablation = begun(subject, batches)
    frame = effects_of_sets(subject, lambda: batches, SETS, ablation).frame()
    sites = {head.site for head in SETS[0]}
    assert ablation.replacement is not None
    means = {str(site): ablation.replacement.mean(site).float() for site in sites}
    lost, count = 0.0, 0
    for batch in batches:
        intact = loss_and_right(subject, batch, edits.scale("L0H0", 1.0))
        without = loss_and_right(subject, batch, edits.mean(SETS[0], means))
        lost += sum(intact[0]) - sum(without[0])
        count += sum(intact[2])
    assert frame["value"][0] == pytest.approx(lost / count, abs=1e-6)


def test_sets_say_how_many_rows_they_changed(subject: Subject, batches: list) -> None:
    words = [6, 7, 3, 10, 3]
    zero = begun(subject, batches, ablation="zero")
    judged: list[int] = []
    frame = effects_of_sets(subject, lambda: batches, SETS, zero, judged=judged.append).frame()
    assert frame["rows_changed"].tolist() == [3 * sum(words), 0, sum(words)]
    assert judged == [3, 3, 3, 2, 2, 2]
    kept = effects_of_sets(
        subject, lambda: batches, SETS, zero, only={"e1", "e4"}.__contains__, judged=judged.append
    )
    assert kept.rows_changed == (3 * (7 + 3), 0, 7 + 3)
    assert judged[6:] == [1] * 6
    resample = begun(subject, batches, ablation="resample", draws=2)
    judged.clear()
    drawn = effects_of_sets(subject, lambda: batches, SETS, resample, judged=judged.append)
    assert drawn.rows_changed == (2 * 3 * sum(words), 0, 2 * sum(words))
    assert judged == [3] * 6 + [2] * 6


def test_joint_effect_stands_against_random_sets(subject: Subject, batches: list) -> None:
    ablation = begun(subject, batches, ablation="zero")
    found = joint_effect(subject, lambda: batches, SETS[0], ablation, randoms=7, seed=3)
    assert found.there_are == 6 * 15 - 1
    assert found.lines["kind"].tolist() == ["chosen"] + ["random"] * 7
    assert len(found.random) == 7
    assert found.p == (1 + (found.random >= found.value).sum()) / 8
    alone = effects_of_sets(subject, lambda: batches, SETS[:1], ablation)
    assert found.value == pytest.approx(float(alone.change.value[0]))
    assert re.match(
        r"Without language.L0H1, language.L2H0, language.L2H5 together: cross_entropy .* nats, "
        r"accuracy 0\.\d+ -> 0\.\d+; 7 of 89 sets with as many heads in each layer: mean",
        repr(found),
    )


def test_a_whole_layer_has_nothing_to_be_compared_with(subject: Subject, batches: list) -> None:
    layer = [Head("language", 1, head) for head in range(6)]
    ablation = begun(subject, batches, ablation="zero")
    found = joint_effect(subject, lambda: batches, layer, ablation)
    assert np.isnan(found.p) and not len(found.random)
    assert "no other set has as many heads in each layer" in repr(found)


def test_pruning_goes_from_nothing_to_everything(subject: Subject, batches: list) -> None:
    order = [Head("language", layer, head) for layer in (2, 0, 1) for head in range(6)]
    ablation = begun(subject, batches, ablation="zero")
    curve = pruning_curve(
        subject, lambda: batches, order, ablation, fractions=(0, 0.25, 1), randoms=3
    )
    assert curve["kind"].tolist() == ["order"] * 3 + ["random"] * 9
    assert curve["removed"].tolist() == [0, 4, 18] * 4
    nothing, everything = curve[curve["step"] == 0], curve[curve["step"] == 2]
    assert (nothing["value"] == 0).all()
    assert (nothing["accuracy"] == nothing["accuracy_intact"]).all()
    assert np.allclose(everything["value"], everything["value"].iloc[0])
    middle = curve[curve["step"] == 1]["value"]
    assert middle.nunique() == 4
    four = effects_of_sets(subject, lambda: batches, [order[:4]], ablation)
    assert middle.iloc[0] == pytest.approx(float(four.change.value[0]))


def test_what_cannot_be_done_is_said(subject: Subject, batches: list) -> None:
    data = lambda: batches  # noqa: E731
    uniform = begun(subject, batches, ablation="uniform")
    with pytest.raises(ValueError, match="does not depend on earlier layers, and 'uniform' does"):
        effects_of_sets(subject, data, SETS, uniform)
    with pytest.raises(ValueError, match="At least one head must be taken away"):
        joint_effect(subject, data, [], begun(subject, batches))
    with pytest.raises(ValueError, match="must name each of its heads once"):
        pruning_curve(subject, data, [SETS[2][0]] * 2, begun(subject, batches))
    with pytest.raises(ValueError, match="`fractions` must lie between 0 and 1"):
        pruning_curve(subject, data, SETS[2], begun(subject, batches), fractions=(1.5,))


def test_a_tower_that_the_input_does_not_reach_loses_nothing() -> None:
    subject = Subject(tiny.llava(), tiny.llava_processor())
    batch = subject.prepare(examples=[Example("x", text="a b c d"), Example("y", text="c d e")])
    sets = [[Head("vision", 0, 1)], [Head("language", 0, 1)]]
    ablation = Ablation(StudyOptions(ablation="zero"))
    ablation.begin(subject, lambda: [batch])
    values = effects_of_sets(subject, lambda: [batch], sets, ablation).change.value
    assert values[0] == 0 and values[1] != 0


def test_random_orders_depend_on_the_seed(subject: Subject, batches: list) -> None:
    order = [Head("language", 0, head) for head in range(6)]
    ablation = begun(subject, batches, ablation="zero")
    curves = [
        pruning_curve(
            subject, lambda: batches, order, ablation, fractions=(0.5,), randoms=2, seed=seed
        )
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(curves[0]["value"], curves[1]["value"])
    assert not np.array_equal(curves[0]["value"], curves[2]["value"])
