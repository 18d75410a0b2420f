"""Which measures there are, their pages, and a measure that somebody else adds."""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
from synthetic_calls import random_call, scored, text_tokens, value

from analysis.measures import available_measures, registry, select_measures

PAGES = Path(__file__).parents[3] / "docs" / "measures"


def test_every_measure_has_a_page_and_every_page_a_measure() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == set(registry.BUILT_IN)
    index = (PAGES / "README.md").read_text()
    for name in pages:
        text = (PAGES / f"{name}.md").read_text()
        assert f"[{name}]({name}.md)" in index
        for part in ("Formula", "A high value", "Null", "Unit and range", "Caveats", "Source"):
            assert f"**{part}" in text, (name, part)


def add(monkeypatch: pytest.MonkeyPatch, name: str, found: object) -> None:
    class Added(EntryPoint):
        def load(self) -> object:
            if isinstance(found, Exception):
                raise found
            return found

    entry = Added(name, "elsewhere:OBJECT", registry.GROUP)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])


def test_the_measure_in_the_documentation_works(monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", (PAGES / "README.md").read_text(), re.DOTALL)
    assert code is not None
    module = ModuleType("documented")
    monkeypatch.setitem(__import__("sys").modules, "documented", module)
    exec(compile(code[1], "README.md", "exec"), module.__dict__)
    add(monkeypatch, "sharp_rows", module.SHARP_ROWS)
    assert list(available_measures())[-1] == "sharp_rows"
    tokens = text_tokens([[3, 1, 4, 1, 5, 9, 2]])
    call = random_call(tokens)
    scores = scored(call, tokens, measures=["sharp_rows", "entropy"])
    expected = (call.pattern()[0, 1].amax(-1) > 0.5).float().mean()
    assert value(scores, "sharp_rows", head=1) == pytest.approx(float(expected))


def test_broken_additions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    add(monkeypatch, "broken", ImportError("no module named x"))
    with pytest.raises(ValueError, match="Measure 'broken' must load from 'elsewhere:OBJECT'"):
        select_measures("all")
    add(monkeypatch, "other", object())
    with pytest.raises(ValueError, match="'other' must be an object of that name"):
        select_measures("all")
    add(monkeypatch, "entropy", available_measures.__call__)
    with pytest.raises(ValueError, match="Measure 'entropy' must be"):
        select_measures("all")
