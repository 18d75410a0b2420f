"""Which pairs are drawn: as many per head, every example as often, whatever the order."""

from __future__ import annotations

import pytest

from analysis.atlas.sampling import Sampling, draw_samples, rank_of
from probes.heads import Head, Site

IDS = [f"e{number}" for number in range(11)]
HEADS = [Head("language", layer, head) for layer in range(3) for head in range(5)]


def drawn(sampling: Sampling) -> set[tuple]:
    return set(sampling.frame.itertuples(index=False, name=None))


@pytest.mark.parametrize("per_head", [1, 4, 7, 11])
def test_every_head_gets_as_many_and_every_example_as_often(per_head: int) -> None:
    frame = draw_samples(IDS, HEADS, per_head, seed=3).frame
    assert len(frame) == len(frame.drop_duplicates()) == 15 * per_head
    assert set(frame.groupby(["layer", "head"]).size()) == {per_head}
    times = frame["example"].value_counts()
    assert len(times) == min(11, 15 * per_head)
    assert times.max() - times.min() <= 1


def test_with_fewer_examples_all_of_them_are_drawn() -> None:
    frame = draw_samples(IDS, HEADS, 20).frame
    assert len(frame) == 15 * 11
    assert set(frame.groupby(["layer", "head"])["example"].nunique()) == {11}


def test_the_order_of_what_is_given_changes_nothing() -> None:
    plain = draw_samples(IDS, HEADS, 4, seed=5)
    turned = draw_samples(IDS[::-1], HEADS[::-1], 4, seed=5)
    assert plain.frame.equals(turned.frame)
    assert drawn(plain) != drawn(draw_samples(IDS, HEADS, 4, seed=6))


def test_the_ids_decide_and_not_their_places() -> None:
    """The first ids of a list are not the ones that are drawn first."""
    firsts = [draw_samples(IDS, HEADS[:1], 1, seed=s).frame["example"][0] for s in range(30)]
    assert len(set(firsts)) > 5


def test_another_tower_changes_nothing() -> None:
    seeing = [Head("vision", 0, head) for head in range(2)]
    alone = draw_samples(IDS, HEADS, 4).frame
    both = draw_samples(IDS, [*seeing, *HEADS], 4).frame
    assert both[both["tower"] == "language"].reset_index(drop=True).equals(alone)


def test_towers_may_be_reached_by_different_examples() -> None:
    heads = [*HEADS[:2], Head("vision", 0, 0)]
    some = {"language": IDS, "vision": IDS[:3], "audio": ()}
    frame = draw_samples(some, heads, 5).frame
    assert frame.groupby("tower").size().to_dict() == {"language": 10, "vision": 3}
    assert set(frame[frame["tower"] == "vision"]["example"]) == set(IDS[:3])


def test_pairs_are_found_by_site_and_example() -> None:
    sampling = draw_samples(IDS, HEADS, 4)
    line = sampling.frame.iloc[17]
    pairs = sampling.of_site(Site("language", int(line["layer"])))[line["example"]]
    assert (int(line["head"]), 17) in pairs
    assert sampling.of_site(Site("vision", 0)) == {}
    assert sum(len(p) for la in range(3) for p in sampling.of_site(Site("language", la)).values()) \
        == len(sampling)  # fmt: skip


def test_a_rank_depends_on_every_name() -> None:
    assert rank_of(0, "part", "a", 1) == rank_of(0, "part", "a", 1)
    others = {rank_of(1, "part", "a", 1), rank_of(0, "part", "b", 1), rank_of(0, "part", "a", 2)}
    assert len(others | {rank_of(0, "part", "a", 1)}) == 4
    assert rank_of(0, "ab", "c") != rank_of(0, "a", "bc")


def test_what_cannot_be_drawn_is_said() -> None:
    with pytest.raises(ValueError, match="an id of its own, got 'e2' twice"):
        draw_samples([*IDS, "e2"], HEADS, 3)
    with pytest.raises(ValueError, match="at least one example to draw patterns of, got none"):
        draw_samples([], HEADS, 3)
    with pytest.raises(ValueError, match="`per_head` must be at least 1, got 0"):
        draw_samples(IDS, HEADS, 0)
    with pytest.raises(ValueError, match="at least one head, each once"):
        draw_samples(IDS, [*HEADS, HEADS[0]], 3)
