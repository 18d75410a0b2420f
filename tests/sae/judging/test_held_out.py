"""The split is a function of ids: neither order nor company of an example decides."""

from __future__ import annotations

import pytest

from probes.inputs import Example
from sae.judging.held_out import is_held_out, split_examples

EXAMPLES = [Example(f"e{i}", text="x") for i in range(400)]


def test_parts_are_disjoint_complete_and_in_order() -> None:
    train, judged = split_examples(EXAMPLES, 0.25)
    assert [e.id for e in EXAMPLES if e in train] == [e.id for e in train]
    assert {e.id for e in train} | {e.id for e in judged} == {e.id for e in EXAMPLES}
    assert len(train) + len(judged) == 400
    assert 70 < len(judged) < 130


def test_order_and_other_examples_do_not_matter() -> None:
    judged = {e.id for e in split_examples(EXAMPLES, 0.25)[1]}
    again = split_examples([*reversed(EXAMPLES[:200]), Example("other", text="y")], 0.25)[1]
    assert {e.id for e in again} - {"other"} == judged & {e.id for e in EXAMPLES[:200]}


def test_a_larger_share_keeps_what_was_held_out() -> None:
    small, large = ({e.id for e in EXAMPLES if is_held_out(e.id, share)} for share in (0.1, 0.4))
    assert small < large


def test_seeds_draw_other_parts() -> None:
    parts = [{e.id for e in split_examples(EXAMPLES, 0.5, seed)[1]} for seed in (0, 1)]
    assert 0.3 < len(parts[0] & parts[1]) / len(parts[0]) < 0.7


def test_too_few_examples_and_a_wrong_share_are_refused() -> None:
    with pytest.raises(ValueError, match="to train on and to judge on, got 0 and 0"):
        split_examples([])
    with pytest.raises(ValueError, match="`share` must be between 0 and 1, got 1"):
        split_examples(EXAMPLES, 1)
