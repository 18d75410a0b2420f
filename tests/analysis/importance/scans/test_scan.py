"""The whole scan on models: a head planted in weights, the induction heads, its confirmation."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from analysis.importance.scans.confirmation import chosen, sizes
from analysis.importance.scans.measured import measured, on_same_heads
from analysis.importance.scans.options import ScanError, ScanOptions
from analysis.importance.scans.scan import scan
from analysis.importance.scans.two_sets import halves
from analysis.importance.study import EffectError, StudyOptions
from probes.heads import Head
from probes.inputs import Example
from probes.loading import load
from probes.readers import read_examples
from probes.subject import Subject
from tests import tiny_models as tiny

TEXTS = ["a b c d e", "c f a e", "f g a h i j", "b a", "j a c", "d a d e f", "g h a b"]
MARK, STEADY = 29, 28
NEW, OLD = "k", "a"


def planted() -> Subject:
    """A tiny Llama in which three heads of the last layer tell the word k from the word a.

    Their embeddings differ in the sign of one dimension alone. Nothing reads or writes it but the
    value projection of the second group of the last layer: language.L2H3, L2H4, L2H5. A second
    dimension, the same for all words, gives these heads something to add it to.
    """
    model = tiny.llama()
    tokenizer = tiny.tokenizer("left")
    new, old = (tokenizer.convert_tokens_to_ids(word) for word in (NEW, OLD))
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        embedding[:, MARK], embedding[:, STEADY] = 0, 0.5
        embedding[new] = embedding[old]
        embedding[old, MARK], embedding[new, MARK] = -0.5, 0.5
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for reading in (
                attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj,
            ):  # fmt: skip
                reading.weight[:, [MARK, STEADY]] = 0
            for writing in (attention.o_proj, mlp.down_proj):
                writing.weight[[MARK, STEADY]] = 0
        model.model.layers[-1].self_attn.v_proj.weight[10:20, [MARK, STEADY]] = 2.0
    return Subject(model, tokenizer)


def examples(word: str, number: int = 14) -> list[Example]:
    texts = [text.replace(OLD, word) for text in TEXTS]
    more = [
        f"{text} {TEXTS[(index + 3) % 7].replace(OLD, word)}" for index, text in enumerate(texts)
    ]
    return [Example(f"x{index}", text=text) for index, text in enumerate([*texts, *more][:number])]


def batches(subject: Subject, given: list[Example], size: int = 5) -> list[Any]:
    return [subject.prepare(examples=given[i : i + size]) for i in range(0, len(given), size)]


@pytest.mark.parametrize("paired", [False, True])
def test_heads_planted_in_the_weights_are_the_ones_that_differ(paired: bool) -> None:
    subject = planted()
    found = scan(
        subject,
        batches(subject, examples(NEW)),
        batches(subject, examples(OLD)),
        ScanOptions(where="text", paired=paired, top=()),
    )
    assert found.towers == ("language",) and len(found.heads) == 18
    told = found.heads[found.heads["q"] <= 0.05]
    names = {(line.layer, line.head) for line in told.itertuples()}
    assert names == {(2, 3), (2, 4), (2, 5)}
    others = found.heads[found.heads["q"] > 0.05]
    assert len(others) == 15 and (others["p"] == 1).all()
    assert (others["effect_size"].abs() < 1e-4).all()
    assert found.lengths is not None and found.lengths[0] == found.lengths[1]
    assert found.discovered == 3 and len(found.confirmation) == 0
    assert "3 differ at a false discovery rate of 5 %" in repr(found)


def test_the_order_of_examples_and_batches_changes_nothing() -> None:
    subject = planted()
    how = ScanOptions(where="text", top=(2,), randoms=3, permutations=99)
    one, other = examples(NEW), examples(OLD)
    first = scan(subject, batches(subject, one), batches(subject, other), how)
    moved = scan(subject, batches(subject, one[::-1], 3), batches(subject, other, 2), how)
    columns = ["mean_behaviour", "mean_control", "effect_size", "first_half", "ci_low"]
    order = ["layer", "head"]
    ours, theirs = (found.heads.sort_values(order)[columns].to_numpy() for found in (first, moved))
    assert np.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert first.confirmation["heads"].tolist() == moved.confirmation["heads"].tolist()
    value = first.confirmation["value"].to_numpy() - moved.confirmation["value"].to_numpy()
    assert np.abs(value).max() < 1e-5


def test_sets_are_chosen_on_one_half_and_judged_on_the_other() -> None:
    """Judged by a forward of its own for every set, with hooks instead of the replay."""
    subject = planted()
    how = ScanOptions(where="text", top=(1, 3), randoms=4, permutations=99)
    one, other = examples(NEW), examples(OLD)
    progress: list[tuple[int, int]] = []
    found = scan(
        subject, batches(subject, one), batches(subject, other), how,
        StudyOptions(ablation="zero"), lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    lines = found.confirmation
    own = lines[(lines["k"] == 1) & (lines["kind"] == "chosen")]["heads"].tolist()
    best = found.heads.loc[found.heads["first_half"].idxmax()]
    assert own == [f"language.L{best['layer']}H{best['head']}"] * 2
    assert (lines["n"] == 7).all()
    assert progress[-1] == (len(lines) * 7, len(lines) * 7)
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    for name, given in (("behaviour", one), ("control", other)):
        first = halves([f"{name}:{example.id}" for example in given], 0)
        judged = [example for example, mine in zip(given, first, strict=True) if not mine]
        assert len(judged) == 7
        for line in lines[lines["inputs"] == name].itertuples():
            heads = [Head.parse(word) for word in str(line.heads).split()]
            assert line.value == pytest.approx(_loss(subject, judged, heads), abs=1e-5)


@torch.no_grad()
def _loss(subject: Subject, given: list[Example], heads: list[Head]) -> float:
    """Mean over tokens of what cross entropy gains when the heads' outputs are zeroed."""
    total, count = 0.0, 0
    for example in given:
        ids = subject.prepare(examples=[example]).tensors["input_ids"]
        intact = torch.nn.functional.cross_entropy(subject.model(ids).logits[0, :-1], ids[0, 1:])

        def without(layer: int) -> Any:
            def hook(_: Any, inputs: tuple) -> tuple:
                z = inputs[0].clone()
                for head in heads:
                    if head.layer == layer:
                        z[..., 10 * head.head : 10 * head.head + 10] = 0
                return (z,)

            return hook

        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(without(number))
            for number, block in enumerate(subject.model.model.layers)  # type: ignore[union-attr]
        ]
        try:
            logits = subject.model(ids).logits[0, :-1]
        finally:
            for handle in handles:
                handle.remove()
        changed = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        total += float(changed - intact) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


def test_which_heads_are_taken_away() -> None:
    subject = planted()
    found = scan(
        subject, batches(subject, examples(NEW)), batches(subject, examples(OLD)),
        ScanOptions(where="text", top=()),
    )  # fmt: skip
    heads = found.heads.assign(first_half=np.linspace(-2, 3, 18), effect_size=0.0)
    heads.loc[7, "first_half"] = np.nan
    named = [Head(line.tower, line.layer, line.head) for line in heads.itertuples()]
    values = dict(zip(named, heads["first_half"], strict=True))
    by_side = {
        side: chosen(heads, replace(found.how, side=side)) for side in ("more", "less", "either")
    }
    assert [values[h] for h in by_side["more"]] == sorted(
        (v for v in values.values() if v > 0), reverse=True
    )
    assert [values[h] for h in by_side["less"]] == sorted(v for v in values.values() if v < 0)
    assert len(by_side["either"]) == 17 and by_side["either"][0] == named[17]
    assert sizes(ScanOptions(top=(4, 1, 4, 9)), 6) == [1, 4]


@pytest.fixture(scope="module")
def induction():
    """The bundled repeats against their control, on a model with induction heads in layer 1."""
    subject = load("repeat-lm")
    one, other = (
        batches(subject, list(read_examples(n, limit=20)), 10) for n in ("repeats", "unrepeated")
    )
    how = ScanOptions(paired=True, top=(4, 40), randoms=6, permutations=999)
    return scan(subject, one, other, how), subject, one, other


def test_the_induction_heads_differ_where_the_repetition_is_read(induction) -> None:
    found, subject, one, other = induction
    assert found.how.where == "answer"  # both sets have answers
    told = found.heads[found.heads["q"] <= 0.05]
    assert {(h.layer, h.head) for h in told.itertuples()} >= {(1, n) for n in (0, 1, 4, 5, 6, 7)}
    assert (told["effect_size"] > 1).sum() >= 6 and (1, 3) not in {
        (h.layer, h.head) for h in told.itertuples()
    }
    early = scan(subject, one, other, ScanOptions(where="last", last=1, top=(), paired=True))
    assert early.how.where == "last" and early.variant == "last=1, paired"


def test_what_a_confirmed_scan_says(induction) -> None:
    found = induction[0]
    assert found.examples == (20, 20) and found.splits == 1000
    excess = found.excess()
    assert excess["k"].tolist() == [4] and excess["n"].tolist() == [10]
    assert excess["randoms"].tolist() == [6]
    line = excess.iloc[0]
    assert line["ci_low"] < line["chosen"] < line["ci_high"] and line["chosen"] > 1
    assert found.excess("control")["chosen"][0] < 0.2  # no repetition to be lost
    text = repr(found)
    assert "20 behaviour against 20 control examples in pairs: " in text
    assert "without 4 chosen on other examples: cross_entropy" in text and "6 random sets" in text
    with pytest.raises(ValueError, match="`inputs` must be one of behaviour, control, got 'x'"):
        found.excess("x")
    table = found.table("repeats against unrepeated")
    lines = table.lines("difference_activity")
    assert lines["variant"].unique().tolist() == ["answer, paired"] and (lines["n"] == 40).all()
    assert table.grid("difference_activity").shape == (2, 8)


def test_any_streaming_measure_can_be_compared(induction) -> None:
    _, subject, one, other = induction
    found = scan(
        subject, one, other, ScanOptions(measure="entropy", side="less", top=(2,), randoms=2)
    )
    assert found.unit == "nats" and found.how.where == ""
    assert found.heads.iloc[0]["effect_size"] < -1
    assert len(found.excess()) == 1
    value = measured(subject, lambda: one, "entropy", "", ["language"])
    assert value.values.shape == (20, 16) and sorted(value.examples) == [
        f"repeat-{number:03d}" for number in range(20)
    ]
    line = found.heads.iloc[0]
    column = value.heads.index(Head("language", int(line["layer"]), int(line["head"])))
    assert line["mean_behaviour"] == pytest.approx(value.values[:, column].mean())
    with pytest.raises(ScanError, match=r"`variant` must be .* \(bos->bos, .*\), none was named"):
        scan(subject, one, other, ScanOptions(measure="role_mass", top=()))
    named = ScanOptions(measure="role_mass", variant="text->bos", top=())
    assert scan(subject, one, other, named).variant == "text->bos"
    with pytest.raises(ScanError, match="'mean_hop' must give a number for each head of language"):
        scan(subject, one, other, ScanOptions(measure="mean_hop", top=()))


def test_heads_that_one_set_lacks_have_no_value() -> None:
    from analysis.importance.behaviours.activity import HeadValues

    heads = [Head("language", 0, number) for number in range(3)]
    one = HeadValues(np.ones((2, 2)), ("a", "b"), (heads[0], heads[2]), ("x", "x"), "nats")
    other = HeadValues(np.full((1, 2), 5.0), ("c",), (heads[2], heads[1]), ("x", "x"), "nats")
    mine, theirs = on_same_heads(one, other)
    assert mine.heads == theirs.heads == (heads[0], heads[2], heads[1])
    assert np.isnan(mine.values).tolist() == [[False, False, True]] * 2
    assert np.array_equal(theirs.values, [[np.nan, 5.0, 5.0]], equal_nan=True)


def test_the_same_inputs_differ_in_nothing() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    given = batches(subject, examples(OLD, 3))
    same = scan(subject, given, given, ScanOptions(top=()))
    assert (same.heads["p"] == 1).all() and (same.heads["effect_size"] == 0).all()
    assert same.splits == 20 and same.how.where == "last" and same.effect == ""
    assert "0 differ" in repr(same)


def test_a_vision_model_is_scanned_over_all_its_patches() -> None:
    subject = Subject(tiny.vit(), tiny.image_processor(20))
    draw = torch.Generator().manual_seed(4)
    one = subject.prepare(pixel_values=torch.randn(5, 3, 20, 20, generator=draw))
    other = subject.prepare(pixel_values=torch.randn(4, 3, 20, 20, generator=draw))
    jsd = StudyOptions(effects=("jsd",))
    found = scan(subject, [one], [other], ScanOptions(top=(2,), randoms=3, side="either"), jsd)
    assert set(found.heads["tower"]) == {"vision"} and len(found.heads) == 6
    assert found.effect == "jsd" and found.splits == 126 and found.how.where == "all"
    with pytest.raises(
        ScanError, match=r"`where` must be all where no tower reads text \(vision\)"
    ):
        scan(subject, [one], [other], ScanOptions(where="answer"))


@pytest.mark.parametrize(
    ("how", "options", "kind", "sentence"),
    [
        ({"towers": ("vision",)}, {}, ScanError, "`towers` must be among language, got 'vision'"),
        ({}, {"ablation": "uniform"}, ScanError, "earlier layers, and 'uniform' does"),
        ({}, {"effects": ("layer_cosine",)}, ScanError, "'layer_cosine' is told by one block"),
        ({}, {"effects": ("cosine",)}, EffectError, "'cosine' compares vectors"),
        ({"where": "answer"}, {}, ValueError, r"'behaviour:x0' must have a position of language"),
    ],
)
def test_what_cannot_be_had_is_said(how: Any, options: Any, kind: Any, sentence: str) -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    one, other = (batches(subject, examples(word, 5)) for word in (NEW, OLD))
    with pytest.raises(kind, match=sentence):
        scan(subject, one, other, ScanOptions(**how), StudyOptions(**options))


def test_too_few_examples_are_refused() -> None:
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    some = batches(subject, examples(OLD, 6))
    for few, sentence in (
        (batches(subject, examples(NEW, 1)), "at least 2 examples to be compared, got 1 and 6"),
        (batches(subject, examples(NEW, 3)), "at least 4 examples, half of them .* got 3 and 6"),
        ([], "Both sets must hold examples, the behaviour is empty"),
    ):
        with pytest.raises(ValueError, match=sentence):
            scan(subject, few, some)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"where": "words"}, "`where` must be one of last, answer, text, all, got 'words'"),
        ({"side": "up"}, "`side` must be one of more, less, either, got 'up'"),
        ({"top": (2, 0)}, "`top` must hold numbers of heads of at least 1, got 0"),
        ({"randoms": 0}, "`randoms` must be at least 1, got 0"),
        ({"variant": "x"}, "activity has none, got 'x'"),
        ({"measure": "entropy", "where": "text"}, "must be left alone with measure 'entropy'"),
        ({"measure": "entropy", "last": 2}, "must be left alone with measure 'entropy'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: Any, sentence: str) -> None:
    with pytest.raises(ScanError, match=sentence):
        ScanOptions(**options)


def test_what_a_scan_leaves_behind() -> None:
    """No hooks on the model, also after a failure in the middle."""
    subject = Subject(tiny.llama(), tiny.tokenizer("left"))
    one, other = (batches(subject, examples(word, 6)) for word in (NEW, OLD))

    def hooks() -> int:
        return sum(
            len(module._forward_hooks) + len(module._forward_pre_hooks)
            for module in subject.model.modules()
        )

    def broken(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = hooks()
    with pytest.raises(KeyboardInterrupt):
        scan(subject, one, other, ScanOptions(top=(1,), permutations=9), progress=broken)
    assert hooks() == before
