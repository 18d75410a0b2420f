"""Evaluation end to end: planted captions, the bundled world's numbers, resumption, refusals."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from PIL import Image

import headscope as hs
from analysis.hallucination.vocabulary import Vocabulary
from analysis.run_folder import RunError
from headscope.evaluating import answering
from headscope.evaluating.evaluation_folder import EvaluationFolder
from headscope.evaluating.result import open_evaluation
from headscope.evaluation import evaluate
from headscope.plan import AskedWrongly
from probes.generation import Generated
from probes.inputs import Example
from probes.loading import load
from probes.readers import read_examples
from probes.subject import Subject

DATA = Path(__file__).resolve().parents[2] / "data"
ZERO = "zero:heads=language.L0H1+language.L0H2"
TIMES = ("time_per_token", "time_to_first_token")


@pytest.fixture(scope="module")
def llava():
    return load("shapes-llava")


@pytest.fixture(scope="module")
def broken():
    return list(read_examples("scenes-broken"))


def pixels(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (48, 48, 3), dtype=np.uint8)


def line(found, metric, edit="baseline", split="", kind=None, seed=-1):
    frame = found.frame
    kind = kind or ("baseline" if edit == "baseline" else "edit")
    chosen = (frame["metric"] == metric) & (frame["edit"] == edit) & (frame["split"] == split)
    chosen &= (frame["kind"] == kind) & (frame["seed"] == seed)
    (one,) = frame[chosen].to_dict("records")
    return one


def values(found):
    """All numbers but times, which no two runs share."""
    frame = found.frame[~found.frame["metric"].isin(TIMES)].reset_index(drop=True)
    return frame


@pytest.fixture
def speaks(monkeypatch):
    """Makes a subject say planted texts, by example, with and without an edit."""

    def plant(plain, edited=None):
        def generate(self, batch, max_new_tokens=32, stopping_criteria=(), **_):
            from probes.listening import tap_of

            said = edited if edited is not None and tap_of(self).attached else plain
            self.forward(batch)  # so that edits fire
            texts = tuple(said[example.id] for example in batch.examples)
            ids = torch.full((len(texts), 3), 5)
            ids[:, -1] = 2  # the end token
            for criterion in stopping_criteria:
                criterion(ids, None)
            return Generated(ids, texts, ids)

        monkeypatch.setattr(Subject, "generate", generate)

    return plant


def test_planted_captions_give_the_table_by_hand(llava, speaks):
    examples = [
        Example("p", image=pixels(1), objects=("red circle",), question="describe"),
        Example("q", image=pixels(2), objects=("blue star", "red ring"), question="describe"),
        Example("r", image=pixels(3), objects=("red ring",), question="describe"),
    ]
    speaks(
        {"p": "a red circle and a blue star", "q": "a blue star a blue star", "r": "nothing"},
        {"p": "a red circle", "q": "a blue star , a red ring", "r": "red circles"},
    )
    found = evaluate(llava, examples, "chair", [ZERO], controls=0, batch_size=2)
    # Plain: mentions 2, 2, 0; not there 1, 0, 0; of 1, 2, 1 things named 1, 1, 0.
    assert line(found, "chair_i")["value"] == pytest.approx(1 / 4)
    assert line(found, "chair_s")["value"] == pytest.approx(1 / 3)
    assert line(found, "recall")["value"] == pytest.approx(2 / 4)
    assert line(found, "words")["value"] == pytest.approx((7 + 6 + 1) / 3)
    assert line(found, "unfinished")["value"] == 0
    assert line(found, "chair_s")["n"] == 3
    # Edited: mentions 1, 2, 1; not there 0, 0, 1; named 1, 2, 0.
    edited = line(found, "chair_i", ZERO)
    assert edited["value"] == pytest.approx(1 / 4)
    assert edited["difference"] == pytest.approx(0)
    assert line(found, "recall", ZERO)["difference"] == pytest.approx(3 / 4 - 2 / 4)
    said = found.answers.set_index(["edit", "id"])
    assert list(said.loc[("baseline", "p"), "hallucinated"]) == ["blue star"]
    assert list(said.loc[(ZERO, "r"), "hallucinated"]) == ["red circle"]


def test_synonyms_references_and_distinct(llava, speaks):
    words = Vocabulary({"ring": ("hoop",), "disc": ("circle",), "star": ()})
    examples = [
        Example("p", image=pixels(1), objects=("hoop", "zebra"), question="describe"),
        Example(
            "q",
            image=pixels(2),
            objects=("ring",),
            question="describe",
            extra={"captions": ["there are circles too"]},
        ),
    ]
    speaks({"p": "a hoop, a circle and a circle", "q": "discs and a ring and a ring"})
    found = evaluate(llava, examples, vocabulary=words)
    assert line(found, "chair_i")["value"] == pytest.approx(2 / 6)
    assert list(found.notes) == [
        "1 of 3 names of objects in the data are not in the table of synonyms and count for "
        "nothing: zebra."
    ]
    once = evaluate(llava, examples, vocabulary=words, distinct=True)
    assert line(once, "chair_i")["value"] == pytest.approx(1 / 4)


def test_planted_answers_to_questions_of_the_users_own(llava, speaks, tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    asked = [
        ("1", "is there a red circle ?", "yes", "random"),
        ("2", "is there a red star ?", "no", "random"),
        ("3", "is there a blue star ?", "No.", "popular"),
        ("4", "is there a red ring ?", "Yes", "popular"),
    ]
    lines = [
        {"id": i, "image": "a.png", "question": q, "answer": a, "split": s} for i, q, a, s in asked
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in lines))
    speaks({"1": "Yes.", "2": "yes", "3": "no", "4": "maybe"})
    found = evaluate(llava, path, "pope")
    assert line(found, "accuracy", split="random")["value"] == 0.5
    assert line(found, "accuracy", split="popular")["value"] == 1
    assert line(found, "accuracy", split="mean")["value"] == 0.75
    assert line(found, "unclear", split="popular")["value"] == 0.5
    assert line(found, "accuracy", split="random")["n"] == 1  # one image, one cluster
    strict = evaluate(llava, path, "pope", strict_answers=True)
    assert line(strict, "accuracy", split="popular")["value"] == 0.5


def test_popes_own_files_work_as_they_are(llava, speaks, tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    lines = [
        {
            "question_id": 1,
            "image": "a.png",
            "text": "Is there a dog in the image?",
            "label": "yes",
        },
        {"question_id": 2, "image": "a.png", "text": "Is there a cow in the image?", "label": "no"},
    ]
    path = tmp_path / "coco_pope_random.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in lines))
    ids = [example.id for example in read_examples(path)]
    speaks(dict(zip(ids, ["Yes, there is.", "Yes."], strict=True)))
    found = evaluate(llava, path, "pope")
    assert line(found, "accuracy", split="given")["value"] == 0.5
    assert line(found, "precision", split="given")["value"] == 0.5
    assert line(found, "recall", split="given")["value"] == 1


def test_grouped_heads_and_prompts_of_different_lengths():
    subject = Subject(tiny_models.llava(), tiny_models.llava_processor(), name="tiny")
    questions = ["describe the image", "a cat sat on the mat . describe a mat ?", "the image"]
    examples = [
        Example(str(n), image=pixels(n), question=q, objects=("cat",))
        for n, q in enumerate(questions)
    ]
    how = {"max_new_tokens": 7, "edits": ["scale:heads=language.L1H3+language.L0,factor=3"]}
    one = evaluate(subject, examples, batch_size=1, **how)
    three = evaluate(subject, examples, batch_size=3, **how)
    keys = ["edit", "kind", "seed", "id"]
    left, right = (f.answers.sort_values(keys)["answer"].tolist() for f in (one, three))
    assert left == right
    assert len(set(left)) > 3


def test_splits_share_answers_and_partners_are_asked_for(llava, broken):
    found = evaluate(llava, broken, "pope", limit=6, batch_size=4, question="is there a {object} ?")
    asked = found.answers
    assert set(asked["split"]) == {"random", "popular", "adversarial", "partner"}
    yes = asked[asked["there"]]
    assert yes.groupby("id")["answer"].nunique().max() == 1
    assert found.images == 6  # asked in more batches than there are images
    counts = asked[asked["split"] != "partner"].groupby(["split", "there"]).size()
    assert counts.nunique() == 1
    assert "f1" not in set(found.frame[found.frame["split"] == "partner"]["metric"])
    three = [line(found, "f1", split=s)["value"] for s in ("random", "popular", "adversarial")]
    assert line(found, "f1", split="mean")["value"] == pytest.approx(np.mean(three))


@pytest.fixture
def recipes(monkeypatch):
    """The judge that the bundled world was measured with; it shares no code with ours."""
    monkeypatch.syspath_prepend(str(DATA / "recipes"))
    import caption_judge

    yield caption_judge
    for name in ("caption_judge", "scenes", "sets", "shelf"):
        sys.modules.pop(name, None)


def test_chair_agrees_with_the_recipe_on_its_own_captions(llava, broken, recipes):
    found = evaluate(
        llava,
        "scenes-broken",
        limit=30,
        batch_size=15,
        max_new_tokens=40,
        distinct=True,
    )
    captions = dict(zip(found.answers["id"], found.answers["answer"], strict=True))
    examples = [
        {
            "kinds": list(e.objects),
            "partner": e.extra["partner"],
            "present": e.extra["partner_present"],
        }
        for e in broken[:30]
    ]
    slow = recipes.chair(examples, [captions[e.id] for e in broken[:30]])
    assert slow.pop("absent_partner_named") == pytest.approx(line(found, "absent_partner")["value"])
    assert slow.pop("other_errors_per_mention") == pytest.approx(
        line(found, "other_errors")["value"]
    )
    for name, value in slow.items():
        assert line(found, name)["value"] == pytest.approx(value), name
    p = line(found, "absent_partner_probability")
    absent = [e for e in broken[:30] if not e.extra["partner_present"]]
    model, processor = llava.model, llava.processor
    with torch.no_grad():
        expected = [
            float(
                recipes.partner_probability(
                    model, processor, e.extra["cue"], [np.asarray(Image.open(e.image))]
                )
            )
            for e in absent
        ]
    assert p["n"] == len(absent)
    assert p["value"] == pytest.approx(np.mean(expected), abs=1e-5)


@pytest.mark.slow
def test_the_readmes_numbers_come_out(llava, broken, recipes, tmp_path):
    kept = json.loads((DATA / "models/shapes-llava/measured.json").read_text())
    measured = kept["seeds"][str(kept["shipped_seed"])]
    how = {"batch_size": 50, "max_new_tokens": 40, "distinct": True}
    found = evaluate(llava, "scenes-broken", **how)
    for ours, theirs in {
        "chair_s": "chair_s",
        "chair_i": "chair_i",
        "recall": "recall",
        "words": "words",
        "absent_partner": "absent_partner_named",
        "other_errors": "other_errors_per_mention",
        "absent_partner_probability": "partner_probability",
    }.items():
        assert line(found, ours)["value"] == pytest.approx(measured[theirs], abs=6e-4), ours
    path = tmp_path / "pope.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in _questions_of_the_readme(broken, recipes)))
    found = evaluate(llava, path, "pope", batch_size=50, max_new_tokens=1)
    for split in ("present", "random", "adversarial"):
        value = line(found, "accuracy", split=split)["value"]
        assert value == pytest.approx(measured[f"pope_{split}"], abs=6e-4), split


def _questions_of_the_readme(broken, recipes):
    """The draw of `caption_judge.pope`, over the scenes in the order in which they were made."""
    import scenes

    rng = np.random.default_rng(recipes.POPE_SEED)
    for example in sorted(broken, key=lambda e: e.id):
        kinds, partner = list(example.objects), example.extra["partner"]
        absent = [k for k in scenes.KINDS if k not in kinds and k != partner]
        asked = [("present", kinds[rng.integers(len(kinds))], "yes")]
        asked.append(("random", absent[rng.integers(len(absent))], "no"))
        if not example.extra["partner_present"]:
            asked.append(("adversarial", partner, "no"))
        for split, kind, answer in asked:
            yield {
                "id": f"{example.id} {split}",
                "image": str(example.image),
                "question": f"is there a {kind} ?",
                "answer": answer,
                "split": split,
            }


def test_batches_change_nothing(llava, tmp_path):
    Image.fromarray(pixels(4)).save(tmp_path / "a.png")
    questions = ["describe the scene", "is there a red circle ?", "is there a star", "a"]
    lines = [
        {"id": str(n), "image": "a.png", "question": q, "objects": ["red circle"]}
        for n, q in enumerate(questions)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in lines))
    how = {"max_new_tokens": 12, "edits": ["scale:heads=language.L1,factor=1.5"]}
    one = evaluate(llava, path, batch_size=1, **how)
    all_at_once = evaluate(llava, path, batch_size=4, **how)
    keys = ["edit", "kind", "seed", "id"]
    left, right = (f.answers.sort_values(keys)["answer"].tolist() for f in (one, all_at_once))
    assert left == right
    assert len(set(left)) > 2


FEW = {"limit": 10, "batch_size": 3, "max_new_tokens": 8, "edits": [ZERO], "controls": 2}


def _stop_after(monkeypatch, count, error):
    """Make the answering of batches raise after so many; gives the list of calls."""
    real, calls = answering._answer_batch, []

    def stopped(subject, batch, asking, done):
        if asking.max_new_tokens > 2:  # the trial does not count
            calls.append([example.id for example in batch.examples])
            if count is not None and len(calls) > count:
                raise error
        return real(subject, batch, asking, done)

    monkeypatch.setattr(answering, "_answer_batch", stopped)
    return calls


@pytest.fixture(scope="module")
def undisturbed(llava):
    return evaluate(llava, "scenes-broken", **FEW)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("cable pulled")])
def test_an_interrupted_evaluation_goes_on_to_the_same_table(
    llava, undisturbed, tmp_path, monkeypatch, error
):
    out = tmp_path / "run"
    _stop_after(monkeypatch, 7, error)
    with pytest.raises(type(error)):
        evaluate(llava, "scenes-broken", out=out, **FEW)
    with (out / "answers" / "01.jsonl").open("ab") as file:
        file.write(b'{"number": 9, "answ')  # what a power cut leaves of a line
    monkeypatch.undo()
    with pytest.raises(RunError, match="holds an unfinished evaluation. Add `--resume`"):
        evaluate(llava, "scenes-broken", out=out, **FEW)
    with pytest.raises(RunError, match="has another plan: .*max_new_tokens was 8, now 9"):
        evaluate(llava, "scenes-broken", out=out, resume=True, **FEW | {"max_new_tokens": 9})
    with pytest.raises(RunError, match="has another plan: conditions was"):
        evaluate(llava, "scenes-broken", out=out, resume=True, **FEW | {"edits": []})
    calls, seen = _stop_after(monkeypatch, None, None), []
    again = evaluate(
        llava,
        "scenes-broken",
        out=out,
        resume=True,
        progress=lambda *counts: seen.append(counts),
        **FEW,
    )
    assert len(calls) == 4 * 4 - 7  # four chunks under four conditions
    assert seen[0] == (21, 40, 0)
    assert seen[-1] == (40, 40, 0)
    pd.testing.assert_frame_equal(values(again), values(undisturbed))
    assert again.answers.equals(undisturbed.answers)
    assert [r["touched"] for r in again.reports] == [r["touched"] for r in undisturbed.reports]
    with pytest.raises(RunError, match="holds a finished evaluation"):
        evaluate(llava, "scenes-broken", out=out, resume=True, **FEW)
    opened = hs.open_evaluation(out)
    pd.testing.assert_frame_equal(opened.frame, again.frame)
    assert repr(opened) == repr(again)
    assert not list(out.rglob("*.part"))


def test_the_table_has_controls_and_differences(undisturbed):
    frame = undisturbed.frame
    kinds = frame[["edit", "kind", "seed"]].drop_duplicates().to_numpy().tolist()
    assert kinds == [
        ["baseline", "baseline", -1],
        [ZERO, "edit", -1],
        [ZERO, "control", 0],
        [ZERO, "control", 1],
        [ZERO, "control", -1],
    ]
    edit, base = line(undisturbed, "words", ZERO), line(undisturbed, "words")
    pooled = line(undisturbed, "words", ZERO, kind="control")
    drawn = [line(undisturbed, "words", ZERO, kind="control", seed=s)["value"] for s in (0, 1)]
    assert pooled["value"] == pytest.approx(np.mean(drawn))
    assert edit["difference"] == pytest.approx(edit["value"] - base["value"])
    assert edit["beyond_control"] == pytest.approx(edit["value"] - pooled["value"])
    assert edit["difference_ci_low"] <= edit["difference"] <= edit["difference_ci_high"]
    time = line(undisturbed, "time_per_token", ZERO)
    assert time["n"] == 4
    assert 0.1 < time["value"] < 10
    assert line(undisturbed, "time_per_token")["value"] == 1
    assert all(report["touched"] for report in undisturbed.reports)


def test_other_folders_are_left_alone(llava, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(RunError, match="holds something else \\(note.txt\\)"):
        evaluate(llava, "scenes-broken", out=tmp_path, limit=2)
    with pytest.raises(RunError, match="`--out` must be a folder"):
        evaluate(llava, "scenes-broken", out=tmp_path / "note.txt", limit=2)
    with pytest.raises(RunError, match="is not the folder of an evaluation"):
        hs.open_evaluation(tmp_path)


def test_what_a_killed_start_left_is_no_hindrance_and_goes(tmp_path):
    (tmp_path / ".plan.json.4711.part").write_text("{")
    with EvaluationFolder.begin(tmp_path, {"kind": "evaluation"}, resume=False):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["journal", "plan.json"]
    (tmp_path / ".answers.parquet.12.part").write_bytes(b"x")
    with EvaluationFolder.begin(tmp_path, {"kind": "evaluation"}, resume=True):
        assert not list(tmp_path.rglob("*.part"))


def test_no_trace_is_left(llava, broken, monkeypatch):
    batch = llava.prepare(examples=broken[:2])

    def state():
        hooks = sum(
            len(m._forward_pre_hooks) + len(m._forward_hooks) for m in llava.model.modules()
        )
        return llava.forward(batch).logits, hooks, llava.attention_implementation

    before = state()
    evaluate(llava, broken, edits=[ZERO], limit=2, max_new_tokens=4)
    _stop_after(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate(llava, broken, edits=[ZERO], limit=4, max_new_tokens=4)
    after = state()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_examples_that_cannot_be_used_are_set_aside(llava, tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image at all")
    lines = [
        {"id": "good", "image": "good.png", "objects": ["red star"], "question": "describe"},
        {"id": "bad", "image": "bad.png", "objects": ["red star"], "question": "describe"},
        {"id": "blind", "objects": ["red star"], "question": "describe"},
    ]
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in lines))
    found = evaluate(llava, path, max_new_tokens=3)
    assert {item["id"]: item["reason"].split(".")[0][:22] for item in found.skipped} == {
        "blind": "it has no image",
        "bad": "Image '" + str(tmp_path / "bad.png")[:15],
    }
    assert line(found, "chair_s")["n"] == 1
    with pytest.raises(ValueError, match="'bad' cannot be asked: Image .* does not decode"):
        evaluate(llava, path, max_new_tokens=3, strict=True)
    path.write_text(json.dumps(lines[1]))
    with pytest.raises(RunError, match="None of the 1 prompts could be asked; the first: Im"):
        evaluate(llava, path, max_new_tokens=3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"task": "chairs"}, "The task must be one of chair, pope, got 'chairs'"),
        ({"edits": ["vhrr"]}, "An edit must be one of"),
        ({"edits": [ZERO, ZERO]}, "must have a name of its own"),
        ({"edits": ["zero:heads=language.L9"]}, "zero:heads=language.L9: 'language.L9' must name"),
        ({"task": "pope", "question": "is it?"}, "must hold {object}"),
        ({"max_new_tokens": 5000}, "`--max-new-tokens` must be at most"),
        ({"limit": 0}, "`--limit` must be at least 1"),
        ({"controls": -1}, "`--control` must be at least 0"),
        ({"probe": ("a {cow}", "b")}, "A probe may hold names of text fields in braces, 'cow'"),
        ({"vocabulary": Vocabulary.of(["cow"])}, "it knows none of them \\(red circle"),
        ({"resume": True}, "`resume` needs `out`"),
    ],
)
def test_asked_wrongly(llava, settings, sentence):
    with pytest.raises(AskedWrongly, match=sentence):
        evaluate(llava, "scenes-broken", **{"limit": 3, **settings})


def test_other_parameters_of_an_edit_are_another_plan(llava, broken, tmp_path, monkeypatch):
    first = {"mine": hs.edits.scale("language.L0H1", 2.0)}
    how = {"out": tmp_path / "run", "limit": 4, "batch_size": 2, "max_new_tokens": 4}
    _stop_after(monkeypatch, 4, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate(llava, broken, edits=first, **how)
    monkeypatch.undo()
    for other in (hs.edits.scale("language.L0H1", 2.5), hs.edits.scale("language.L0H2", 2.0)):
        with pytest.raises(RunError, match="has another plan: conditions was"):
            evaluate(llava, broken, edits={"mine": other}, resume=True, **how)
    found = evaluate(llava, broken, edits=first, resume=True, **how)
    assert set(found.frame["edit"]) == {"baseline", "mine"}


def test_data_that_say_too_little_are_refused(llava, broken):
    with pytest.raises(AskedWrongly, match=f"'{broken[0].id}' stands for several"):
        evaluate(llava, [broken[0], broken[1], broken[0]])
    blind = [replace(example, image=None) for example in broken[:3]]
    with pytest.raises(AskedWrongly, match="None of the 3 examples has an image"):
        evaluate(llava, blind)
    for task in ("chair", "pope"):
        with pytest.raises(AskedWrongly, match="What is in the images must be known"):
            evaluate(llava, [replace(example, objects=()) for example in broken[:3]], task)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("repeat-lm", "'repeat-lm' is a language model; hallucinated objects are"),
        ("shapes-vit", "'shapes-vit' is a vision model; hallucinated objects are"),
    ],
)
def test_models_that_do_not_see_or_write_are_refused(model, sentence):
    with pytest.raises(AskedWrongly, match=sentence):
        evaluate(load(model), "scenes-broken")


def asked(*questions):
    return [
        Example(f"q{n}", image=pixels(n), objects=("red star",), question=question)
        for n, question in enumerate(questions)
    ]


def test_a_prompt_that_one_method_cannot_work_on_is_left_out_under_all(llava, tmp_path):
    examples = asked("is it ?", "describe the image .", "what is the shape ?", "is it ?", "color ?")
    how = {"edits": ["gift", ZERO], "controls": 0, "batch_size": 2, "max_new_tokens": 3}
    found = evaluate(llava, examples, out=tmp_path / "run", **how)
    assert {item["id"] for item in found.skipped} == {"q0", "q3"}
    assert found.skipped[0]["reason"].startswith("gift needs a word with content in the question")
    said = found.answers.groupby("edit", sort=False)["id"].apply(frozenset).to_dict()
    assert said == dict.fromkeys(["baseline", "gift", ZERO], frozenset(("q1", "q2", "q4")))
    assert set(found.frame.loc[found.frame["metric"] == "chair_s", "n"]) == {3}
    alone = evaluate(llava, [examples[n] for n in (1, 2, 4)], **how)
    texts = [one.answers.set_index(["edit", "id"])["answer"].to_dict() for one in (found, alone)]
    assert texts[0] == texts[1]
    with pytest.raises(ValueError, match="Example 'q[03]': gift needs a word with content"):
        evaluate(llava, examples, strict=True, **how)
    with pytest.raises(ValueError, match="'is it \\?' has none"):
        evaluate(llava, asked("is it ?"), **how)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_what_is_left_out_stays_so_after_an_interruption(llava, tmp_path, monkeypatch, count):
    examples = asked("describe the image .", "is it ?", "what is the shape ?")
    how = {"edits": [ZERO, "gift"], "controls": 0, "batch_size": 3, "max_new_tokens": 3}
    out = tmp_path / "run"
    _stop_after(monkeypatch, count, KeyboardInterrupt())
    try:
        evaluate(llava, examples, out=out, **how)
    except KeyboardInterrupt:
        monkeypatch.undo()
        found = evaluate(llava, examples, out=out, resume=(out / "answers").exists(), **how)
    else:
        found = open_evaluation(out)
    said = found.answers.groupby("edit", sort=False)["id"].apply(frozenset).to_dict()
    assert said == dict.fromkeys(["baseline", ZERO, "gift"], frozenset(("q0", "q2")))
    assert [item["id"] for item in found.skipped] == ["q1"]


def test_journals_agree_on_what_is_left_out(tmp_path):
    """A crash between two journals' lines."""
    from headscope.evaluating.answer_journal import Answer, AnswerJournal, Chunk, agreed

    both = tuple(Answer(name, "a", 1, True) for name in ("e0", "e1"))
    journals = {name: AnswerJournal(tmp_path / f"{name}.jsonl") for name in ("x", "y", "z")}
    for name in ("x", "y"):
        journals[name].add(Chunk(0, both))
    journals["y"].leave_out(0, {"id": "e1", "reason": "why"})
    assert (journals["y"].answered, journals["y"].left_out) == (1, 1)
    again = {name: AnswerJournal(tmp_path / f"{name}.jsonl") for name in journals}
    assert agreed(again, 0) == [{"id": "e1", "reason": "why"}]
    assert list(again["x"].answers) == list(again["y"].answers) == ["e0"]
    assert not again["z"].chunks
    lines = [(tmp_path / f"{name}.jsonl").read_bytes() for name in ("x", "y")]
    assert agreed(again, 0) == again["x"].skipped
    assert lines == [(tmp_path / f"{name}.jsonl").read_bytes() for name in ("x", "y")]


def test_images_of_which_nothing_is_told_are_set_aside(llava, speaks):
    """Else all that is named would count as made up, with a table of synonyms without a word."""
    known, silent = asked("describe", "describe")
    silent = replace(silent, objects=())
    told = replace(silent, id="q2", extra={"captions": ["a star"]})
    words = Vocabulary({"red star": ("star",)})
    speaks({"q0": "a star", "q1": "a star", "q2": "a star"})
    found = evaluate(llava, [known, silent, told], vocabulary=words)
    assert (line(found, "chair_s")["value"], line(found, "chair_s")["n"]) == (0, 2)
    reason = "it does not say what is in its image (`objects` or `captions`)"
    assert list(found.skipped) == [{"id": "q1", "reason": reason}]
    with pytest.raises(AskedWrongly, match="What is in the images must be known"):
        evaluate(llava, [silent], vocabulary=words)
