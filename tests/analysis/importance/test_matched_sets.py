"""Random sets of heads that match a given one layer by layer."""

from collections import Counter

from analysis.importance.matched_sets import matched_sets
from probes.heads import Head, Site

COUNTS = {Site("language", 0): 5, Site("language", 2): 7, Site("vision", 0): 3}
GIVEN = [
    Head("language", 2, 6),
    Head("language", 0, 1),
    Head("language", 2, 0),
    Head("vision", 0, 2),
]


def test_each_set_has_as_many_heads_in_each_layer() -> None:
    sets, there_are = matched_sets(GIVEN, COUNTS, 20, seed=3)
    assert there_are == 5 * 21 * 3 - 1
    assert len(sets) == len(set(sets)) == 20
    for one in sets:
        assert Counter(head.site for head in one) == Counter(head.site for head in GIVEN)
        assert len(set(one)) == 4
        assert all(0 <= head.head < COUNTS[head.site] for head in one)
        assert one != tuple(sorted(GIVEN))


def test_sets_depend_on_the_seed_alone() -> None:
    assert matched_sets(GIVEN, COUNTS, 9, seed=1) == matched_sets(GIVEN[::-1], COUNTS, 9, seed=1)
    assert matched_sets(GIVEN, COUNTS, 9, seed=1) != matched_sets(GIVEN, COUNTS, 9, seed=2)


def test_all_sets_are_given_where_there_are_few() -> None:
    heads = [Head("vision", 0, 0), Head("vision", 0, 2)]
    sets, there_are = matched_sets(heads, COUNTS, 20)
    assert there_are == 2
    assert [[head.head for head in one] for one in sets] == [[0, 1], [1, 2]]


def test_a_whole_layer_has_no_other_set() -> None:
    layer = [Head("vision", 0, head) for head in range(3)]
    assert matched_sets(layer, COUNTS, 20) == ([], 0)


def test_every_set_is_as_likely() -> None:
    heads = [Head("language", 0, 0), Head("language", 0, 1)]
    drawn = Counter()
    for seed in range(600):
        drawn.update(matched_sets(heads, COUNTS, 1, seed)[0])
    assert len(drawn) == 9
    assert all(35 < count < 105 for count in drawn.values())
