"""What a head reads of the image for a word, by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.kept_patterns import HeadPattern
from analysis.vision.word_patches import word_patches

TOKENS = pd.DataFrame(
    {
        "role": ["bos", "image", "image", "image", "text"],
        "image": [-1, 0, 0, 0, -1],
        "tile": [-1, 0, 0, 0, -1],
        "row": [-1, 0, 0, -1, -1],  # the last one is a sign between rows, no patch
        "column": [-1, 0, 1, -1, -1],
        **{edge: [np.nan, 0.0, 4.0, np.nan, np.nan] for edge in ("left", "top")},
        **{edge: [np.nan, 4.0, 8.0, np.nan, np.nan] for edge in ("right", "bottom")},
    }
)


def _pattern(weight, key=None, **more):
    queries = np.array([3, 4, 6], np.int32)[: len(weight)]
    given = None if key is None else np.array(key)
    return HeadPattern(
        queries, 5, "language", np.array(weight, np.float16), given, key is None, "one", **more
    )


def test_it_is_the_mean_over_the_predicting_positions():
    whole = _pattern([[0.5, 0.25, 0.125, 0, 0.125], [0, 0.75, 0.125, 0.125, 0]])
    found = word_patches(whole, TOKENS, 3, 4)
    assert found["weight"].tolist() == [0.5, 0.125]
    assert found["column"].tolist() == [0, 1]
    assert word_patches(whole, TOKENS, 4, 4)["weight"].tolist() == [0.75, 0.125]


def test_of_the_strongest_keys_the_others_are_0():
    strongest = _pattern([[0.5, 0.25]], [[2, 0]])
    assert word_patches(strongest, TOKENS, 3, 3)["weight"].tolist() == [0.0, 0.5]


def test_what_cannot_be_joined_is_said():
    whole = _pattern([[0.5, 0.25, 0.125, 0, 0.125]])
    with pytest.raises(ValueError, match="got -1"):
        word_patches(whole, TOKENS, -1, -1)
    with pytest.raises(ValueError, match="a position that this head reads from, got 4"):
        word_patches(whole, TOKENS, 3, 4)
    with pytest.raises(ValueError, match="5 keys must be positions of language, of which 4"):
        word_patches(whole, TOKENS.iloc[:4], 3, 3)
    with pytest.raises(ValueError, match="Choose a head that reads its own text"):
        word_patches(_pattern([[0.5] * 5], named_keys=False), TOKENS, 3, 3)
