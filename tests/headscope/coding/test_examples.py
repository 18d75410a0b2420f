"""Examples in two parts, and head outputs of the sites that were asked for."""

import pytest

from headscope.coding.examples import read_parts, rows_of
from headscope.plan import AskedWrongly
from probes.readers import read_examples
from sae.judging.held_out import is_held_out


def test_parts_share_nothing_and_are_what_the_hash_says(subject):
    parts = read_parts(subject, "repeats", held_out=0.25)
    every = [example.id for example in read_examples("repeats", "language")]
    held = [example.id for example in parts.held_out]
    assert held == [name for name in every if is_held_out(name, 0.25)]
    assert sorted(held + [e.id for e in parts.train]) == sorted(every)
    assert parts.facts == {"name": "repeats", "held_out": 0.25}


def test_nothing_may_be_held_out(subject):
    parts = read_parts(subject, "repeats", held_out=0, limit=5)
    assert len(parts.train) == 5 and not parts.held_out


def test_texts_are_split_before_they_are_cut(tmp_path):
    from probes.loading import load

    prose = load("prose-lm")
    parts = read_parts(prose, "prose", held_out=0.3, context=32, limit=12)
    texts = [{e.id.partition("#")[0] for e in some} for some in (parts.train, parts.held_out)]
    assert texts[0] and texts[1] and not texts[0] & texts[1]
    assert any("#" in example.id for example in parts.held_out)
    assert parts.facts["context"] == 32


@pytest.mark.parametrize("share", [-0.1, 1, 2])
def test_a_share_that_makes_no_sense(subject, share):
    with pytest.raises(AskedWrongly, match="^`--held-out` must be a share from 0 to below 1"):
        read_parts(subject, "repeats", held_out=share)


def test_too_few_examples_name_the_option(subject):
    with pytest.raises(ValueError, match="another `--held-out` than 0.1"):
        read_parts(subject, "repeats", limit=4)


def test_what_there_is_not_is_said_before_anything_runs(subject):
    some = list(read_examples("repeats", "language", 2))
    with pytest.raises(AskedWrongly, match="has layers 0 to 1 in language"):
        rows_of(subject, some, "language.L9")
    with pytest.raises(AskedWrongly, match="^`roles` must be some of bos"):
        rows_of(subject, some, "language.L1", roles=["nose"])
    with pytest.raises(AskedWrongly, match="To cut texts"):
        read_parts(subject, "repeats", context=1)


def test_facts_of_the_data_are_remembered(subject):
    some = list(read_examples("repeats", "language", 2))
    rows = rows_of(subject, some, ["language.*"], facts={"name": "mine", "held_out": 0.1})
    assert list(rows.widths) == ["language.L0", "language.L1"]
    assert rows.about["data"]["name"] == "mine"
    assert rows.about["data"]["held_out"] == 0.1
    assert rows.about["data"]["examples"] == 2
