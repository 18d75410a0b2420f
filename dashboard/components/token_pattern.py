"""Tokens that light up with what the hovered one reads, or with who reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dashboard.components.source import component
from dashboard.pattern_payload import missing_of, pattern_payload, sink_positions

if TYPE_CHECKING:
    from analysis.kept_patterns import HeadPattern

_tokens = component("token_pattern", "<div class='tokens'></div>", before="pattern_rows")


def token_pattern(
    key: str,
    pattern: HeadPattern,
    queries: list[list[str]],
    keys: list[list[str]],
    query: int,
    group: str,
    towers: tuple[str, str],
    on_pick: Callable[[], None],
) -> None:
    """Draw the tokens; hovering one needs no rerun, a click calls ``on_pick``.

    The position that was picked is then ``st.session_state[key].query``.

    Args:
        queries, keys: ``[text, role]`` of each position; the same list where a tower reads itself.
        query: the position that is shown while none is hovered.
        group: components of one group show the same position.
        towers: names of the two lists, shown where they differ.
    """
    same = towers[0] == towers[1] and pattern.named_queries == pattern.named_keys
    _tokens(
        key=key,
        data={
            "pattern": pattern_payload(pattern, len(queries)),
            "tokens": queries,
            "keys": None if same else keys,
            "same": same,
            "names": [f"{towers[0]} asks", f"{towers[1]} is asked"],
            "sinks": sink_positions(keys),
            "missing": missing_of(pattern),
            "query": query,
            "group": group,
            "label": "tokens; arrow keys move, Enter keeps one",
        },
        on_query_change=on_pick,
    )
