"""Layers by relative depth, and the tower that writes."""

from __future__ import annotations

import pytest
import tiny_models as tiny

from probes.depth import (
    refuse_unknown_streams,
    sites_near,
    sites_within,
    writing_heads,
    writing_tower,
)
from probes.heads import Site
from probes.layout import SiteLayout, Tower
from probes.subject import Subject


def tower(layers: int, without: tuple[int, ...] = ()) -> Tower:
    sites = {
        layer: SiteLayout(Site("language", layer), "", 2, 2, 4, 4, "sdpa")
        for layer in range(layers)
        if layer not in without
    }
    return Tower("language", sites, layers, "layers.*")


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        (32, (2 / 32, 31 / 32), list(range(2, 31))),
        (32, (18 / 32, 1.0), list(range(18, 32))),
        (40, (0.0, 1.0), list(range(40))),
        (4, (2 / 32, 31 / 32), [0, 1, 2, 3]),
        (4, (0.25, 0.75), [1, 2]),
        (2, (0.25, 0.75), [0, 1]),
        (1, (0.25, 0.75), [0]),
    ],
)
def test_what_a_paper_says_of_32_layers(layers: int, depth: tuple, expected: list[int]) -> None:
    assert [site.layer for site in sites_within(tower(layers), depth)] == expected


def test_the_last_layer_and_layers_without_attention_are_left_out() -> None:
    found = sites_within(tower(4, without=(1,)), (0.0, 1.0), skip_last=True)
    assert found == [Site("language", 0), Site("language", 2)]
    with pytest.raises(ValueError, match=r"which has 4; 0.9 to 1 takes in none\. Widen it"):
        sites_within(tower(4), (0.9, 1.0))
    with pytest.raises(ValueError, match="takes in none but the last one, which is skipped"):
        sites_within(tower(4), (0.8, 1.0), skip_last=True)
    for wrong in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ValueError, match="with 0 <= first < second <= 1, got"):
            sites_within(tower(4), wrong)


def test_a_narrow_range_takes_the_layer_around_its_middle() -> None:
    second_of_32 = (1 / 32, 2 / 32)
    for layers, layer in ((32, 1), (12, 0), (20, 0)):
        assert sites_near(tower(layers), [second_of_32]) == [Site("language", layer)]
    both = sites_near(tower(32), [second_of_32, (18 / 32, 1.0)])
    assert [site.layer for site in both] == [1, *range(18, 32)]


def test_the_tower_that_writes_and_its_heads() -> None:
    seeing = Subject(tiny.llava(), tiny.llava_processor())
    assert writing_tower(seeing).name == "language"
    assert writing_tower(Subject(tiny.t5())).name == "decoder"
    heads = writing_heads(seeing, None, (0.0, 0.4))
    assert [str(head) for head in heads] == [f"language.L0H{head}" for head in range(6)]
    named = writing_heads(seeing, ["language.L2H1", "language.L0H3"], (0.0, 0.1))
    assert [str(head) for head in named] == ["language.L0H3", "language.L2H1"]
    with pytest.raises(ValueError, match=r"Heads must be of language, .* got vision.L1H0"):
        writing_heads(seeing, "vision.L1H0", (0.0, 1.0))
    with pytest.raises(ValueError, match="must read or write text, it has only vision"):
        writing_tower(Subject(tiny.vit(), tiny.image_processor(20)))


def test_a_block_that_was_not_found_is_named() -> None:
    subject = Subject(tiny.gpt2())
    refuse_unknown_streams(subject, [Site("language", 0), Site("language", 1)])
    with pytest.raises(ValueError, match=r"The residual stream that enters language.L7 must be"):
        refuse_unknown_streams(subject, [Site("language", 1), Site("language", 7)])
