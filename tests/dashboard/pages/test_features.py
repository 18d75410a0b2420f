"""The page of features: what is on it equals the index, and odd indexes are told in a sentence."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from dashboard.feature_shelf import feature_indexes, index_of_head
from dashboard.shelf import FEATURES, read_shelf
from probes.readers import bundled_set
from sae import SubjectActivations, load_coder, write_feature_index
from sae.feature_index import FeatureIndex
from sae.feature_index.form import Amounts
from sae.feature_index.listing import listed
from tests.drawn_coders import drawn_coder, subject_of


def made(folder: Path, model: str, data: str, count: int, **amounts: int) -> Path:
    subject, coder = subject_of(model), load_coder(model)
    site = coder.about["site"]
    rows = SubjectActivations(subject, list(islice(bundled_set.read(data), count)), sites=[site])
    return write_feature_index(
        folder, subject, rows, coder, site, amounts=Amounts(**amounts),
        about={"model": model, "data": data},
    )  # fmt: skip


@pytest.fixture(scope="module")
def vlm_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shelf")
    return made(place / "vlm-features", "shapes-llava", "scenes", 8, latents=60, top=5)


@pytest.fixture(scope="module")
def vit_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("shelf")
    return made(place / "vit-features", "shapes-vit", "digits", 8, latents=20, top=5)


def component(page: Any, name: str) -> dict[str, Any]:
    """What a component of the page was given."""
    (found,) = [one for one in page.main if one.type == "bidi_component" and name in str(one.proto)]
    return json.loads(found.proto.json)


def said(page: Any) -> str:
    parts = (page.text, page.markdown, page.caption, page.subheader, page.code)
    return "\n".join(str(one.value) for some in parts for one in some)


def test_it_opens_the_feature_of_the_address_and_tells_its_numbers(
    app: Callable[..., Any], vlm_index: Path
) -> None:
    index = FeatureIndex.open(vlm_index)
    page = app("features", vlm_index, latent="739")
    feature = index.feature(739)
    assert "Latent 739 of language.L2" in said(page)
    assert f"Fires at {feature.firings:,} of {feature.rows:,} positions" in said(page)
    assert f"{index.about['dead']:,} never fire" in said(page)
    assert len(page.get("plotly_chart")) >= 3


def test_without_a_latent_the_first_of_the_list_is_shown(
    app: Callable[..., Any], vlm_index: Path
) -> None:
    index = FeatureIndex.open(vlm_index)
    for order, column in (("density", "firings"), ("strongest", "largest")):
        page = app("features", vlm_index, sort=order)
        first = int(listed(index, order)["latent"].iloc[0])
        assert index.features[column].max() == index.features[column][first]
        assert f"Latent {first} of language.L2" in said(page)


def test_the_list_is_narrowed_by_head_and_by_text(vlm_index: Path) -> None:
    index = FeatureIndex.open(vlm_index)
    for head in range(index.heads):
        found = listed(index, head=head)
        shares = [index.feature(n).decoder_shares for n in found["latent"].head(5)]
        assert all(max(share) == share[head] for share in shares)
    every = sum(len(listed(index, head=head)) for head in range(index.heads))
    assert every == index.about["latents"]
    found = listed(index, text="YELLOW")
    assert 0 < len(found) < every
    for line in found.to_dict("records"):
        assert "yellow" in (line["example"] + line["words"]).lower()
    assert listed(index, text="739")["latent"].tolist() == [739]
    assert set(listed(index, "never fires")["firings"]) == {0}
    order = listed(index)["firings"].tolist()
    assert order == sorted(order, reverse=True)


def test_a_dead_a_lesser_and_an_unknown_latent_are_told(
    app: Callable[..., Any], vlm_index: Path
) -> None:
    frame = FeatureIndex.open(vlm_index).features
    dead = int(frame[frame["firings"] == 0]["latent"].iloc[0])
    assert "It never fires at the" in said(app("features", vlm_index, latent=str(dead)))
    lesser = int(frame[(frame["firings"] > 0) & ~frame["followed"]]["latent"].iloc[0])
    told = said(app("features", vlm_index, latent=str(lesser)))
    assert "only of the 60 that fire most" in told and "headscope sae features" in told
    for odd in ("99999", "-1", "<b>x</b>", "٣"):
        assert "There is no latent" in said(app("features", vlm_index, latent=odd))
    assert "No feature is like that" in said(app("features", vlm_index, text="nowhere to be"))


def test_pictures_of_a_vit_are_drawn_and_tenths_are_shown(
    app: Callable[..., Any], vit_index: Path
) -> None:
    page = app("features", vit_index)
    assert any("picture" in str(one.proto) for one in page.get("plotly_chart"))
    page = app("features", vit_index, examples="by tenth of strength")
    assert "ten groups of equal number" in said(page)


def test_a_damaged_index_is_a_sentence(
    app: Callable[..., Any], vlm_index: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(vlm_index, folder)
    for name in ("attributions", "examples"):
        (folder / f"{name}.parquet").write_bytes(b"PAR1")
        page = app("features", folder)
        assert f"{name}.parquet cannot be read" in said(page) and not page.exception
    (folder / "features.parquet").write_bytes(b"PAR1")
    assert "features.parquet cannot be read" in said(app("features", folder))


def test_indexes_are_found_beside_coders_in_runs_and_by_themselves(
    vlm_index: Path, vit_index: Path, tmp_path: Path
) -> None:
    training = tmp_path / "training"
    (training / "language.L2").mkdir(parents=True)
    (training / "plan.json").write_text(json.dumps({"kind": "sae training", "schema": 1}))
    shutil.copytree(vlm_index, training / "language.L2" / "features")
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.json").write_text(json.dumps({"schema": 1, "model": {"name": "shapes-vit"}}))
    shutil.copytree(vit_index, run / "features")
    shutil.copytree(vit_index, tmp_path / "alone")
    shelf = read_shelf([tmp_path])
    found = {one.name: (one.site, one.model) for one in feature_indexes(shelf)}
    expected = {
        "training/language.L2": ("language.L2", "shapes-llava"),
        "run": ("vision.L2", "shapes-vit"),
        "alone": ("vision.L2", "shapes-vit"),
    }
    assert {name: found[name] for name in expected} == expected
    assert all("(bundled)" in name for name in found.keys() - expected.keys())
    assert [item.name for item in shelf.of(FEATURES)] == ["alone"]
    item = index_of_head(shelf, "shapes-llava", "language.L2")
    assert item is not None and item.name == "training/language.L2"
    assert index_of_head(shelf, "shapes-llava", "language.L1") is None


def test_text_from_data_is_never_markup(app: Callable[..., Any], tmp_path: Path) -> None:
    subject, width = subject_of("repeat-lm"), 128
    examples = list(islice(bundled_set.read("repeats"), 3))
    examples = [
        replace(one, id=f"<img src=x onerror=alert({n})>") for n, one in enumerate(examples)
    ]
    rows = SubjectActivations(subject, examples, sites=["language.L1"])
    coder = drawn_coder(width, 11, k=3)
    folder = write_feature_index(tmp_path / "odd", subject, rows, coder, "language.L1")
    page = app("features", folder)
    shown = [str(one.value) for one in (*page.markdown, *page.subheader)]
    assert any(r"\<img" in text for text in shown)
    assert not any(re.search(r"(?<!\\)<img", text) for text in shown)
