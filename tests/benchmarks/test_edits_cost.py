"""The benchmark of edits: two generations token by token in turn, and what the page says."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

MACHINE = {"date": "2026-01-02", "system": "Linux", "processor": "x", "cores": 2, "memory": 8}
MACHINE |= {"load": 0.1, "python": "3.11", "versions": {}, "peers": {}}
SETTINGS = {"grid": 5, "threads": 1, "dtype": "float32", "toy": True}


def writing(name: str, tokens: int, seen: list[str], fail_at: int = -1) -> Any:
    """Stands for a generation: calls the criterion after every token."""
    import torch

    def run(criterion: Any) -> None:
        for token in range(tokens):
            seen.append(f"{name}{token}")
            if token == fail_at:
                raise KeyError(name)
            assert not bool(criterion(torch.zeros(2, 3), None).any())

    return run


def test_generations_take_turns_token_by_token(bench: Any) -> None:
    seen: list[str] = []
    steps = bench("lockstep").lockstep(writing("a", 3, seen), writing("b", 3, seen))
    assert seen == ["a0", "b0", "a1", "b1", "a2", "b2"]
    assert [set(step) for step in steps] == [{"plain", "plain_cpu", "seconds", "seconds_cpu"}] * 3
    assert all(step["plain"] >= 0 and step["seconds"] >= 0 for step in steps)


@pytest.mark.parametrize(("first", "second"), [(1, -1), (-1, 0), (2, 2)])
def test_a_failure_of_either_is_raised_and_nobody_waits_for_ever(
    bench: Any, first: int, second: int
) -> None:
    before = threading.active_count()
    runs = writing("a", 3, [], first), writing("b", 3, [], second)
    with pytest.raises(KeyError):
        bench("lockstep").lockstep(*runs)
    assert threading.active_count() == before


def test_an_edit_acts_in_its_own_thread_only(bench: Any) -> None:
    """What is compared with the plain generation is the edited one, and the plain one is plain."""
    import headscope as hs

    llava = bench("random_llava")
    subject = llava.random_llava(5, toy=True)
    batch = llava.prompts(subject, 2, 5)
    louder = hs.edits.scale("language.*", -300.0)
    alone = subject.generate(batch, 4).ids.tolist()
    with hs.edit(subject, louder):
        edited = subject.generate(batch, 4).ids.tolist()
    assert alone != edited
    written: dict[str, Any] = {}

    def plain(criterion: Any) -> None:
        written["plain"] = subject.generate(batch, 4, stopping_criteria=[criterion]).ids.tolist()

    def other(criterion: Any) -> None:
        with hs.edit(subject, louder):
            made = subject.generate(batch, 4, stopping_criteria=[criterion])
        written["other"] = made.ids.tolist()

    assert len(bench("lockstep").lockstep(plain, other)) == 4
    assert written == {"plain": alone, "other": edited}


@pytest.mark.parametrize("name", ["vhr", "var", "act", "paint", "gift", "modulation"])
@pytest.mark.parametrize("rows", [1, 2])
def test_methods_have_work_to_do_in_the_random_model(bench: Any, name: str, rows: int) -> None:
    cost = bench("edit_cost")
    found = cost.measure(name, rows=rows, grid=5, tokens=3, turns=1, threads=1, toy=True)
    assert found["touched"] > 0
    assert [len(turn) for turn in found["turns"]] == [3]


def test_the_random_model_is_the_same_every_time_and_never_ends(bench: Any) -> None:
    import torch

    llava = bench("random_llava")
    state = torch.random.get_rng_state()
    first, again = (llava.random_llava(5, toy=True) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    pairs = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    batch = llava.prompts(first, 3, 5, answered=4)
    assert int(batch.tokens["language"].has_role("image").sum()) == 3 * 25
    assert len(set(batch.answer_starts)) == 1 and batch.answer_starts[0] > 0
    assert first.generate(llava.prompts(first, 1, 5), 9).ids.shape == (1, 9)


def test_the_script_keeps_parts_that_were_measured_alike(bench: Any, tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    vhd = {"part": "vhd", "how": "delete", "rows": 3, "failed": "RuntimeError: kept"}
    machine = bench("machine").describe("cpu") | {"date": "2026-01-02"}
    known = {"page": "edits", "machine": machine, "settings": SETTINGS, "entries": [vhd]}
    (folder / "edits-cpu.json").write_text(json.dumps(known))
    asked = "--toy --parts edits --names scale --turns 1 --threads 1"
    assert bench("edits").main([*asked.split(), "--out", str(tmp_path)]) == 1  # of what was kept
    entries = json.loads((folder / "edits-cpu.json").read_text())["entries"]
    assert [entry["part"] for entry in entries] == ["vhd", "edits"]
    page = (tmp_path / "README.md").read_text()
    assert "not run: RuntimeError: kept" in page and "Measured earlier: `vhd` 2026-01-02." in page
    assert "| `scale` of half of the heads of every layer |" in page


def test_the_page_takes_medians_over_tokens_and_says_what_was_reached(bench: Any) -> None:
    def step(plain: float, seconds: float) -> dict[str, float]:
        return {
            "plain": plain,
            "seconds": seconds,
            "plain_cpu": plain,
            "seconds_cpu": 2 * seconds,
        }

    turns = [
        [step(1.0, 3.0), step(0.010, 0.011), step(0.010, 0.012)],
        [step(1.0, 5.0), step(0.020, 0.026), step(0.020, 0.024)],
    ]
    entry = {"part": "edits", "name": "vhr", "rows": 1, "label": "VHR", "reach": 1.1}
    entry |= {"tokens": 3, "prompt": 43, "turns": turns, "reports": ["x"], "touched": 1234}
    vhd = {"part": "vhd", "how": "blank", "rows": 3, "prompt": 62, "reach": 2.3}
    vhd |= {"turns": [step(2.0, 4.0), step(2.0, 4.4), step(2.0, 4.2)]}
    result = {"page": "edits", "machine": MACHINE, "settings": SETTINGS, "entries": [entry, vhd]}
    page = bench("report").page_of([result, {"page": "hallucination"}])
    cells = "| VHR | 15.0 | 1.20 (1.17 to 1.22) | 2.40 | 1.10, missed | 4.00 | 1,234 |"
    assert cells in page
    assert "| blank | 2 | 4.2 | 2.10 (2.05 to 2.15) | 4.20 | 2.30, met |" in page
