"""Which flat positions the queries of a call are."""

from probes.alignment import CallsInOrder, flat_positions, tokens_while_generating
from probes.tokens.map import TokenMap, blank_tokens

EVEN = blank_tokens("language", [5, 5], [0, 1], "text")
RAGGED = blank_tokens("vision", [4, 7], [0, 1], "image")


def test_row_by_row() -> None:
    index = flat_positions(EVEN, 2, 5)
    assert index is not None and index[1].tolist() == [5, 6, 7, 8, 9]


def test_a_call_of_other_lengths_is_not_aligned() -> None:
    assert flat_positions(EVEN, 2, 4) is None
    assert flat_positions(EVEN, 3, 5) is None
    assert flat_positions(None, 2, 5) is None


def test_packed_rows_one_call_each_or_all_at_once() -> None:
    whole = flat_positions(RAGGED, 1, 11)
    second = flat_positions(RAGGED, 1, 7, offset=4)
    assert whole is not None and whole[0].tolist() == list(range(11))
    assert second is not None and second[0].tolist() == list(range(4, 11))


def test_a_shorter_inner_sequence_is_not_taken_for_the_first_tokens() -> None:
    assert flat_positions(RAGGED, 1, 6) is None
    assert flat_positions(blank_tokens("language", [9], [0], "text"), 1, 5) is None


def test_windows_of_a_packed_row_are_parts() -> None:
    index = flat_positions(RAGGED, 1, 3, offset=2, packed=True)
    assert index is not None and index[0].tolist() == [2, 3, 4]


def test_decoding_counts_from_the_end_of_the_prompt() -> None:
    tokens = tokens_while_generating(TokenMap({"language": EVEN, "vision": RAGGED}), 3)
    assert tokens["vision"] is RAGGED
    grown = tokens["language"]
    query = flat_positions(grown, 2, 1, last=6)
    keys = flat_positions(grown, 2, 7, last=6)
    window = flat_positions(grown, 2, 4, last=6)
    assert query is not None and query.flatten().tolist() == [6, 14]
    assert keys is not None and keys[1].tolist() == list(range(8, 15))
    assert window is not None and window[1].tolist() == [11, 12, 13, 14]
    assert flat_positions(grown, 2, 9, last=8) is None


def test_calls_in_order_image_by_image_and_all_at_once() -> None:
    calls = CallsInOrder(RAGGED)
    first, second = calls.next(1, 4), calls.next(1, 7)
    assert first is not None and second is not None and calls.complete
    assert first.tolist() == [[0, 1, 2, 3]] and second.tolist() == [list(range(4, 11))]
    assert calls.next(1, 1) is None  # more than there is
    whole = CallsInOrder(EVEN)
    index = whole.next(2, 5)
    assert index is not None and index[1].tolist() == [5, 6, 7, 8, 9] and whole.complete


def test_calls_of_some_rows_after_the_other() -> None:
    calls = CallsInOrder(blank_tokens("vision", [3, 3, 3, 2], [0, 0, 1, 1], "image"))
    shapes = [(2, 3), (1, 3), (1, 2)]
    found = [calls.next(*shape) for shape in shapes]
    assert [None if i is None else i.flatten().tolist() for i in found] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7, 8],
        [9, 10],
    ]
    assert calls.complete


def test_calls_that_do_not_fit_are_not_aligned_and_a_part_alone_is_not_complete() -> None:
    assert CallsInOrder(RAGGED).next(2, 4) is None  # the second row has seven
    assert CallsInOrder(blank_tokens("vision", [16], [0], "image")).next(4, 4) is None  # windows
    assert CallsInOrder(EVEN).next(3, 5) is None and CallsInOrder(None).next(1, 1) is None
    part = CallsInOrder(blank_tokens("language", [9], [0], "text"))
    assert part.next(1, 5) is not None and not part.complete and part.seen == 5
    assert not CallsInOrder(None).complete
