"""Stopped verbs: their exit code, what they say is left, and the command that goes on."""

from pathlib import Path

import pytest
import typer

from analysis.atomic_file import DiskFull
from headscope.cli.resuming import command_to_go_on, interruptible, refuse_resume_without
from headscope.plan import AskedWrongly


def test_after_ctrl_c_what_is_left_is_said_and_the_code_is_130(capsys):
    done = []
    with pytest.raises(typer.Exit) as stopped, interruptible(lambda: f"{len(done)} are safe."):
        done.append("a shard")
        raise KeyboardInterrupt
    assert stopped.value.exit_code == 130
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "Interrupted; 1 are safe.\n")


def test_a_full_disk_keeps_its_sentence_and_gets_a_second(capsys):
    with pytest.raises(DiskFull) as full, interruptible(lambda: "nothing is lost: start again."):
        raise DiskFull("No space is left. Free some space.")
    assert str(full.value) == "No space is left. Free some space. Nothing is lost: start again."
    assert capsys.readouterr().err == ""


def test_other_errors_pass_and_what_is_left_is_not_asked():
    with (
        pytest.raises(ValueError, match="^as it was$"),
        interruptible(lambda: pytest.fail("asked")),
    ):
        raise ValueError("as it was")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["score", "m"], "headscope score m --out 'my runs/a' --resume"),
        (["score", "m", "--resume", "--out", "b"], "headscope score m --out b --resume"),
        (["score", "m", "--out=b c"], "headscope score m '--out=b c' --resume"),
    ],
)
def test_the_command_is_the_one_given_with_its_folder(given, expected, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/headscope", *given])
    assert command_to_go_on(Path("my runs/a")) == expected


def test_to_go_on_needs_the_folder():
    with pytest.raises(AskedWrongly, match="^`--resume` needs `--out`"):
        refuse_resume_without(None, resume=True)
    refuse_resume_without(None, resume=False)
    refuse_resume_without(Path("run"), resume=True)
