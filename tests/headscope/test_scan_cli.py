"""`headscope scan`: what it prints, the run that it makes, exit codes, one sentence per error."""

import json

import pytest

from analysis.importance.scans.options import ScanOptions
from headscope.cli import main
from headscope.plan import Options
from headscope.scan_run import scan_run

FEW = ["--limit", "12", "--top", "1,2", "--randoms", "3", "--permutations", "199"]
SCAN = ["scan", "repeat-lm", "--data", "repeats", "--control", "unrepeated", *FEW]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main([*SCAN, "--paired", "--out", str(path)]) == 0
    return path


def test_a_scan_is_printed_with_interval_and_null(made, capsys):
    assert main(["show", str(made)]) == 0
    out = capsys.readouterr().out
    assert "on repeats against unrepeated, seed 0" in out
    assert "activity (answer, paired): 12 examples of the behaviour, 12 of the control" in out
    row = next(line.split() for line in out.splitlines() if line.startswith(" language.L1H"))
    assert row[2] == "±" and row[-1] == "differs" and row.count("to") == 2
    text = " ".join(out.split())
    assert "differ at a false discovery rate of 5 % (q over all heads)" in text
    assert "(200 splits)" in text and "Two halves of the examples rank the heads alike" in text
    assert "chosen on one half of the examples and judged on the other (6 and 6)" in text
    assert "no less than 1 / (1 + sets)" in text
    rows = [line.split()[:2] for line in out.splitlines() if " behaviour   " in line]
    assert ["1", "behaviour"] in rows and ["2", "behaviour"] in rows
    assert "difference_activity" not in out  # it has tables of its own
    assert all(line == line.rstrip() for line in out.splitlines())


def test_the_same_as_json(made, capsys):
    assert main(["show", str(made), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    scan = found["scan"]
    assert found["control"]["name"] == "unrepeated" and found["n"] == 24
    assert len(scan["heads"]) == 16 and scan["discovered"] >= 5
    first = scan["heads"][0]
    assert first["name"] == f"language.L{first['layer']}H{first['head']}"
    assert {"ci_low", "ci_high", "null_low", "null_high", "p", "q"} <= set(first)
    assert [line["k"] for line in scan["excess"]["behaviour"]] == [1, 2]
    assert scan["how"]["paired"] is True and scan["examples"] == [12, 12]


def test_each_pass_is_told_as_a_stage_of_its_own(subject, tmp_path):
    heard = {}

    def listen(stage):
        heard.setdefault((stage.name, stage.unit), []).append((stage.done, stage.total))

    how = ScanOptions(paired=True, top=(1,), randoms=2, permutations=99)
    scan_run(subject, "repeats", "unrepeated", tmp_path / "run", how, Options(limit=11), listen)
    assert set(heard) == {
        ("the behaviour", "examples"),
        ("the control", "examples"),
        ("without sets of heads", "runs"),
    }
    assert all(done <= total for told in heard.values() for done, total in told)
    assert all(told[-1][0] == told[-1][1] for told in heard.values())
    assert {total for _, total in heard["the behaviour", "examples"]} == {11}
    assert heard["without sets of heads", "runs"][-1][1] > 11


def test_nothing_is_taken_away_where_that_was_asked(tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*SCAN, "--top", "0", "--measure", "entropy", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "entropy: 12 examples" in said and "what is lost" not in said
    assert not (out / "scan" / "confirmation.parquet").exists()


def test_sets_of_other_lengths_are_told(tmp_path, capsys):
    short = tmp_path / "short.jsonl"
    lines = [{"text": f"t{n:02d} t{n + 20:02d} t{n + 40:02d}"} for n in range(8)]
    short.write_text("\n".join(map(json.dumps, lines)))
    arguments = ["scan", "repeat-lm", "--control", str(short), *FEW, "--top", "0", "--json"]
    assert main([*arguments, "--out", str(tmp_path / "a")]) == 0
    found = json.loads(capsys.readouterr().out)["scan"]
    assert found["how"]["where"] == "last" and found["lengths"][1] == 4
    assert main(["show", str(tmp_path / "a")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "The sets differ in length too" in text
    assert "and 4.00 positions of language on average" in text


def test_an_interrupted_scan_writes_nothing(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.importance.scans.scan.confirmation", interrupted)
    out = tmp_path / "run"
    assert _fails(capsys, [*SCAN, "--out", str(out)], 130).startswith("Interrupted; nothing was")
    assert not out.exists()


def _fails(capsys, arguments, code):
    assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == "" and "Traceback" not in said.err
    lines = said.err.strip().splitlines()
    assert len(lines) == 1, said.err
    assert lines[0][-1] in ".?"
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["scan", "repeat-lm"], "Missing option '--control'"),
        (["scan", "repeat-lm", "--control", "repeats"], "another set than the behaviour"),
        ([*SCAN, "--measure", "entrop"], "Did you mean entropy"),
        ([*SCAN, "--measure", "mean_hop"], "'mean_hop' must give a number for each head"),
        ([*SCAN, "--where", "words"], "`where` must be one of last"),
        ([*SCAN, "--side", "up"], "`side` must be one of more"),
        ([*SCAN, "--top", "few"], "`--top` must be numbers of heads"),
        ([*SCAN, "--limit", "0"], "`--limit` must be at least 1"),
        ([*SCAN, "--towers", "vision"], "`towers` must be among language"),
        ([*SCAN, "--effect", "cosine"], "Effect 'cosine' compares vectors"),
        ([*SCAN, "--effect", "layer_cosine"], "is told by one block"),
        ([*SCAN, "--ablation", "uniform"], "and 'uniform' does"),
    ],
)
def test_asked_wrongly_is_2_and_writes_nothing(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in _fails(capsys, arguments, 2)
    assert list(tmp_path.iterdir()) == []


def test_could_not_is_1_and_writes_nothing(made, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, none = tmp_path / "one.jsonl", tmp_path / "none.jsonl"
    one.write_text('{"text": "t01 t02"}\n')
    none.write_text("")
    start = ["scan", "repeat-lm", "--control"]
    for arguments, sentence in (
        ([*start, str(one)], "at least 2 examples to be compared, got 64 and 1"),
        ([*start, "unrepeated", "--limit", "3"], "at least 4 examples"),
        ([*start, str(none)], "holds no example"),
        ([*start, "nowhere"], "'nowhere' is neither a bundled set"),
        ([*start, "digits"], "None of the 100 examples of 'digits' fits"),
        ([*SCAN, "--out", str(made)], "holds a finished run"),
        ([*SCAN, "--out", str(tmp_path)], "holds something else"),
    ):
        assert sentence in _fails(capsys, arguments, 1)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["none.jsonl", "one.jsonl"]
