"""The part of a page that shows one head's pattern on one kept example, to be clicked in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from analysis.kept_patterns import HeadPattern, KeptExample, KeptPatterns, kept_examples, tokens_of
from analysis.run_files import RunError
from dashboard.components.patch_pattern import patch_pattern
from dashboard.components.token_pattern import token_pattern
from dashboard.drawn import draw
from dashboard.empty import tell
from dashboard.figures import pattern_matrix
from dashboard.guarded import fragment
from dashboard.pattern_payload import token_names
from dashboard.shelf import Item
from dashboard.view import View
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

_TOKENS = "head-tokens"
_MOST_PICTURES = 4
_READS = (
    "What each query reads: rows sum to 1 where all keys are kept. Colours go by the square root "
    "of the weight, so that small ones show; one example, no average."
)
_HOVER = (
    "Point at a token or patch to see what it reads, or who reads it; a click keeps it. Colours "
    "run to the largest weight outside of BOS and CLS, which would outshine the rest."
)


@dataclass(frozen=True)
class _Shown:
    """One head on one example, with the positions of what asks and of what is asked."""

    example: KeptExample
    head: Head
    pattern: HeadPattern
    queries: list[list[str]]
    keys: list[list[str]]
    query_tokens: pd.DataFrame
    key_tokens: pd.DataFrame

    @property
    def same(self) -> bool:
        return self.pattern.key_tower == self.head.tower


def chosen_example(view: View) -> KeptExample | None:
    """The example that is chosen in the control row; None where the run keeps none."""
    assert view.item is not None
    kept = examples_of(view.item)
    if not kept:
        return None
    by_id = {example.id: example for example in kept}
    return by_id[view.choose("example", "example", list(by_id))]


def examples_of(item: Item) -> list[KeptExample]:
    """The kept examples of a run, read once."""
    index = item.path / "examples" / "index.json"
    return _examples(str(item.path), index.stat().st_mtime_ns if index.is_file() else 0)


def draw_patterns(view: View, head: Head, example: KeptExample, beside: Callable[[], None]) -> None:
    """Picture, tokens and matrix; a click in one changes the others, not the page.

    Args:
        beside: draws what stands beside the matrix.
    """
    assert view.item is not None
    _fragment(view, head, example, view.item, beside)


@fragment
def _fragment(
    view: View, head: Head, example: KeptExample, item: Item, beside: Callable[[], None]
) -> None:
    try:
        shown = _read(item, head, example)
    except (RunError, KeyError) as error:
        tell(str(error.args[0]), "headscope score MODEL --data DATA --out runs/again")
        beside()
        return
    query = _query(view, shown)
    st.text(_sentence(example))
    pictures = _pictures(shown)
    left, right = st.columns([2, 3] if pictures else 2, gap="medium")
    with left:
        for number, patches, asks in pictures:
            _picture(view, shown, query, number, patches, asks)
        if not pictures:
            _tokens(view, shown, query, "")
        beside()
    with right:
        if pictures:
            _tokens(view, shown, query, " Squares are patches of the picture.")
        title = f"{head} on {example.id}"
        figure = pattern_matrix(shown.pattern, title, shown.queries, shown.keys, query)
        draw(figure, "head-matrix", _READS + _kept(shown), lambda: _pairs(shown), wide=True)


def _picture(
    view: View, shown: _Shown, query: int, number: int, patches: pd.DataFrame, asks: bool
) -> None:
    key = f"head-picture-{number}"
    patch_pattern(
        key,
        shown.pattern,
        shown.example.pictures[number],
        patches,
        len(shown.queries),
        query,
        "head",
        asks,
        shown.same,
        lambda: _picked(view, key),
    )


def _tokens(view: View, shown: _Shown, query: int, more: str) -> None:
    token_pattern(
        _TOKENS,
        shown.pattern,
        shown.queries,
        shown.keys,
        query,
        "head",
        (shown.head.tower, shown.pattern.key_tower),
        lambda: _picked(view, _TOKENS),
    )
    with st.container(key="caption-head-tokens"):
        st.markdown(_HOVER + more)


def _read(item: Item, head: Head, example: KeptExample) -> _Shown:
    if example.patterns is None:
        raise RunError(example.why_not)
    pattern = _opened(str(example.patterns), example.patterns.stat().st_mtime).head(head)
    query_tokens = _positions(str(item.path), item.stamp, example.id, head.tower)
    key_tokens = _positions(str(item.path), item.stamp, example.id, pattern.key_tower)
    count = int(pattern.queries.max()) + 1
    named = pattern.named_queries and len(query_tokens) >= count
    queries = token_names(query_tokens, len(query_tokens) if named else count)
    keys = token_names(key_tokens if pattern.named_keys else key_tokens[:0], pattern.keys)
    return _Shown(example, head, pattern, queries, keys, query_tokens, key_tokens)


def _query(view: View, shown: _Shown) -> int:
    """The position that the address names, else the last one that asks."""
    asked = view.value("query")
    known = shown.pattern.queries
    if asked.isdecimal() and int(asked) in known:
        return int(asked)
    return int(known[-1])


def _picked(view: View, key: str) -> None:
    state = st.session_state.get(key)
    value = state.get("query") if state else None
    if isinstance(value, int):
        view.note("query", str(value))


def _pictures(shown: _Shown) -> list[tuple[int, pd.DataFrame, bool]]:
    """Pictures with patches among the queries, else among the keys: number, patches, which."""
    found = []
    sides = [(shown.query_tokens, True, shown.pattern.named_queries)]
    if not shown.same:
        sides.append((shown.key_tokens, False, shown.pattern.named_keys))
    for number, (file, _, _) in enumerate(shown.example.pictures[:_MOST_PICTURES]):
        for tokens, asks, named in sides:
            mine = tokens[tokens["image"].eq(number) & tokens["left"].notna()]
            if named and len(mine) and Path(file).is_file():
                found.append((number, mine, asks))
                break
    return found


def _sentence(example: KeptExample) -> str:
    asked = " ".join(part for part in (example.question, example.answer) if part)
    return (asked or example.text or "")[:200]


def _kept(shown: _Shown) -> str:
    if shown.pattern.lossless:
        return ""
    assert shown.pattern.key is not None
    most = shown.pattern.key.shape[-1]
    return f" Of each query the {most} strongest keys are kept; the rest is left out."


def _pairs(shown: _Shown) -> pd.DataFrame:
    import pandas as pd

    rows, keys, weights = shown.pattern.pairs()
    return pd.DataFrame({"query": shown.pattern.queries[rows], "key": keys, "weight": weights})


@st.cache_resource(max_entries=16, show_spinner=False)
def _opened(file: str, stamp: float) -> KeptPatterns:
    return KeptPatterns(Path(file))


@st.cache_data(max_entries=8, show_spinner=False)
def _examples(run: str, stamp: int) -> list[KeptExample]:
    return kept_examples(Path(run))


@st.cache_data(max_entries=64, show_spinner=False)
def _positions(run: str, stamp: tuple[float, ...], example: str, tower: str) -> pd.DataFrame:
    return tokens_of(Path(run), example, tower)
