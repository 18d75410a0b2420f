"""The study of sinks: columns against slow loops, tables on planted sinks, and what is left out."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest
import seeing_batches as seen
import tiny_models as tiny
import torch
from synthetic_calls import whole_call
from torch import Tensor

import headscope as hs
from analysis.importance.study import StudyOptions
from analysis.progress import Progress
from analysis.scores import BatchScores
from analysis.sinks.finder import SinkFinder
from analysis.sinks.head_columns import HeadColumns, SinkKeys
from analysis.sinks.study import MEASURES, Sinks, sinks
from analysis.tally import Tally
from headscope.batching import batches
from headscope.scorer import tell_progress
from probes.inputs import Batch
from probes.loading import load
from probes.masks import AttentionMask
from probes.readers import read_examples
from probes.subject import Subject
from probes.tokens.map import ROLES
from tests.probes.test_tap import IDS, LEFT, hooks

DIMENSIONS, TAU, PATCHES = (3, 11, 20), 1.5, 16
PLANTED = {
    "L0H4", "L1H0", "L1H2", "L1H3", "L1H6", "L2H0", "L2H1", "L2H2", "L2H3", "L2H4", "L2H5",
    "L2H6", "L2H7", "L3H1",
}  # fmt: skip


@pytest.fixture(scope="module")
def scenes() -> tuple[Subject, Sinks, Tally, dict[str, Any]]:
    """The study on 12 scenes of the model with planted sinks, in batches of 5."""
    return run("shapes-llava-sinks", "scenes", 12)


def run(name: str, data: str, count: int) -> tuple[Subject, Sinks, Tally, dict[str, Any]]:
    subject = load(name)
    examples = list(read_examples(data, subject.kind, count))

    def given() -> Any:
        return batches(subject, examples, 5, lambda example, reason: None)

    study = sinks(StudyOptions())
    study.begin(subject, given)
    tally = Tally()
    for batch in given():
        tally.add(study.score(subject, batch))
    return subject, study, tally, dict(study.finish(subject, given, tally))


def column(scores: BatchScores, layer: int, head: int, measure: str, variant: str = "") -> Any:
    """Numerator, denominator, null numerator and null denominator ``[example]``."""
    parts = ("numerator", "denominator", "null_numerator", "null_denominator")
    (index,) = (
        index
        for index, found in enumerate(scores.columns)
        if (found.tower, found.layer, found.head) == ("language", layer, head)
        and found.measure == measure
        and found.variant.startswith(variant)
    )
    return [getattr(scores, part)[:, index] for part in parts]


def plainly(subject: Subject, batch: Batch) -> tuple[Any, Any, Any, Any]:
    """Eager patterns, keys, values and states of the language model, in a model of its own."""
    model: Any = subject.model
    twin = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager").eval()
    twin.load_state_dict(model.state_dict())
    kept: dict[str, list[Tensor]] = {"k": [], "v": []}
    for layer in twin.model.language_model.layers:
        for name in kept:
            projection = getattr(layer.self_attn, f"{name}_proj")
            projection.register_forward_hook(lambda m, a, out, name=name: kept[name].append(out))
    with torch.no_grad():
        out = twin(**batch.tensors, output_attentions=True, output_hidden_states=True)
    return out.attentions, kept["k"], kept["v"], out.hidden_states


def test_columns_equal_loops_over_queries_and_keys() -> None:
    subject = seen.seeing()
    batch = seen.three(subject)
    study = Sinks(StudyOptions(), finder=SinkFinder({"language": 3, "vision": 5}, "language",
                                                    DIMENSIONS, TAU))  # fmt: skip
    scores = study.score(subject, batch)
    patterns, keys, values, states = plainly(subject, batch)
    tokens = batch.tokens["language"]
    width = int(tokens.lengths[0])
    roles = [[ROLES[r] for r in row] for row in tokens.role.view(3, width).tolist()]
    compared = 0
    for layer in range(3):
        for row in range(3):
            real = [j for j in range(width) if roles[row][j] != "pad"]
            image = [j for j in real if roles[row][j] == "image"]
            sinks_of: dict[str, list[int]] = {"text": [], "visual": []}
            for j in real:
                x = states[layer][row, j].tolist()
                root = (sum(v * v for v in x) / len(x)) ** 0.5
                if max(abs(x[d]) for d in DIMENSIONS) / root > TAU:
                    sinks_of["visual" if j in image else "text"].append(j)
            asked = [j for j in real if j > max(image)]
            for head in range(6):
                weights = patterns[layer][row, head].tolist()
                for kind, found in sinks_of.items():
                    if not found:
                        continue
                    mass = sum(weights[i][j] for i in asked for j in found)
                    flat = sum(sum(j <= i for j in found) / (real.index(i) + 1) for i in asked)
                    got = [float(v[row]) for v in column(scores, layer, head, "sink_mass", kind)]
                    assert got == pytest.approx([mass, len(asked), flat, len(asked)], abs=1e-4)
                    sort = image if kind == "visual" else [j for j in real if j not in image]
                    others = [j for j in sort if j not in found]
                    group = head // 3
                    for measure, vectors in (("value", values), ("key", keys)):
                        where = slice(10 * group, 10 * group + 10)
                        size = vectors[layer][row][:, where].norm(dim=-1).tolist()
                        expected = [
                            sum(size[j] for j in some) / len(some) for some in (found, others)
                        ]
                        parts = column(scores, layer, head, f"sink_{measure}_norm", kind)
                        got = [float(v[row]) for v in parts]
                        assert got[:2] == pytest.approx(expected, rel=1e-4)
                        assert got[3] == pytest.approx(got[1])
                        low, high = min(size[j] for j in others), max(size[j] for j in others)
                        assert low - 1e-4 <= got[2] <= high + 1e-4
                    compared += 1
                if not sinks_of["visual"]:
                    continue
                for which, rows in (("", weights), ("null", None)):
                    ratio, centric = 0.0, 0
                    for i in asked:
                        flat_row = [1 / (real.index(i) + 1)] * width
                        at = flat_row if rows is None else rows[i]
                        seen_mass = sum(at[j] for j in image)
                        plain = sum(at[j] for j in image if j not in sinks_of["visual"])
                        ratio += plain / seen_mass
                        centric += seen_mass >= 0.2 and plain / seen_mass >= 0.5
                    start = 2 if which else 0
                    for measure, value in (("non_sink_ratio", ratio), ("image_centric", centric)):
                        parts = column(scores, layer, head, measure)
                        got = [float(v[row]) for v in parts[start : start + 2]]
                        assert got == pytest.approx([value, len(asked)], abs=1e-4)
    assert compared > 40


def test_the_planted_sinks_are_found_with_their_heads(scenes: Any) -> None:
    _, study, tally, _ = scenes
    assert study.dimensions.dimensions == (41, 97) and study.section == "vision"
    heads = tally.heads("scenes", {"vision": 3, "language": 4}).frame
    heads = heads[heads["tower"] == "language"]
    for kind in ("text", "visual"):
        mass = heads[(heads["measure"] == "sink_mass") & (heads["variant"] == kind)]
        above = mass[mass["ci_low"] > mass["null_high"]]
        assert {f"L{l}H{h}" for l, h in zip(above["layer"], above["head"])} == PLANTED  # noqa: E741, B905
        assert len(mass) == 32 and (mass["n"] == 12).all()
    value = heads[(heads["measure"] == "sink_value_norm") & (heads["variant"] == "text")]
    assert (value["value"] < 0.01).all() and value["null_high"].between(0.8, 2).all()
    assert set(heads["measure"]) == set(MEASURES)


def test_the_table_of_sink_tokens(scenes: Any) -> None:
    tokens = scenes[3]["sink_tokens"]
    language = tokens[tokens["tower"] == "language"]
    for layer in range(5):
        here = language[language["layer"] == layer].set_index("position")
        assert sorted(here.index) == [0, 8, 33], "one more depth is where the last block ends"
        assert here["role"].tolist() == ["bos", "image", "image"]
        assert here["kind"].tolist() == ["text", "visual", "visual"]
        assert (here.loc[8, "row"], here.loc[8, "column"]) == (0, 5)
        assert (here.loc[33, "row"], here.loc[33, "column"]) == (5, 0)
        assert here.loc[0, "token"] == "<bos>"
        assert (here["share"] == 1).all() and (here["n"] == 12).all()
        assert here["score"].between(10, 11.67).all()
        assert here["received"].isna().all() == (layer == 4)
    strong = language[(language["layer"] == 2) & (language["position"] == 0)].iloc[0]
    assert strong["received_low"] > 4 * strong["received_null"]


def test_the_tables_of_massive_activations(scenes: Any) -> None:
    massive = scenes[3]["massive"].set_index(["tower", "layer"])
    assert len(massive) == 4 + 5
    for layer in range(5):
        line = massive.loc[("language", layer)]
        assert line["largest"] == pytest.approx(400, abs=0.01)
        assert (line["dimension"], line["position"], line["role"]) == (41, 0, "bos")
        assert line["ratio_low"] > 300 > 20 * line["ratio_null"] and line["robust_z"] > 250
        assert line["share"] == 1 and line["n"] == 12
        assert line["largest"] > line["second"] > line["third"] > 200
    assert (massive.loc["vision"]["ratio"] < 20).all()
    entries = scenes[3]["massive_entries"]
    found = entries[(entries["tower"] == "language") & (entries["layer"] == 2)]
    assert {(d, p) for d, p in zip(found["dimension"], found["position"], strict=True)} == {
        (41, 0), (97, 8), (97, 33),
    }  # fmt: skip
    assert found["share"].tolist() == [1, 1, 1]
    assert scenes[3]["sink_dimensions"]["dimension"][:2].tolist() == [41, 97]


def test_patch_norms_against_loops(scenes: Any) -> None:
    subject, _, _, tables = scenes
    examples = list(read_examples("scenes", subject.kind, 12))
    batch = subject.prepare(examples=examples)
    model: Any = subject.model
    with torch.no_grad():
        states = model.model.vision_tower(
            batch.tensors["pixel_values"], output_hidden_states=True
        ).hidden_states
    lines = tables["patch_norms"].set_index(["layer", "role"])
    assert sorted({layer for layer, _ in lines.index}) == [2, 3], "the last third of 3 layers"
    for layer in (2, 3):
        norms = states[layer].norm(dim=-1)
        shares, medians = [], []
        for image in norms[:, 1:]:
            ordered = sorted(image.tolist())
            median = (ordered[17] + ordered[18]) / 2
            far = sorted(abs(v - median) for v in ordered)
            shares.append(sum(v > median + 6 * (far[17] + far[18]) / 2 for v in ordered) / 36)
            medians.append(median)
        line = lines.loc[(layer, "image")]
        assert line["artefacts"] == pytest.approx(sum(shares) / 12)
        assert line["norm"] == pytest.approx(sum(medians) / 12, rel=1e-4)
        assert lines.loc[(layer, "cls"), "norm"] == pytest.approx(
            float(norms[:, 0].mean()), rel=1e-4
        )


def test_artefacts_planted_in_a_vision_transformer() -> None:
    """Two patches get a large norm in the third of three layers; a register is no patch."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, image_size=25, patch_size=5,
        num_register_tokens=2, num_labels=3, intermediate_size=20,
    )  # fmt: skip
    model = Dinov2WithRegistersForImageClassification(config).eval()
    subject = Subject(model, tiny.image_processor(25))
    draw = torch.Generator().manual_seed(1)
    batch = subject.prepare(pixel_values=torch.randn(4, 3, 25, 25, generator=draw))

    def write(module: Any, args: tuple, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states[:, [3 + 7, 3 + 19]] *= 9.0
        return output

    handle = next(
        module for name, module in model.named_modules() if name.endswith("layer.1")
    ).register_forward_hook(write)
    try:
        study = sinks(StudyOptions())
        study.begin(subject, lambda: [batch])
        scores = study.score(subject, batch)
        tables = study.finish(subject, lambda: [batch], Tally())
    finally:
        handle.remove()
    assert study.dimensions is None
    tokens = tables["sink_tokens"]
    at_last = tokens[(tokens["layer"] == 2) & (tokens["share"] == 1)]
    assert set(zip(at_last["row"], at_last["column"], strict=True)) == {(1, 2), (3, 4)}
    assert (at_last["kind"] == "artefact").all() and (at_last["score"] > 5).all()
    assert {"image", "cls", "register"} == set(tables["patch_norms"]["role"])
    assert {c.measure for c in scores.columns} == set(MEASURES[:3])
    assert {c.layer for c in scores.columns} == {2} and {c.variant for c in scores.columns} == {
        "artefact"
    }


def test_without_sinks_it_says_why() -> None:
    heads = hs.score(load("shapes-llava"), "scenes", ["sinks"], limit=6)
    assert "language" not in set(heads.frame["tower"])
    _, _, tally, tables = run("repeat-lm", "repeats", 5)
    reasons = {entry["measure"]: entry["reason"] for entry in tally.not_measured}
    assert set(reasons) == set(MEASURES)
    assert reasons["sink_mass"] == (
        "no dimension of language is massive at a sink, so no token is one."
    )
    assert len(tables["sink_tokens"]) == 0 and len(tables["patch_norms"]) == 0
    assert tables["massive"]["layer"].tolist() == [0, 1, 2]


def test_text_sinks_of_a_language_model() -> None:
    subject = Subject(tiny.sharp(tiny.llama(num_hidden_layers=4)), tiny.tokenizer("left"))
    subject.model.model.embed_tokens.weight.data[1, 7] = 60.0
    count = hooks(subject.model)
    batch = subject.prepare(input_ids=IDS, attention_mask=LEFT)
    plain = subject.forward(batch).logits
    study = sinks(StudyOptions())
    study.begin(subject, lambda: [batch])
    scores = study.score(subject, batch)
    assert study.dimensions is not None and study.dimensions.dimensions == (7,)
    assert {c.variant for c in scores.columns} == {"text"}
    assert {c.measure for c in scores.columns} == set(MEASURES[:3])
    assert (scores.denominator[0] == 0).all(), "the first prompt does not begin with <s>"
    mass = [i for i, c in enumerate(scores.columns) if c.measure == "sink_mass"]
    assert (scores.denominator[1, mass] == 6).all(), "every query but the first"
    assert ("language", "image_centric") in scores.reasons
    assert hooks(subject.model) == count and torch.equal(subject.forward(batch).logits, plain)
    tables = study.finish(subject, lambda: [batch], Tally())
    entries = tables["massive_entries"]
    line = entries[(entries["layer"] == 1) & (entries["dimension"] == 7)].iloc[0]
    assert (line["position"], line["share"], line["n"]) == (0, 0.5, 1)


def test_batches_and_padding_change_nothing() -> None:
    subject = load("shapes-llava-sinks")
    examples = list(read_examples("scenes", subject.kind, 5))
    found = []
    for size in (1, 5):
        study = sinks(StudyOptions())

        def given(size: int = size) -> Any:
            return batches(subject, examples, size, lambda example, reason: None)

        study.begin(subject, given)
        tally = Tally()
        for batch in given():
            tally.add(study.score(subject, batch))
        found.append(tally.heads().frame)
    left, right = (f.sort_values(["tower", "layer", "head", "measure", "variant"]) for f in found)
    for name in ("value", "ci_low", "null_low", "n"):
        torch.testing.assert_close(
            torch.tensor(left[name].to_numpy()), torch.tensor(right[name].to_numpy()),
            rtol=1e-4, atol=1e-5, equal_nan=True,
        )  # fmt: skip


def test_its_passes_over_the_data_are_stages() -> None:
    subject = seen.seeing()
    batch = seen.three(subject)
    told: list[tuple[str, int, int | None, bool]] = []
    study = sinks(StudyOptions())
    tell_progress(study, Progress(lambda s: told.append((s.name, s.done, s.total, s.ended)), 3))
    study.begin(subject, lambda: [batch])
    study.finish(subject, lambda: [batch], Tally())
    steps = [(0, False), (3, False), (3, True)]
    expected = [("sinks: dimensions", done, None, ended) for done, ended in steps]
    assert told == expected + [("sinks: tables", done, 3, ended) for done, ended in steps]


def test_queries_that_cannot_read_the_image_have_no_share_of_it() -> None:
    """As behind a window that ends before the image: one of two queries reads it."""
    found = torch.tensor([[True, False, False, False]])
    image = torch.tensor([[True, True, False, False]])
    pattern = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.1, 0.3, 0.6, 0], [0, 0, 0.2, 0.8]])
    allowed = pattern[None, None] > 0
    example = torch.zeros(1, 4, dtype=torch.long)
    behind = torch.tensor([[False, False, True, True]])
    keys = SinkKeys({"visual": found}, {"visual": image & ~found}, image, example,
                    example.masked_fill(~behind, -1), behind)  # fmt: skip
    call = whole_call(pattern[None, None])
    call.mask = AttentionMask(4, 4, tensor=allowed)
    columns = HeadColumns(
        cast("Batch", SimpleNamespace(size=1, examples=[SimpleNamespace(id="e")]))
    )
    columns.score(call, keys)
    scores = columns.scores({})
    ratio, centric = (column(scores, 0, 0, name) for name in ("non_sink_ratio", "image_centric"))
    assert [float(part) for part in ratio] == pytest.approx([0.75, 1, 0.5, 1])
    assert [float(part) for part in centric] == [1, 1, 1, 1]
