"""Coders by name, folder and training; the model that they belong to."""

import json

import pytest
import torch

from analysis.run_files import RunError
from headscope.coding.opened import (
    model_of,
    open_coder,
    open_coders,
    refuse_other_heads,
    refuse_other_model,
    site_named,
)
from headscope.plan import AskedWrongly
from probes.bundled import bundled_coders
from sae.coders.topk import TopK
from sae.exchange.formats import load_coder
from sae.exchange.headscope_folder import save_coder


@pytest.mark.parametrize("name", sorted(bundled_coders()))
def test_bundled_coders_open_by_name_and_say_where_they_belong(name):
    known = bundled_coders()[name]
    ((called, coder),) = open_coders(name).items()
    assert called == name
    assert coder.about["site"] == known.site
    assert coder.about["subject"]["name"] == known.model
    assert coder.architecture == known.architecture
    assert coder.latents == known.details["latents"]
    assert model_of({name: coder}) == known.model
    assert torch.equal(load_coder(name).decoder, load_coder(known.path).decoder)


def test_a_folder_of_the_same_name_is_meant_by_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_coder(TopK(4, 6, k=2), "repeat-lm")
    assert load_coder("./repeat-lm").width == 4
    assert load_coder("repeat-lm").width == 128


def test_an_unfinished_training_and_another_run(tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"kind": "sae training"}))
    with pytest.raises(RunError, match="is unfinished and has written no coder yet.*`--resume`"):
        open_coders(tmp_path)
    plan.write_text(json.dumps({"kind": "score"}))
    with pytest.raises(RunError, match="it is the folder of another run"):
        open_coders(tmp_path)


def test_one_of_several(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps({"kind": "sae training"}))
    (tmp_path / "manifest.json").write_text(json.dumps({"sites": ["vision.L0", "language.L1"]}))
    save_coder(TopK(4, 6, k=2), tmp_path / "vision.L0")
    save_coder(TopK(5, 7, k=2), tmp_path / "language.L1")
    assert list(open_coders(tmp_path)) == ["vision.L0", "language.L1"]
    assert open_coder(tmp_path, "language.L1").width == 5
    with pytest.raises(AskedWrongly, match="holds 2 coders: vision.L0, language.L1. Choose one"):
        open_coder(tmp_path)
    with pytest.raises(AskedWrongly, match="got 'language.L2'"):
        open_coder(tmp_path, "language.L2")
    alone = open_coder(tmp_path / "vision.L0", "anything")
    assert alone.width == 4
    assert open_coder(alone) is alone


def test_another_model_is_refused_and_the_sentence_names_both(subject):
    coder = load_coder("repeat-lm")
    refuse_other_model(coder, subject)
    coder.about = {**coder.about, "subject": {"name": "mine", "fingerprint": "0" * 16}}
    with pytest.raises(AskedWrongly, match="'mine', got 'repeat-lm' in float32.*`--other-model`"):
        refuse_other_model(coder, subject)
    coder.about = {}
    refuse_other_model(coder, subject)
    with pytest.raises(AskedWrongly, match="does not say which model"):
        model_of({"a": coder})


def test_sites(subject):
    coder = TopK(128, 6, k=2)
    with pytest.raises(AskedWrongly, match="does not say which site it belongs to"):
        site_named(coder)
    assert site_named(coder, "language.L0") == "language.L0"
    coder.about = {"site": "language.L1"}
    assert site_named(coder, "language.L0") == "language.L1"
    refuse_other_heads(coder, subject, "language.L1")
    with pytest.raises(AskedWrongly, match="must be as wide as the heads of language.L1"):
        refuse_other_heads(TopK(64, 6, k=2), subject, "language.L1")
    with pytest.raises(AskedWrongly, match="must be an attention layer of 'repeat-lm'"):
        refuse_other_heads(coder, subject, "language.L7")
