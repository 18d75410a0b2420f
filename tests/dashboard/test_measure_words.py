"""What pictures say of measures is what their pages in the documentation say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dashboard.measure_words import said_of

PAGES = sorted(
    page
    for page in (Path(__file__).parents[2] / "docs" / "measures").glob("*.md")
    if page.stem != "README"
)


def _plain(text: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return text.replace("`", "").replace("*", "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_words_are_those_of_the_page(page: Path) -> None:
    text = _plain(page.read_text(encoding="utf-8"))
    first = next(line for line in text.splitlines()[1:] if line)
    said = said_of(page.stem)
    what, _, rest = said.partition(" A high value ")
    assert what.rstrip(".") in first
    high, _, source = rest.partition(" Source: ")
    assert high.rstrip(".") in text and source.rstrip(".") in text


def test_studies_are_told_by_how_their_names_begin() -> None:
    assert "loses without the head" in said_of("importance_cross_entropy")
    assert said_of("my_own") == ""
