"""The benchmark of taking heads away: who is compared, what bounds them, and what the page says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

MACHINE = {"date": "2026-01-02", "system": "Linux", "processor": "x", "cores": 2, "memory": 8}
MACHINE |= {"load": 0.1, "python": "3.11", "versions": {}, "peers": {}}
SETTINGS = {"length": 29, "threads": 1, "dtype": "float32", "toy": True}


def test_the_script_measures_a_toy_and_keeps_what_others_wrote(bench: Any, tmp_path: Path) -> None:
    other = {"machine": MACHINE, "figures": []}
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "cpu.json").write_text(json.dumps(other))
    asked = "--toy --parts ablation --batches 3 --reads answer --threads 1 --turns 1 --length 29"
    assert bench("importance").main([*asked.split(), "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results" / "importance-cpu.json").read_text())
    (entry,) = results["entries"]
    assert (entry["part"], entry["rows"], entry["read"]) == ("ablation", 3, "answer")
    page = (tmp_path / "README.md").read_text()
    assert "\n## CPU, 2 cores\n" in page and "\n## Taking heads away: CPU" in page
    assert "| batch 3, loss at the answer position |" in page and "not run" not in page
    bench("report").write(tmp_path)
    assert (tmp_path / "README.md").read_text() == page


@pytest.mark.parametrize("read", ["tokens", "answer"])
def test_all_contenders_find_the_same(bench: Any, read: str) -> None:
    found = bench("leave_one_out").measure(
        read=read, rows=3, length=29, threads=1, turns=2, heads=3, copies=2, whole=True, toy=True
    )
    assert [sorted(turn["seconds"]) for turn in found["turns"]] == 2 * [["folded", "naive", "ours"]]
    for name in ("ours", "folded"):
        equal = found[f"{name}_equal"]
        assert equal["difference"] <= 1e-5 < 1e-4 < equal["largest"]
        assert equal["heads"] == 2 * 4  # three heads of four, and in the second turn the rest
    assert found["whole"]["runs"] == 2 * 5 and found["whole"]["difference"] <= 1e-5
    assert found["share_read"] == (1 / 29 if read == "answer" else 1)


def test_the_naive_loop_takes_away_what_it_says(bench: Any) -> None:
    """Against a model whose output projection has lost the head's weights, and another loss."""
    away = bench("taking_away")
    work = away.workload("tokens", 2, 23, "cpu", "float32", toy=True)
    naive = away.Naive(work)
    naive.start()
    naive.run(work.sites[1], [2])
    ids = work.batch.tensors["input_ids"]
    weight = work.subject.model.transformer.h[1].attn.c_proj.weight

    def loss() -> torch.Tensor:
        with torch.no_grad():
            logits = work.subject.model(input_ids=ids).logits[:, :-1]
        flat = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
        )
        return flat.reshape(2, 22).mean(1)

    intact = loss()
    with torch.no_grad():
        weight[2 * 12 : 3 * 12] = 0
    torch.testing.assert_close(naive.effects[1, 2], (loss() - intact).double(), rtol=0.0, atol=1e-6)
    assert float(naive.effects[1, 2].abs().min()) > 1e-5
    assert not work.subject.model.transformer.h[1].attn.c_proj._forward_pre_hooks


def test_the_bound_of_a_restart_by_hand(bench: Any) -> None:
    times = bench("block_times")
    pieces = times.Pieces(2.0, (3.0, 5.0, 7.0), (1.0, 2.0, 4.0), 11.0, 13.0)
    first = 2 + 15 + 24
    found = times.modelled(pieces, 5, share_read=0.25)
    assert found["naive"] == first + 5 * 3 * first
    assert found["restart"] == first + 5 * ((15 + 24) + (12 + 24) + (7 + 24))
    assert found["projection"] == first + 5 * ((1 + 12 + 24) + (2 + 7 + 24) + (4 + 24))
    assert found["rows"] == found["projection"] - 5 * 3 * 0.75 * 4
    twice = times.mean_pieces([pieces, replace(pieces, before=4.0, blocks=(3.0, 5.0, 9.0))])
    assert (twice.before, twice.blocks, twice.projected) == (3.0, (3.0, 5.0, 8.0), (1.0, 2.0, 4.0))


def test_pieces_add_up_and_leave_no_hooks(bench: Any) -> None:
    times = bench("block_times")
    work = bench("taking_away").workload("tokens", 1, 23, "cpu", "float32", toy=True)
    pieces = times.timed_pieces(work.subject, work.intact, lambda output: output.logits.sum())
    assert len(pieces.blocks) == len(pieces.projected) == 2
    assert all(0 < p < b for p, b in zip(pieces.projected, pieces.blocks, strict=True))
    assert pieces.before > 0 and pieces.after > 0 and pieces.metric > 0

    def failing() -> None:
        raise RuntimeError("the model fails")

    with pytest.raises(RuntimeError, match="the model fails"):
        times.timed_pieces(work.subject, failing, lambda output: None)
    hooks = [
        hook
        for module in work.subject.model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    assert not hooks


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize("contender", ["naive", "ours", "folded"])
def test_memory_is_that_of_one_contender(bench: Any, contender: str) -> None:
    found = bench("leave_one_out").measure(
        "memory", contender, rows=2, length=23, threads=1, turns=2, copies=2, toy=True
    )
    assert len(found["peaks"]) == 2
    assert all(run["peak"] >= run["rest"] > 0 for run in found["peaks"])


def test_attribution_is_timed_with_its_fixes(bench: Any) -> None:
    found = bench("attribution").measure(rows=2, length=23, threads=1, turns=2, toy=True)
    assert [sorted(turn) for turn in found["turns"]] == 2 * [
        ["cross_entropy", "cross_entropy_first_order", "few_logits", "logit", "plain"]
    ]
    curved = {name: found["columns"][name] for name in found["columns"]}
    assert ("atp_cross_entropy", "ablation=mean,curved") in curved.pop("cross_entropy")
    assert not [v for one in curved.values() for _, v in one if "curved" in v]
    measures = {measure for measure, _ in found["columns"]["logit"]}
    assert measures == {"atp_logit", "atp_query_logit", "atp_key_logit"}
    assert not found["reasons"]


def test_transformer_lens_finds_the_same(bench: Any) -> None:
    found = bench("peer_ablation").measure(rows=3, threads=1, turns=1)
    assert found["all_heads"] == 16 and found["tokens"][0] == 3
    assert max(found["differences"].values()) <= 1e-4 < 0.1 < found["largest"]
    assert found["effects"]["study"].keys() == found["effects"]["transformer_lens"].keys()


def test_each_part_is_planned_once_per_setting(bench: Any) -> None:
    importance = bench("importance")
    alone = list(importance.plan(importance.arguments([])))
    parts = [part for part, _, _ in alone]
    assert {part: parts.count(part) for part in importance.PARTS} == {
        "ablation": 4, "memory": 8, "atp": 4, "peers": 0,
    }  # fmt: skip
    given = ["--peers-python", "python", "--device", "cuda", "--dtype", "bfloat16"]
    on_gpu = list(importance.plan(importance.arguments(given)))
    assert [part for part, _, _ in on_gpu].count("peers") == 1
    assert {what.get("contender") for part, what, _ in on_gpu if part == "memory"} == {
        "naive", "ours", "folded",
    }  # fmt: skip
    assert {of_child["copies"] for part, _, of_child in on_gpu if part == "ablation"} == {12}


def test_each_run_begins_a_turn_in_its_turn(bench: Any) -> None:
    ran: list[str] = []
    runs = {name: lambda name=name: ran.append(name) for name in "abc"}
    turns = bench("measuring").Stopwatch().in_turn(runs, 2)
    assert "".join(ran) == "abc" + "abc" + "bca"
    assert [sorted(turn) for turn in turns] == [["a", "b", "c"]] * 2


def test_the_page_says_shares_of_the_bound_and_what_failed(bench: Any) -> None:
    turn = {
        "seconds": {"naive": 12.0, "ours": 6.0},
        "modelled": {"naive": 12.5, "restart": 5.0, "projection": 4.5, "rows": 5.0},
        "pieces": {
            "before": 0.001, "blocks": [0.004, 0.006], "projected": [0.002, 0.003],
            "after": 0.007, "metric": 0.002,
        },
    }  # fmt: skip
    equal = {"difference": 2e-7, "largest": 0.5, "heads": 3}
    done = {"part": "ablation", "rows": 7, "read": "tokens", "turns": [turn], "taken": 1}
    failed = {"part": "ablation", "rows": 1, "read": "answer", "failed": "MemoryError"}
    peer = {"part": "peers", "failed": "ModuleNotFoundError: transformer_lens"}
    peaks = [
        {"part": "memory", "rows": 7, "read": "tokens", "contender": name,
         "peaks": [{"peak": peak, "rest": 1.0}]}
        for name, peak in (("naive", 200.0), ("ours", 250.0))
    ]  # fmt: skip
    entries = [done | {"ours_equal": equal}, failed, *peaks, peer]
    result = {"machine": MACHINE, "settings": SETTINGS, "entries": entries}
    page = bench("report").page_of([result])
    what, twice = "batch 7, loss of every token", "2.00 (2.00 to 2.00)"
    assert f"| {what} | 12 | 6 | {twice} | 2.50 | 80 % | 2.50 | 80 % |" in page
    assert f"| {what} | 1 | 5 | 2.5 | 9 | 2 | 12.5 | 12 |" in page
    assert "differ by at most 2.0e-07 nats per read" in page
    assert "| batch 1, loss at the answer position | not run: MemoryError |" in page
    assert f"| {what}, the study | 250 | 1.25 |" in page
    assert "not run: ModuleNotFoundError: transformer_lens" in page
    assert bench("importance").failures(result) == [failed["failed"], peer["failed"]]
