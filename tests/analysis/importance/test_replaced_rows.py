"""What ablations say that they changed, against counts made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch

from analysis.importance.leave_one_out import importance, keep_one
from analysis.importance.readings import ReadingError
from analysis.importance.replaced_rows import replaced_by, replaced_rows
from analysis.importance.replacements import Zero
from analysis.importance.study import StudyOptions
from analysis.scores import BatchScores
from analysis.touched import Touched, by_tower
from probes.heads import Site
from probes.inputs import Example
from probes.replay import record
from probes.subject import Subject
from probes.tokens.map import ROLES, TokenMap

TEXTS = ["a b c", "the cat sat on a mat .", "d e"]
WORDS = [3, 7, 2]


def _text_subject(side="right"):
    return Subject(tiny_models.llama(), tiny_models.tokenizer(side))


def _batches(subject, size, side="right"):
    examples = [Example(f"e{number}", text=text) for number, text in enumerate(TEXTS)]
    return [
        subject.prepare(examples=examples[i : i + size], padding_side=side)
        for i in range(0, len(examples), size)
    ]


def _touched(study, subject, batches):
    study.begin(subject, lambda: batches)
    parts = [study.score(subject, batch) for batch in batches]
    return BatchScores.merge(parts).touched


def _image(seed):
    return np.random.default_rng(seed).integers(0, 255, (20, 20, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pictured():
    """Two images of 17 positions, one, none; 35, 19 and 4 positions of text and images."""
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor())
    examples = [
        Example("two", images=(_image(0), _image(1)), question="describe", answer="the cat"),
        Example("one", images=(_image(2),), question="describe", answer="sat on"),
        Example("none", question="describe a mat", answer="sat"),
    ]
    return subject, subject.prepare(examples=examples)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_word_of_every_example_is_a_row_of_each_head_and_padding_is_none(size, side):
    subject = _text_subject(side)
    study = importance(StudyOptions(ablation="zero"))
    touched = _touched(study, subject, _batches(subject, size, side))
    rows = sum(WORDS)
    expected = Touched(3, 18, dict.fromkeys(range(6), (rows, rows)))
    whole = Touched(3, 3, dict.fromkeys(range(6), (6 * rows, 6 * rows)))
    variant = "ablation=zero"
    assert touched == {
        ("language", layer, name, variant): counts
        for layer in range(3)
        for name, counts in (
            ("importance_cross_entropy", expected),
            ("layer_off_cross_entropy", whole),
        )
    }


def test_keeping_one_head_replaces_the_five_others():
    subject = _text_subject()
    batches = _batches(subject, 2)
    touched = _touched(keep_one(StudyOptions(ablation="zero")), subject, batches)
    rows = 5 * sum(WORDS)
    assert set(touched) == {
        ("language", layer, "keep_one_cross_entropy", "ablation=zero") for layer in range(3)
    }
    assert all(
        one == Touched(3, 18, dict.fromkeys(range(6), (rows, rows))) for one in touched.values()
    )


def test_heads_that_give_nothing_anyway_are_named_and_no_error():
    subject = _text_subject()
    with torch.no_grad():  # the second of two value heads, which heads 3 to 5 share
        subject.model.model.layers[1].self_attn.v_proj.weight[10:] = 0
    touched = _touched(importance(StudyOptions(ablation="zero")), subject, _batches(subject, 3))
    place = ("language", 1, "importance_cross_entropy", "ablation=zero")
    assert touched[place].unchanged == [3, 4, 5]
    assert touched[place].rows[2] == (12, 12) and touched[place].rows[3] == (12, 0)
    assert touched["language", 1, "layer_off_cross_entropy", "ablation=zero"].rows[3] == (72, 36)
    record_ = by_tower({place: touched[place]})[0]
    assert record_["unchanged"] == ["L1H3", "L1H4", "L1H5"] and record_["reason"] == ""
    with torch.no_grad():
        subject.model.model.layers[1].self_attn.v_proj.weight[:] = 0
    touched = _touched(keep_one(StudyOptions(ablation="zero")), subject, _batches(subject, 3))
    place = ("language", 1, "keep_one_cross_entropy", "ablation=zero")
    assert touched[place].rows == dict.fromkeys(range(6), (60, 0))
    assert by_tower({place: touched[place]})[0]["reason"].startswith("What was put in equals")


def test_each_draw_counts():
    subject = _text_subject()
    study = importance(StudyOptions(ablation="resample", draws=2))
    touched = _touched(study, subject, _batches(subject, 2))
    place = ("language", 2, "importance_cross_entropy", "ablation=resample")
    assert (touched[place].examples, touched[place].ablations) == (3, 36)
    assert touched[place].rows == dict.fromkeys(range(6), (24, 24))


def test_an_example_counts_where_it_has_positions(pictured):
    subject, batch = pictured
    touched = _touched(importance(StudyOptions(ablation="zero")), subject, [batch])
    vision = touched["vision", 0, "importance_cross_entropy", "ablation=zero"]
    assert vision == Touched(2, 6, dict.fromkeys(range(3), (51, 51)))
    language = touched["language", 0, "importance_cross_entropy", "ablation=zero"]
    assert language == Touched(3, 18, dict.fromkeys(range(6), (58, 58)))


def test_a_knock_out_changes_text_behind_an_image_only(pictured):
    subject, batch = pictured
    study = importance(StudyOptions(ablation="knock_out:text->image"))
    study.begin(subject, lambda: [batch])
    scores = study.score(subject, batch)
    tokens, behind = batch.tokens["language"], 0
    for row in range(3):
        seen = False
        for position in range(int(tokens.starts[row]), int(tokens.starts[row + 1])):
            role = ROLES[int(tokens.role[position])]
            seen = seen or role == "image"
            behind += seen and role == "text"
    place = ("language", 0, "importance_cross_entropy", "ablation=knock_out:text->image")
    # The example without an image has nothing to be knocked out.
    assert scores.touched[place] == Touched(2, 12, dict.fromkeys(range(6), (54, behind)))
    assert 0 < behind < 54
    assert not any(tower == "vision" for tower, *_ in scores.touched)
    why = scores.reasons["vision", "importance_cross_entropy"]
    assert "finds no such queries and keys in vision" in why


def test_rows_that_differ_are_counted_head_by_head_and_example_by_example(pictured):
    _, batch = pictured
    site, z = Site("vision", 1), torch.randn(3, 17, 3, 4)
    values = z.clone()
    values[0, 0, 1, 2] += 1.0  # the first image of the first example
    values[1, 3, 1] += 1.0  # its second image
    values[1, 4, 0, 0] += 1.0
    values[2, 5, 2, 3] += 1.0  # the second example
    found = replaced_rows(batch, site, z, values)
    assert found.rows.tolist() == [34, 17, 0]
    assert found.changed.tolist() == [[1, 2, 0], [0, 0, 1], [0, 0, 0]]
    assert found.examples == 2
    at = torch.zeros(3, 17, dtype=torch.bool)
    at[:, 3:5] = True
    some = replaced_rows(batch, site, z, values, at, torch.tensor([True, False, True]))
    assert some.rows.tolist() == [4, 0, 0]
    assert some.changed.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert some.each([1]) == Touched(1, 1, {1: (4, 1)})
    assert some.all_others() == Touched(1, 3, {0: (8, 1), 1: (8, 1), 2: (8, 2)})
    assert some.together() == Touched(1, 1, dict.fromkeys(range(3), (12, 2)))


def test_values_too_small_for_the_models_dtype_change_nothing():
    subject = _text_subject()
    (batch,) = _batches(subject, 3)
    z = torch.ones(3, 7, 6, 10, dtype=torch.bfloat16)
    values = torch.full((1,), 1 + 2.0**-10)
    found = replaced_rows(batch, Site("language", 0), z, values)
    assert int(found.rows.sum()) == 12 and int(found.changed.sum()) == 0


def test_rows_that_cannot_be_told_apart_count_as_one_example():
    subject = Subject(tiny_models.gpt2())
    batch = subject.prepare(input_ids=torch.randint(5, 25, (2, 7)))
    batch = replace(batch, tokens=TokenMap({}))
    found = replaced_rows(batch, Site("language", 0), torch.zeros(1, 14, 3, 4), torch.ones(1))
    assert found.rows.tolist() == [14] and found.changed.tolist() == [[14, 14, 14]]


def test_nothing_to_replace_is_an_error():
    subject = _text_subject()
    (batch,) = _batches(subject, 3)
    tokens = batch.tokens["language"]
    role = torch.full_like(tokens.role, ROLES.index("pad"))
    recorded = record(
        subject, replace(batch, tokens=TokenMap({"language": replace(tokens, role=role)}))
    )
    with pytest.raises(ReadingError, match="'zero' must have rows of language.L0 to replace"):
        replaced_by(Zero(), recorded, Site("language", 0), torch.zeros(1))
