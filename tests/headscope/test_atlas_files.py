"""A damaged file of an atlas is a sentence: which file, and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headscope as hs
from analysis.atlas.atlas import Atlas
from analysis.run_files import RunError
from headscope.cli.entry import main

DRAWN = ("samples.parquet", "features.parquet", "patterns.safetensors", "not_drawn.parquet",
         "events.parquet", "exemplars.json", "atlas.json")  # fmt: skip
MAPPED = ("points.parquet", "clusters.parquet", "head_mix.parquet", "head_shares.parquet",
          "stability.parquet", "prototypes.safetensors")  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    asked = f"atlas repeat-lm --limit 2 --samples 32 --side 16 --clusters 2 --measures= --out {out}"
    assert main(asked.split()) == 0
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def spoilt(file: Path) -> None:
    file.write_bytes(b"\x00\xff" * 50)


def other(file: Path) -> None:
    file.write_text("[1, 2]")


@pytest.mark.parametrize("damage", [cut, spoilt, other])
@pytest.mark.parametrize("name", DRAWN + MAPPED)
def test_the_file_is_named_with_what_to_do(
    name: str, damage: Callable[[Path], None], run: Path
) -> None:
    damage(run / "atlas" / name)
    with pytest.raises(RunError) as raised:
        Atlas.load(run / "atlas")
    said = str(raised.value)
    assert str(run / "atlas" / name) in said
    what = "another map of them: `headscope atlas RUN" if name in MAPPED else "`headscope atlas` on"
    assert what in said


@pytest.mark.parametrize("name", ["points.parquet", "not_drawn.parquet", "prototypes.safetensors"])
def test_a_file_that_is_gone_is_named_too(name: str, run: Path) -> None:
    (run / "atlas" / name).unlink()
    with pytest.raises(RunError, match=f"{name} cannot be read"):
        Atlas.load(run / "atlas")


def test_about_without_what_it_must_tell(run: Path) -> None:
    (run / "atlas" / "atlas.json").write_text(json.dumps({"verdict": "", "towers": {}}))
    with pytest.raises(RunError, match=r"atlas\.json must tell of refused, options\. Draw"):
        Atlas.load(run / "atlas")
    (run / "atlas" / "exemplars.json").write_text("{}")
    from analysis.atlas.exemplars import Exemplars

    with pytest.raises(RunError, match="does not tell of exemplars"):
        Exemplars.load(run / "atlas")


def test_another_map_needs_no_more_than_what_was_drawn(run: Path, capsys: Any) -> None:
    for name in MAPPED:
        spoilt(run / "atlas" / name)
    assert main(["show", str(run)]) == 1
    said = capsys.readouterr().err
    assert "clusters.parquet cannot be read" in said and "where it should not" not in said
    assert main(["atlas", str(run), "--section", "again", "--clusters", "2"]) == 0
    assert len(Atlas.load(run / "again").points) == 32


def test_damaged_tables_of_the_run_are_sentences(run: Path) -> None:
    cut(run / "atlas" / "heads.parquet")
    with pytest.raises(RunError, match=r"heads\.parquet cannot be read .* Score again into"):
        hs.open_run(run).heads  # noqa: B018
    cut(run / "profiles.parquet")
    with pytest.raises(RunError, match=r"profiles\.parquet cannot be read"):
        hs.open_run(run).profiles  # noqa: B018


def test_what_has_no_exemplars_is_shown_with_its_reason(run: Path, capsys: Any) -> None:
    file = run / "atlas" / "exemplars.json"
    about = json.loads(file.read_text())
    about["reasons"] = [["language", "contribution", "The output matrix could not be found."]]
    file.write_text(json.dumps(about))
    assert main(["show", str(run)]) == 0
    told = "Without contribution in language: The output matrix could not be found."
    assert told in " ".join(capsys.readouterr().out.split())
    assert main(["show", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["atlas"]["without_exemplars"] == [
        {"tower": "language", "what": "contribution",
         "reason": "The output matrix could not be found."}
    ]  # fmt: skip
