"""Coders judged beside baselines, on examples they have not seen."""

import pytest

from analysis.importance.readings import ReadingError
from headscope.coding.evaluating import evaluate_coder, judged_parts, refuse_baselines
from headscope.coding.training import train_coders
from headscope.plan import AskedWrongly
from probes.bundled import bundled_coders
from probes.loading import load
from probes.readers import read_examples
from sae import judge, load_coder
from sae.coders.topk import TopK
from sae.judging.held_out import is_held_out, split_examples
from sae.training import TrainConfig

SMALL = TrainConfig(latents=67, k=3, tokens=1_500, batch_size=250, buffer_rows=500)


@pytest.fixture(scope="module")
def trained(subject):
    found = train_coders(
        subject, "repeats", sites="language.L1", config=SMALL, held_out=0.2, limit=40
    )
    return found["language.L1"]


def test_what_was_held_out_is_judged(subject, trained):
    found = evaluate_coder(trained, subject, limit=40, baselines=["pca"])
    examples = list(read_examples("repeats", "language", 40))
    held = [example for example in examples if is_held_out(example.id, 0.2)]
    assert found.data["examples"] == len(held)
    assert found.data["fitted"] == len(examples) - len(held)
    assert found.table["kind"].tolist() == ["trained", "pca"]
    from headscope.coding.examples import rows_of

    own = judge(trained, rows_of(subject, held, "language.L1"))
    line = found.table.iloc[0]
    assert line["explained_variance"] == pytest.approx(own.explained_variance)
    assert line["l0"] == own.l0 == 3
    assert found.judged.fidelity.explained_variance_by_head == pytest.approx(
        own.explained_variance_by_head
    )
    assert found.losses == ("cross_entropy", "kl")
    assert not found.not_measured and not found.skipped


def test_of_other_data_one_half_is_judged(subject, trained):
    parts = judged_parts(trained, subject, "unrepeated", limit=30)
    every = list(read_examples("unrepeated", "language", 30))
    fitted, judged = split_examples(every, 0.5)
    assert [e.id for e in parts.train] == [e.id for e in fitted]
    assert [e.id for e in parts.held_out] == [e.id for e in judged]
    nowhere = load_coder("repeat-lm")  # trained on a recipe's inputs, which are not on the disk
    assert judged_parts(nowhere, subject).name == "repeats"


@pytest.mark.parametrize("name", sorted(bundled_coders()))
def test_bundled_coders_beat_their_baselines(name):
    subject = load(bundled_coders()[name].model)
    found = evaluate_coder(name, subject, limit=24)
    line = {row["kind"]: row for row in found.table.to_dict("records")}
    own = line.pop("trained")
    assert set(line) == {"random", "pca", "untrained"}
    for kind, other in line.items():
        # PCA keeps a whole number of components: at most half a component from the same L0.
        assert other["l0"] == pytest.approx(own["l0"], abs=0.6), kind
        assert own["explained_variance"] > other["explained_variance"], kind
        assert own["kl_spliced"] < other["kl_spliced"], kind
    assert own["explained_variance"] > 0.75
    assert own["kl_recovered_low"] > 0.9


def test_a_loss_that_cannot_be_told_is_said_to_be_missing(subject, trained, monkeypatch):
    def none(*_, **__):
        raise ReadingError("Nothing can be read here.")

    monkeypatch.setattr("headscope.coder_losses.output_losses", none)
    found = evaluate_coder(trained, subject, limit=40, baselines=[])
    assert found.losses == ()
    assert found.not_measured == {"loss recovered": "Nothing can be read here."}
    assert found.record()["lines"][0]["l0"] == 3


def test_refusals(subject, trained):
    with pytest.raises(AskedWrongly, match="`--baselines` must be some of random, pca, untrained"):
        refuse_baselines(["pca", "kmeans"])
    with pytest.raises(AskedWrongly, match="must be the one that the coder was trained on"):
        evaluate_coder(trained, load("prose-lm"))
    stranger = TopK(64, 5, k=2)
    with pytest.raises(AskedWrongly, match="must be as wide as the heads"):
        evaluate_coder(stranger, subject, site="language.L1")


def test_another_model_may_be_asked_for(trained, subject):
    other = load("shapes-llava")  # its language layers are as wide
    found = evaluate_coder(
        trained, other, "scenes", limit=6, baselines=[], other_model=True, site="language.L1"
    )
    assert found.table.iloc[0]["explained_variance"] < 0.5
