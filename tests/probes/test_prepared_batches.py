"""Groups of examples as batches, bad ones set aside."""

from __future__ import annotations

import tiny_models

from probes.inputs import Example, InputError
from probes.prepared_batches import length_of, prepared_batches
from probes.subject import Subject


def test_bad_examples_are_handed_over_and_the_rest_stays_one_batch() -> None:
    subject = Subject(tiny_models.llama(), tiny_models.tokenizer())
    group = [
        Example("a", text="a b"),
        Example("long", text="a " * 99),
        Example("b", text="c d e"),
        Example("empty", text=""),
    ]
    skipped: list[tuple[str, str]] = []
    found = list(prepared_batches(subject, group, lambda e, why: skipped.append((e.id, why))))
    assert [[e.id for e in batch.examples] for batch in found] == [["a", "b"]]
    assert [name for name, _ in skipped] == ["long", "empty"]
    assert "Example" not in skipped[0][1] and "tokens" in skipped[0][1]


def test_those_that_do_not_go_together_come_one_by_one() -> None:
    class Picky:
        def prepare(self, examples):
            if len(examples) > 1:
                raise InputError("images of several sizes")
            if examples[0].id == "bad":
                raise InputError("Example 'bad': does not decode")
            return examples[0].id

    skipped = []
    group = [Example("x"), Example("bad"), Example("y")]
    picky: Subject = Picky()  # type: ignore[assignment]
    found = list(prepared_batches(picky, group, lambda e, why: skipped.append((e.id, why))))
    assert found == ["x", "y"] and skipped == [("bad", "does not decode")]


def test_length_counts_pictures_first() -> None:
    assert length_of(Example("a", text="abc", answer="de", image="x.png")) == (1, 5)
