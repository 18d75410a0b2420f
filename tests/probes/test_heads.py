"""Names of heads and what a selection of them means."""

import re

import pytest

from probes.heads import Head, Site, select_heads, select_sites
from probes.layout import SiteLayout, Tower


def tower(name: str, heads: dict[int, int], depth: int) -> Tower:
    sites = {
        layer: SiteLayout(Site(name, layer), f"{name}.{layer}", n, n, 4, 4, "sdpa")
        for layer, n in heads.items()
    }
    return Tower(name, sites, depth, f"{name}.*")


TWO = {
    "vision": tower("vision", {0: 2, 1: 3}, 2),
    "language": tower("language", {1: 5, 3: 5}, 4),
}


def names(selection: object, towers: dict[str, Tower] = TWO) -> list[str]:
    return [str(head) for head in select_heads(selection, towers)]  # type: ignore[arg-type]


def test_one_head_a_layer_a_tower_everything() -> None:
    assert names("language.L3H4") == ["language.L3H4"]
    assert names("vision.L1") == ["vision.L1H0", "vision.L1H1", "vision.L1H2"]
    assert names("vision.L*H1") == ["vision.L0H1", "vision.L1H1"]
    assert len(names("language.*")) == 10
    assert len(names("*")) == 15
    assert names(Head("vision", 0, 1)) == ["vision.L0H1"]


def test_order_is_that_of_the_model_and_each_head_comes_once() -> None:
    assert names(["language.L1H0", "vision.L0H1", "language.L1H0"]) == [
        "vision.L0H1",
        "language.L1H0",
    ]
    assert select_sites(["language.L3H4", "language.L3H1"], TWO) == [Site("language", 3)]


def test_transformer_lens_names_mean_the_language_tower() -> None:
    assert names("blocks.1.attn.hook_z") == [f"language.L1H{i}" for i in range(5)]


def test_the_tower_may_be_left_out_only_where_there_is_one() -> None:
    assert names("L1H2", {"vision": TWO["vision"]}) == ["vision.L1H2"]
    with pytest.raises(ValueError, match=re.escape("must name its tower because this model has 2")):
        names("L1H2")


@pytest.mark.parametrize(
    ("selection", "sentence"),
    [
        ("language.L3H5", "has heads 0 to 4 in layer 3"),
        ("language.L9", "has layers 1 to 3"),
        ("audio.L0", "must be one of vision, language, got 'audio'"),
        ("language.3.5", "must look like 'language.L3H5'"),
    ],
)
def test_a_wrong_name_says_what_there_is(selection: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        names(selection)


def test_layers_counts_blocks_and_heads_may_differ_by_layer() -> None:
    assert TWO["language"].layers == 4
    assert TWO["language"].empty_layers == [0, 2]
    assert TWO["language"].heads == 5
    assert TWO["vision"].heads == (2, 3)


def test_head_names_are_read_and_written_alike() -> None:
    assert str(Head.parse("language.L12H3")) == "language.L12H3"
    with pytest.raises(ValueError, match="must be written like"):
        Head.parse("L12H3")
