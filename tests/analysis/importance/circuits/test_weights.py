"""The study of weights: planted circuits, the large products, TransformerLens, bundled models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from analysis.head_table import HeadTable
from analysis.importance.circuits.weights import Weights, weights
from analysis.importance.study import StudyOptions
from analysis.tally import Tally
from probes.heads import Site
from probes.loading import load
from probes.subject import Subject
from probes.weights.head_weight_search import head_weights
from tests import tiny_models as tiny


def studied(subject: Subject) -> tuple[Weights, HeadTable, pd.DataFrame]:
    study = weights(StudyOptions())
    study.begin(subject, list)
    tables = study.finish(subject, list, Tally())
    return study, HeadTable(study.lines(subject, "")), tables["composition"]


def planted(model: Any, layer: int, head: int, **parts: Tensor) -> None:
    """Write ``[model_width head_width]`` matrices into one head of a tiny GPT-2."""
    attention = model.transformer.h[layer].attn
    place = slice(4 * head, 4 * head + 4)
    with torch.no_grad():
        for number, part in enumerate(("query", "key", "value")):
            if part in parts:
                attention.c_attn.weight[:, 12 * number :][:, place] = parts[part]
        if "output" in parts:
            attention.c_proj.weight[place] = parts["output"].T


def frame_of(width: int, seed: int) -> Tensor:
    """Orthonormal columns ``[12 width]`` with mean 0, which a LayerNorm's centring leaves alone."""
    noise = torch.randn(12, width, generator=torch.Generator().manual_seed(seed))
    return torch.linalg.qr(noise - noise.mean(0)).Q


def test_a_head_that_copies_and_one_that_takes_away() -> None:
    model = tiny.gpt2()
    frame = frame_of(4, 1)
    planted(model, 0, 1, value=frame, output=3 * frame)
    planted(model, 1, 2, value=frame, output=-frame)
    _, table, _ = studied(Subject(model))
    copies = table.grid("copying", variant="residual")
    assert copies[0, 1] == pytest.approx(1, abs=1e-6)
    assert copies[1, 2] == pytest.approx(-1, abs=1e-6)
    assert abs(copies[0, 0]) < 0.9
    # The norm of a projection of rank 4 is 2, written three times as large.
    assert table.grid("ov_norm")[0, 1] == pytest.approx(6, rel=1e-5)


def test_a_planted_composition_is_found_by_its_kind() -> None:
    model = tiny.gpt2()
    shared, own = frame_of(4, 2), frame_of(4, 3)
    planted(model, 0, 2, value=own, output=shared)
    # Head 0 of layer 1 asks with what head 2 wrote, head 1 is looked up by it, head 2 passes it on.
    planted(model, 1, 0, query=shared, key=own)
    planted(model, 1, 1, query=own, key=shared)
    planted(model, 1, 2, value=shared, output=own)
    _, table, pairs = studied(Subject(model))

    def score(kind: str, head: int) -> float:
        rows = pairs.query(f"kind == '{kind}' and from_head == 2 and head == {head}")
        return float(rows["value"].iloc[0])

    # |P Q| of two projections of rank 4 with the same space is 2, so 2 / (2 * 2).
    assert score("q", 0) == pytest.approx(0.5, rel=1e-5)
    assert score("k", 1) == pytest.approx(0.5, rel=1e-5)
    assert score("v", 2) == pytest.approx(0.5, rel=1e-5)
    assert score("q", 1) < 0.45 and score("k", 0) < 0.45
    best = table.grid("q_composition")
    assert best[1, 0] == pytest.approx(0.5, rel=1e-5) and np.isnan(best[0]).all()
    line = table.lines("q_composition").iloc[0]
    assert line["null_high"] < 0.5 and line["n"] == 0 and np.isnan(line["ci_low"])
    assert list(pairs["from_layer"].unique()) == [0] and len(pairs) == 3 * 3 * 3


def test_norms_are_those_of_the_large_products_under_grouped_queries() -> None:
    subject = Subject(tiny.llama())
    _, table, _ = studied(subject)
    model: Any = subject.model
    for layer, block in enumerate(model.model.layers):
        gain = block.input_layernorm.weight.detach()
        attention = block.self_attn
        for head in range(6):
            kv = slice(10 * (head // 3), 10 * (head // 3) + 10)
            own = slice(10 * head, 10 * head + 10)
            read = gain[:, None] * attention.v_proj.weight.detach()[kv].T
            ov = read @ attention.o_proj.weight.detach()[:, own].T
            query = gain[:, None] * attention.q_proj.weight.detach()[own].T
            key = gain[:, None] * attention.k_proj.weight.detach()[kv].T
            found = {name: table.grid(name)[layer, head] for name in ("ov_norm", "qk_norm")}
            assert found["ov_norm"] == pytest.approx(float(ov.norm()), rel=1e-5)
            assert found["qk_norm"] == pytest.approx(float((query @ key.T).norm()), rel=1e-5)
            product = table.grid("weight_importance")[layer, head]
            assert product == pytest.approx(found["ov_norm"] * found["qk_norm"])


def test_gains_behind_the_output_projection_are_part_of_the_circuit() -> None:
    subject = load("shapes-vit")
    found = head_weights(subject)[Site("vision", 1)]
    block: Any = subject.model.get_submodule(subject.layout.anatomy.blocks[found.site].path)
    scale = next(v for n, v in block.named_parameters() if "layer_scale1" in n).detach()
    output, into_stream = found.output(), found.stream_output()
    assert output is not None and into_stream is not None
    torch.testing.assert_close(into_stream, output * scale, rtol=1e-4, atol=1e-6)


def test_induction_heads_of_the_bundled_model_copy_words() -> None:
    study, table, pairs = studied(load("repeat-lm"))
    words = table.lines("copying", variant="vocabulary")
    later = words[words["layer"] == 1]
    assert not study.reasons
    # All but L1H3, which is no induction head, are near 1; all lie above their null.
    values = later["value"].to_numpy()
    assert (np.delete(values, 3) > 0.85).all() and 0.4 < values[3] < 0.75
    assert (values > later["null_high"].to_numpy()).all()
    keys = table.lines("k_composition")
    assert (keys["value"] > keys["null_high"]).all()
    assert len(pairs) == 3 * 8 * 8 and pairs["null"].between(0.05, 0.15).all()


def test_a_tower_without_words_or_a_norm_on_its_queries_says_so() -> None:
    study, table, _ = studied(Subject(tiny.vit()))
    assert "No map from the residual stream" in study.reasons["vision", "copying of words"]
    assert table.variants("copying") == ["residual"]
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(2)
    settings = {"vocab_size": 31, "hidden_size": 30, "intermediate_size": 14, "head_dim": 10}
    settings |= {"num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2}
    normed = Subject(Qwen3ForCausalLM(Qwen3Config(**settings)).eval())
    study, table, pairs = studied(normed)
    why = "Queries or keys pass a norm (model.layers.0.self_attn.q_norm) after their projection"
    assert study.reasons["language", "qk_norm"].startswith(why.replace("0", "1"))
    assert set(table.measures) == {"copying", "ov_norm", "v_composition"}
    assert set(pairs["kind"]) == {"v"}


def test_cross_attention_copies_nothing_and_composes_with_nothing() -> None:
    study, table, _ = studied(Subject(tiny.t5()))
    assert "read another stream" in study.reasons["cross", "copying"]
    assert "another stream" in study.reasons["cross", "q_composition"]
    assert set(table.select(tower="cross").measures) == {"ov_norm", "qk_norm", "weight_importance"}


def test_a_batch_counts_for_nothing_and_passes_the_reasons_on() -> None:
    subject = Subject(tiny.vit())
    study, _, _ = studied(subject)
    batch = subject.prepare(pixel_values=torch.zeros(2, 3, 20, 20))
    scores = study.score(subject, batch)
    tally = Tally()
    tally.add(scores)
    assert scores.columns == () and tally.examples == 2
    assert ("vision", "copying of words") in tally.reasons


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_transformer_lens_composes_the_same(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    model = tiny.llama()
    with torch.no_grad():  # without gains, which the Bridge does not fold in by itself
        for block in model.model.layers:
            block.input_layernorm.weight.fill_(1.0)
    tiny.tokenizer("left").save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(
        "meta-llama/Llama-3.2-1B",
        hf_model=copy.deepcopy(model),  # it renames modules for good
        tokenizer=AutoTokenizer.from_pretrained(tmp_path),
        device="cpu",
    )
    theirs = bridge.all_composition_scores(kind).scores.detach()
    _, _, pairs = studied(Subject(model))
    mine = pairs[pairs["kind"] == kind.lower()]
    assert len(mine) == 3 * 36
    for row in mine.itertuples():
        their = float(theirs[row.from_layer, row.from_head, row.layer, row.head])
        assert row.value == pytest.approx(their, rel=1e-4)
