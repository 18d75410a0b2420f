"""Words between spaces, and their tokens."""

from __future__ import annotations

from analysis.vision.spaced_words import SpacedWord, spaced_words


def test_a_token_of_two_words_belongs_to_both_and_line_breaks_part_words():
    found = spaced_words("\nred  star.", [(0, 2), (2, 8), (8, 8), (8, 11)])
    assert found == [SpacedWord("red", 0, 3, (0, 1)), SpacedWord("star.", 5, 10, (1, 3))]


def test_words_without_a_token_are_left_out():
    assert [word.text for word in spaced_words("one two", [(0, 3)])] == ["one"]
    assert spaced_words("", []) == []
