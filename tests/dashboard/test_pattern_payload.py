"""What is sent to the browser says the same as the pattern."""

from base64 import b64decode

import numpy as np
import pandas as pd
import pytest

from analysis.kept_patterns import HeadPattern
from dashboard import pattern_payload
from dashboard.pattern_payload import missing_of, sink_positions, token_names
from dashboard.pattern_payload import pattern_payload as payload


def received(sent: dict[str, object]) -> dict[tuple[int, int], float]:
    """(query, key) -> weight, read as the script reads it."""
    found = {
        name: np.frombuffer(b64decode(str(sent[name])), kind)
        for name, kind in (
            ("queries", "<i4"), ("starts", "<u4"), ("keys", "<i4"), ("weights", "<u2"),
        )
    }  # fmt: skip
    pairs = {}
    for row, query in enumerate(found["queries"]):
        for place in range(found["starts"][row], found["starts"][row + 1]):
            key = int(found["keys"][place])
            pairs[int(query), key] = float(found["weights"][place] / 65535) ** 2
    return pairs


def drawn(rows: int = 11, keys: int = 13) -> HeadPattern:
    weight = np.random.default_rng(1).dirichlet(np.full(keys, 0.3), rows).astype(np.float16)
    queries = np.arange(2, 2 + rows, dtype=np.int32)
    return HeadPattern(queries, keys, "language", weight, None, True, "one")


def test_every_weight_arrives() -> None:
    pattern = drawn()
    sent = payload(pattern, 17)
    assert (sent["count"], sent["positions"]) == (13, 17)
    found = received(sent)
    for row, query in enumerate(pattern.queries):
        for key in range(13):
            weight = float(pattern.weight[row, key])
            assert found.get((int(query), key), 0.0) == pytest.approx(weight, abs=3e-5)


def test_of_a_large_pattern_the_strongest_keys_of_each_query(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pattern_payload, "MOST_PAIRS", 44)
    pattern = drawn()
    found = received(payload(pattern, 17))
    assert len(found) == 44
    for row, query in enumerate(pattern.queries):
        best = set(np.argsort(-pattern.weight[row].astype(float), kind="stable")[:4].tolist())
        assert {key for asked, key in found if asked == query} == best


def test_tokens_have_names_and_sinks_are_known() -> None:
    tokens = pd.DataFrame(
        {
            "role": ["bos", "image", "image", "text", "cls"],
            "text": ["<s>", "<image>", "<image>", "<b>cat", ""],
            "image": [-1, 0, 1, -1, 0],
            "tile": [-1, 0, 2, -1, 0],
            "row": [-1, 3, 0, -1, -1],
            "column": [-1, 5, 1, -1, -1],
        }
    )
    names = token_names(tokens, 5)
    assert names == [
        ["<s>", "bos"],
        ["patch row 3, column 5", "image"],
        ["patch row 0, column 1 of tile 2 of image 2", "image"],
        ["<b>cat", "text"],
        ["<cls>", "cls"],
    ]
    assert sink_positions(names) == [0, 4]
    assert token_names(tokens, 2) == [["#0", "text"], ["#1", "text"]]


def test_what_is_missing_is_said_where_it_matters() -> None:
    weight = np.array([[0.5, 0.25], [0.75, 0.25]], np.float16)
    key = np.array([[0, 1], [2, 0]])
    pattern = HeadPattern(np.array([4, 9], np.int32), 5, "language", weight, key, False, "one")
    assert missing_of(pattern) == {"4": 0.25}
