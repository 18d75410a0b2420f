"""The experiment on hallucination: fresh scenes, the rule for prior heads, comparisons, tables."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import headscope as hs


def test_fresh_scenes_are_none_of_those_that_are_judged(bench: Any) -> None:
    from PIL import Image

    from probes.readers import read_examples

    scenes = bench("fresh_scenes").fresh_scenes(3, 2)
    assert len(scenes) == 12 * 5 == len({scene.id for scene in scenes})
    for scene in scenes:
        known = scene.extra
        assert known["cue"] in scene.objects and known["other"] not in scene.objects
        assert (known["partner"] in scene.objects) == known["partner_present"]
        assert all(f"a {kind}" in known["caption"] for kind in scene.objects)
    cues = [scene.extra["cue"] for scene in scenes]
    assert {cues.count(cue) for cue in cues} == {5}
    judged = {
        np.asarray(Image.open(example.image)).tobytes()
        for example in read_examples("scenes-broken", "vision-language", None)
    }
    assert not judged & {np.asarray(scene.image).tobytes() for scene in scenes}


class Planted:
    """A describer of whose four heads two carry the prior, one hides it, one breaks everything.

    Log-odds are made so that what each rule of the search sees is known by hand.
    """

    gone: tuple[str, ...] = ()
    towers = SimpleNamespace()

    def __init__(self) -> None:
        site = SimpleNamespace(tower="language", layer=0)
        self.layout = SimpleNamespace(sites=[SimpleNamespace(site=site, heads=4)])

    @contextmanager
    def edit(self, subject: Any, made: Any) -> Any:
        heads = made.heads if isinstance(made.heads, (list, tuple)) else [made.heads]
        self.gone = tuple(str(head)[-2:] for head in heads)
        yield
        self.gone = ()

    def readings(self, subject: Any, scenes: Any, wanted: Any = ()) -> dict[str, np.ndarray]:
        left = {
            frozenset(): 0.5,
            frozenset({"H0"}): 0.1,  # the first prior head
            frozenset({"H1"}): 0.3,  # the second one
            frozenset({"H0", "H1"}): 0.06,  # takes less than a tenth of .5 beside the first
            frozenset({"H2"}): 0.6,
            frozenset({"H3"}): 0.2,
        }[frozenset(self.gone)]
        dice = np.random.default_rng(1)
        noise = dice.normal(0, 0.01, len(scenes))
        absent = np.array([not scene.extra["partner_present"] for scene in scenes])
        broken = "H3" in self.gone
        return {
            "partner": np.where(absent, np.log(left) + noise, np.nan),
            # Without head 3 every word is as much less probable: it carries no prior.
            "other": np.where(absent, np.log(0.01) + np.log(0.4) * broken + noise, np.nan),
            "present": np.where(absent, np.nan, np.log(0.9) + noise),
            "caption": -0.3 + noise,
        }


@pytest.fixture
def planted(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    prior, model = bench("prior_heads"), Planted()
    monkeypatch.setattr(prior, "readings", model.readings)
    monkeypatch.setattr(prior, "mean_z", lambda *_: {})
    monkeypatch.setattr(hs, "edit", model.edit)
    scenes = [
        SimpleNamespace(id=f"s{number}", extra={"partner_present": number % 5 == 0})
        for number in range(60)
    ]
    return prior.search(model, scenes)


def test_heads_that_weaken_every_word_carry_no_prior(planted: Any) -> None:
    assert planted["carrying"] == ["language.L0H0", "language.L0H1"]
    assert planted["level"] == 1 - 0.05 / 4
    assert (planted["scenes"], planted["absent"]) == (60, 48)
    broken = planted["effects"][3]["zero"]
    assert broken["probability"]["strict_low"] > 0 > broken["beyond_null"]["strict_high"] - 0.1
    first = planted["effects"][0]["zero"]
    assert first["nats"]["value"] == pytest.approx(np.log(5), abs=1e-6)
    assert first["null"]["value"] == pytest.approx(0, abs=1e-6)


def test_prior_heads_are_taken_while_each_takes_a_tenth(planted: Any) -> None:
    assert [step["head"] for step in planted["chosen"]] == planted["carrying"]
    assert planted["prior"] == ["language.L0H0"]


def rows_and_sheets(bench: Any) -> tuple[Any, Any, Any]:
    from analysis.hallucination.sheet import Sheet

    conditions, judged = bench("hallucination_conditions"), bench("judged")
    rows = [
        conditions.Row("M", {"M": 0}, "method"),
        conditions.Row("M: matched", {"M 0": 0, "M 1": 0}, "matched", "M"),
    ]
    wrong = {"baseline": 8, "M": 2, "M 0": 5, "M 1": 3}
    sheets = {
        name: Sheet.of({f"e{n}": {("chair_s", ""): (float(n < count), 1.0)} for n in range(10)})
        for name, count in wrong.items()
    }
    return judged, rows, sheets


def test_draws_of_a_control_are_pooled_and_compared_within_images(bench: Any) -> None:
    judged, rows, sheets = rows_and_sheets(bench)
    touched = {"M": 7, "M 0": 1, "M 1": 1}
    found = judged._compared(rows, sheets, touched, ("chair_s",))
    assert (found["comparisons"], found["level"]) == (2, 1 - 0.05 / 2)
    base, method, control = found["rows"]
    assert base["metrics"]["chair_s"]["value"][0] == 0.8
    assert method["metrics"]["chair_s"]["difference"][0] == pytest.approx(-0.6)
    assert control["metrics"]["chair_s"]["value"][0] == pytest.approx(0.4)
    assert [draw["chair_s"] for draw in control["draws"]] == [0.5, 0.3]
    value, low, high, strict_low, strict_high = control["method_minus"]["chair_s"]
    assert value == pytest.approx(-0.2)
    assert strict_low <= low < value < high <= strict_high


def test_tables_are_replaced_between_markers_and_nothing_else(bench: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "Before.\n<!-- table: words -->\nold\n<!-- end of table -->\nBetween, with old numbers.\n"
        "<!-- table: heads -->\nkept\n<!-- end of table -->\nAfter.\n"
    )
    line = {"compared": "mentions", "measure": "t_vhd", "hallucinated": 20.0, "true": 26.04}
    line |= {"difference": -6.04, "difference_low": -8.0, "difference_high": -4.0}
    line |= {"lower": 0.8, "lower_low": 0.7, "lower_high": 0.9, "n_hallucinated": 3, "n_true": 5}
    write = bench("hallucination_page").write_tables
    for _ in range(2):
        write({"words": {"lines": [line, line | {"measure": "t_vhd_top1"}]}}, page)
        text = page.read_text()
        row = "| all true ones | 20.0 | 26.0 | −6.0 [−8.0, −4.0] | 80% [70%, 90%] | 3, 5 |"
        assert text.count(row) == 1 and "\nold\n" not in text
        assert text.startswith("Before.\n<!-- table: words -->\n|")
        assert "Between, with old numbers.\n<!-- table: heads -->\nkept\n" in text
        assert text.endswith("<!-- end of table -->\nAfter.\n")


def test_stars_and_idle_methods(bench: Any) -> None:
    page = bench("hallucination_page")
    assert page._difference([-0.5, -0.6, -0.4, -0.7, -0.3]) == "−0.500 [−0.600, −0.400]\\*\\*"
    assert page._difference([-0.5, -0.6, -0.4, -0.7, 0.1]) == "−0.500 [−0.600, −0.400]\\*"
    assert page._difference([0.5, -0.6, 0.9, -0.7, 1.1]) == "+0.500 [−0.600, +0.900]"
    rows = [
        {"name": "baseline", "role": "baseline"},
        {"name": "A", "role": "method", "of": "", "touched": 0},
        {"name": "A: random", "role": "matched", "of": "A", "touched": 0},
        {"name": "B", "role": "method", "of": "", "touched": 4},
        {"name": "B: random", "role": "matched", "of": "B", "touched": 4},
    ]
    assert [row["name"] for row in page._worth(rows)] == ["baseline", "A", "B", "B: random"]


def test_few_scenes_are_judged_for_real(bench: Any, tmp_path: Path) -> None:
    conditions = bench("hallucination_conditions")
    subject = hs.load("shapes-llava")
    rows = [
        conditions.Row("head off", {"head off": hs.edits.zero("language.L0H2")}, "method"),
        *conditions.rows_on_sinks(1)[:1],
    ]
    found = bench("judged").judged(subject, rows, 3, tmp_path / "work", lambda line: None)
    assert found["images"] == 3
    base, off, idle = found["rows"]
    assert off["touched"] > 0 == idle["touched"]
    assert off["metrics"]["absent_partner_probability"]["difference"][0] < -0.1
    for metric, line in idle["metrics"].items():
        np.testing.assert_equal(line["value"], base["metrics"][metric]["value"])
