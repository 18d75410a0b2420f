"""A saved index against loops over captures, and against sae.reading itself."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.run_files import RunError
from dashboard.figures import feature_on_picture, feature_on_text
from probes.capture import capture
from probes.readers import bundled_set
from sae import SubjectActivations, firing_views, logit_effects, write_feature_index
from sae.feature_index import FeatureIndex
from sae.feature_index.form import Amounts
from sae.feature_index.views import saved_view
from sae.reading.feature_examples import Firing, feature_examples
from sae.reading.head_shares import decoder_shares, firing_shares
from tests.drawn_coders import drawn_coder, subject_of

MODELS = {
    "repeat-lm": ("repeats", "language.L1", 11),
    "shapes-llava": ("scenes", "language.L2", 5),
    "shapes-vit": ("digits", "vision.L2", 7),
}
LATENTS, HEADS_WIDTH = 41, 128
AMOUNTS = Amounts(latents=13, top=4, per_decile=2, attributed=2, sample=30)


def source_of(model: str, batch_size: int = 3) -> SubjectActivations:
    data, site, count = MODELS[model]
    examples = list(islice(bundled_set.read(data), count))
    return SubjectActivations(subject_of(model), examples, sites=[site], batch_size=batch_size)


def coder_of(model: str) -> Any:
    """Two of its latents never fire."""
    (width,) = source_of(model).widths.values()
    coder = drawn_coder(width, LATENTS, k=5)
    coder.encoder_bias.data[[3, 40]] = -1e4
    return coder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for model, (_, site, _) in MODELS.items():
        made[model] = write_feature_index(
            tmp_path_factory.mktemp("index") / model, subject_of(model), source_of(model),
            coder_of(model), site, amounts=AMOUNTS, about={"model": model},
        )  # fmt: skip
    return made


def strengths_by_loop(model: str) -> list[tuple[str, torch.Tensor]]:
    """Id and ``[position latent]`` of each example, from one capture of each by itself."""
    subject, coder, (data, site, count) = subject_of(model), coder_of(model), MODELS[model]
    found = []
    for example in islice(bundled_set.read(data), count):
        z = capture(subject, subject.prepare(examples=[example]), z=[site]).z(site)[0]
        found.append((example.id, coder.encode(z.flatten(1))))
    return found


@pytest.mark.parametrize("model", MODELS)
def test_numbers_of_every_latent_are_those_of_loops(folders: dict[str, Path], model: str) -> None:
    index = FeatureIndex.open(folders[model])
    every = strengths_by_loop(model)
    rows = sum(len(strengths) for _, strengths in every)
    assert index.about["rows"] == rows and len(index.features) == LATENTS
    for latent in range(LATENTS):
        own = [float(v) for _, strengths in every for v in strengths[:, latent] if v != 0]
        feature = index.feature(latent)
        assert feature.firings == len(own) and feature.density == len(own) / rows
        assert feature.largest == pytest.approx(max(own, default=0.0), rel=1e-5)
        if own:
            assert feature.mean == pytest.approx(sum(own) / len(own), rel=1e-5)
        else:
            assert math.isnan(feature.mean) and not feature.followed
    assert [index.feature(dead).firings for dead in (3, 40)] == [0, 0]
    assert index.about["dead"] == sum(index.features["firings"] == 0) >= 2


@pytest.mark.parametrize("model", MODELS)
def test_shares_words_and_examples_are_those_of_sae_reading(
    folders: dict[str, Path], model: str
) -> None:
    index, coder, (_, site, _) = FeatureIndex.open(folders[model]), coder_of(model), MODELS[model]
    rows = source_of(model, batch_size=4)
    shares, fires = decoder_shares(coder, index.heads), firing_shares(rows, coder, site).shares
    found = feature_examples(rows, coder, site, top=AMOUNTS.top, sample=AMOUNTS.sample)
    order = found.firings.sort(descending=True, stable=True).indices.tolist()
    followed = [latent for latent in order[: AMOUNTS.latents] if found.firings[latent]]
    assert sorted(index.features.query("followed")["latent"]) == sorted(followed)
    for latent in range(LATENTS):
        feature = index.feature(latent)
        assert feature.decoder_shares == pytest.approx(shares[latent].tolist(), rel=1e-5)
        assert feature.top_head == int(shares[latent].argmax())
        expected = fires[latent].tolist()
        assert feature.firing_shares == pytest.approx(expected, rel=1e-4, nan_ok=True)
        if latent not in followed:
            assert index.top(latent) == [] and index.deciles(latent) == []
            continue
        told = logit_effects(subject_of(model), coder, site, latent)
        best = [effect for _, _, effect in told.top(latent, 8)]
        assert [effect for _, effect in feature.words] == pytest.approx(best, rel=1e-4, abs=1e-5)
        worst = [effect for _, _, effect in told.bottom(latent, 8)]
        assert [effect for _, effect in feature.words_against] == pytest.approx(
            worst, rel=1e-4, abs=1e-5
        )
        same_places(index.top(latent), found.top(latent))
        for mine, theirs in zip(
            index.deciles(latent), found.quantiles(latent, 10, AMOUNTS.per_decile), strict=False
        ):
            same_places(mine, theirs)


def same_places(mine: Any, theirs: list[Firing]) -> None:
    assert [(one.example, one.position) for one in mine] == [
        (one.example, one.position) for one in theirs
    ]
    assert [one.strength for one in mine] == pytest.approx([t.strength for t in theirs], rel=1e-4)


@pytest.mark.parametrize("model", MODELS)
def test_where_else_in_the_input_a_latent_fires(folders: dict[str, Path], model: str) -> None:
    index, every = FeatureIndex.open(folders[model]), dict(strengths_by_loop(model))
    checked = 0
    for latent in index.features.query("followed")["latent"]:
        for one in index.top(latent):
            own = every[one.example][:, latent]
            expected = own.nonzero()[:, 0].tolist()
            if len(expected) <= 64:
                assert sorted(position for position, _ in one.fired) == expected
            assert dict(one.fired)[one.position] == pytest.approx(one.strength, rel=1e-5)
            assert [s for _, s in one.fired] == sorted((s for _, s in one.fired), reverse=True)
            checked += len(one.fired)
    assert checked > 50


@pytest.mark.parametrize("model", MODELS)
def test_a_saved_firing_is_the_one_that_was_seen(folders: dict[str, Path], model: str) -> None:
    index, (_, site, _) = FeatureIndex.open(folders[model]), MODELS[model]
    rows, coder, checked = source_of(model), coder_of(model), 0
    for latent in index.features.query("followed")["latent"].tolist()[:5]:
        tops = index.top(latent)
        assert saved_view(index, tops[2]) is None if len(tops) > 2 else True
        firings = [Firing(latent, one.example, 0, one.position, one.strength) for one in tops[:2]]
        firings = [Firing(f.latent, f.example, rows.ids.index(f.example), f.position, f.strength)
                   for f in firings]  # fmt: skip
        seen = firing_views(subject_of(model), rows, coder, site, firings)
        for one, view in zip(tops[:2], seen, strict=True):
            saved = saved_view(index, one)
            assert saved is not None and saved.destination.words == view.destination.words
            assert one.words == view.destination.words and one.role == view.destination.role
            here, there = saved.attribution, view.attribution
            size = float(there.joint.abs().sum())
            assert here.pre_activation == pytest.approx(there.pre_activation, abs=1e-5 * size)
            total = here.constant + float(here.joint.sum())
            assert total == pytest.approx(here.pre_activation, abs=1e-5 * size)
            torch.testing.assert_close(here.by_head, there.by_head, atol=1e-5 * size, rtol=0)
            missing = float((there.by_source.sum() - here.by_source[:-1].sum()).abs())
            assert missing <= 0.05 * size
            assert saved.source is not None and view.source is not None
            assert saved.source.words == view.source.words
            assert saved.source.patch is None or view.source.patch is not None
            checked += 1
    assert checked >= 6


def test_a_saved_firing_is_drawn_by_the_same_figures(folders: dict[str, Path]) -> None:
    llava, vit = (FeatureIndex.open(folders[m]) for m in ("shapes-llava", "shapes-vit"))
    drawn = 0
    for latent in llava.features.query("followed")["latent"]:
        one = llava.top(latent)[0]
        view = saved_view(llava, one)
        assert view is not None
        figure = feature_on_text(view)
        boxes = float(sum(figure.data[0].marker.color))
        assert boxes == pytest.approx(float(view.attribution.joint.sum()), rel=1e-4, abs=1e-4)
        drawn += 1
    latent = int(vit.features.query("followed")["latent"].iloc[0])
    view = saved_view(vit, vit.top(latent)[0])
    assert view is not None and drawn == AMOUNTS.latents
    assert "Latent" in feature_on_picture(view).layout.title.text


def test_boxes_of_a_saved_firing_are_in_pixels_of_its_thumbnail(tmp_path: Path) -> None:
    model, (_, site, _) = "shapes-vit", MODELS["shapes-vit"]
    whole = Amounts(latents=3, top=2, attributed=1)
    small = Amounts(latents=3, top=2, attributed=1, picture_pixels=14)
    views = []
    for name, amounts in (("whole", whole), ("small", small)):
        rows, coder = source_of(model), coder_of(model)
        made = write_feature_index(
            tmp_path / name, subject_of(model), rows, coder, site, amounts=amounts
        )
        index = FeatureIndex.open(made)
        latent = int(index.features.query("followed")["latent"].iloc[0])
        views.append((index, saved_view(index, index.top(latent)[0])))
    (first, one), (_, other) = views
    assert one is not None and other is not None
    width = first.inputs[0].pictures[0][1]
    own, scaled = (v.attribution.sources.map.box for v in (one, other))
    torch.testing.assert_close(scaled, own * (14 / width), equal_nan=True)


def test_inputs_and_pictures_stay_within_their_amounts(tmp_path: Path) -> None:
    model, (_, site, _) = "shapes-llava", MODELS["shapes-llava"]
    made = write_feature_index(
        tmp_path / "few", subject_of(model), source_of(model), coder_of(model), site,
        amounts=Amounts(latents=9, top=3, inputs=2, picture_bytes=10),
    )  # fmt: skip
    index = FeatureIndex.open(made)
    assert index.about["inputs"] == len(index.inputs) == 2
    assert not any(kept.pictures for kept in index.inputs) and not (made / "pictures").exists()
    every = [one for latent in range(LATENTS) for one in index.top(latent)]
    kept = {one.number: one.example for one in every if one.number >= 0}
    assert {number: index.inputs[number].id for number in kept} == kept
    lost = [one for one in every if one.number < 0]
    assert lost and all(saved_view(index, one) is None for one in lost)


def test_what_was_stopped_is_no_index_and_is_written_over(tmp_path: Path) -> None:
    model, (_, site, _) = "repeat-lm", MODELS["repeat-lm"]
    folder = tmp_path / "index"

    def stop(stage: str, examples: int) -> None:
        if stage == "examples" and examples > 3:
            raise KeyboardInterrupt

    def write(**settings: Any) -> Path:
        return write_feature_index(
            folder, subject_of(model), source_of(model), coder_of(model), site,
            amounts=AMOUNTS, **settings,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        write(reached=stop)
    with pytest.raises(RunError, match=r"no finished index of features.*headscope sae features"):
        FeatureIndex.open(folder)
    (folder / "mine.txt").write_text("x")
    with pytest.raises(RunError, match=r"something else \(mine.txt\)"):
        write()
    (folder / "mine.txt").unlink()
    assert FeatureIndex.open(write()).about["followed"] == AMOUNTS.latents
    with pytest.raises(RunError, match="holds a finished index"):
        write()


def test_a_damaged_index_is_told_in_a_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "index"
    shutil.copytree(folders["repeat-lm"], folder)
    index = FeatureIndex.open(folder)
    latent = int(index.features.query("followed")["latent"].iloc[0])
    (folder / "examples.parquet").write_bytes(b"PAR1")
    with pytest.raises(RunError, match=r"examples.parquet cannot be read"):
        index.top(latent)
    (folder / "inputs.json").write_text("{}")
    with pytest.raises(RunError, match=r"inputs.json cannot be read"):
        _ = index.inputs
    about = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(about | {"kind": "other"}))
    with pytest.raises(RunError, match="must hold an index of features"):
        FeatureIndex.open(folder)
    with pytest.raises(ValueError, match=r"between 0 and 40, got 41"):
        index.feature(41)


def test_pictures_are_looked_for_in_the_index_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    import shutil

    folder = tmp_path / "index"
    shutil.copytree(folders["shapes-vit"], folder)
    told = json.loads((folder / "inputs.json").read_text())
    told["inputs"][0]["pictures"][0]["file"] = "../../../etc/passwd"
    (folder / "inputs.json").write_text(json.dumps(told))
    assert FeatureIndex.open(folder).inputs[0].pictures == ()
