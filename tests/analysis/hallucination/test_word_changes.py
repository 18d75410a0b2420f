"""Words of two answers, marked."""

from __future__ import annotations

from analysis.hallucination.word_changes import word_changes


def _changed(words):
    return [word.text for word in words if word.changed]


def test_a_word_that_moved_along_is_no_change():
    one, other = word_changes("a cat , a red dog .", "a cat , a small , red dog .")
    assert _changed(one) == [] and _changed(other) == ["small", ","]
    one, other = word_changes("b c", "")
    assert _changed(one) == ["b", "c"] and other == []


def test_each_side_has_its_own_wrong_words():
    one, other = word_changes("see a blue dog", "a dog , blue cat", [(6, 14)], [(8, 16)])
    assert [word.text for word in one if word.wrong] == ["blue", "dog"]
    assert [word.text for word in other if word.wrong] == ["blue", "cat"]


def test_many_alike_words_do_not_count_as_noise():
    text = "the " * 300
    one, other = word_changes(text + "cat", text + "dog")
    assert _changed(one) == ["cat"] and _changed(other) == ["dog"]
