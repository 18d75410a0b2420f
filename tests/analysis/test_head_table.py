"""The head table: validation by sentence, grids, selection, merging, round trips."""

import numpy as np
import pandas as pd
import pytest

from analysis.head_table import COLUMNS, HeadTable


def _line(layer, head, value, measure="entropy", tower="language", variant="", **more):
    line = {
        "tower": tower,
        "layer": layer,
        "head": head,
        "measure": measure,
        "variant": variant,
        "inputs": "prose",
        "value": value,
        "ci_low": value - 0.1,
        "ci_high": value + 0.2,
        "n": 7,
        "null_low": 2.0,
        "null_high": 3.0,
        "unit": "nats",
    }
    return {**line, **more}


def _table(*lines, **options):
    return HeadTable(pd.DataFrame(list(lines)), **options)


@pytest.fixture
def small():
    share = {"unit": "share", "ci_low": 0.1, "ci_high": 0.9, "null_low": 0.0, "null_high": 0.1}
    return _table(
        _line(0, 0, 1.5),
        _line(0, 2, 0.25),
        _line(3, 1, 2.0),
        _line(1, 0, 0.75, tower="vision"),
        _line(0, 0, 0.4, "sink", variant="eps=0.3", **share),
        _line(0, 0, 0.6, "sink", variant="eps=0.1", **share),
        layers={"language": 5},
    )


def test_grid_has_a_row_per_block_and_nan_where_not_measured(small):
    grid = small.grid("entropy", tower="language")
    assert grid.shape == (5, 3)
    assert grid[0, 0] == 1.5
    assert grid[0, 2] == 0.25
    assert grid[3, 1] == 2.0
    assert np.isnan(grid).sum() == 12
    assert small.grid("entropy", "vision").tolist()[1] == [0.75]
    assert small.grid("entropy", "language", column="ci_high")[3, 1] == pytest.approx(2.2)


def test_grid_says_what_must_be_chosen(small):
    with pytest.raises(ValueError, match=r"`tower` must be given.*language, vision"):
        small.grid("entropy")
    with pytest.raises(ValueError, match=r"`variant` must be given.*eps=0.3, eps=0.1"):
        small.grid("sink")
    with pytest.raises(ValueError, match="one in which 'sink' was measured, got 'vision'"):
        small.grid("sink", "vision")
    with pytest.raises(ValueError, match=r"got 'vhd'. Choose one of: entropy, sink."):
        small.grid("vhd")
    with pytest.raises(ValueError, match=r"`variant` must be one.*got 'eps=9'"):
        small.grid("sink", variant="eps=9")
    with pytest.raises(ValueError, match="`column` must be one of"):
        small.grid("entropy", "vision", column="unit")
    assert small.grid("sink", variant="eps=0.1")[0, 0] == 0.6


def test_the_plain_variant_is_the_default(small):
    both = small.merge(_table(_line(0, 0, 9.0, variant="exclude_bos")))
    assert both.grid("entropy", "language")[0, 0] == 1.5
    assert both.grid("entropy", "language", "exclude_bos")[0, 0] == 9.0


def test_names_and_selection(small):
    assert small.measures == ["entropy", "sink"]
    assert small.towers == ["language", "vision"]
    assert small.variants("sink") == ["eps=0.3", "eps=0.1"]
    assert small.unit("sink") == "share"
    assert len(small.select(measure="entropy", tower=["language"])) == 3
    assert small.select(variant="eps=0.3").frame["value"].tolist() == [0.4]
    assert repr(small.select("vhd")) == "HeadTable: empty"
    assert repr(small) == (
        "HeadTable: language 3 heads, vision 1 heads; n up to 7; inputs prose\n"
        "2 measures: entropy, sink"
    )


def test_the_callers_frame_is_left_alone():
    frame = pd.DataFrame([_line(0, 0, 1.0)], index=[41])
    before = frame.copy(deep=True)
    table = HeadTable(frame[list(reversed(COLUMNS))])
    pd.testing.assert_frame_equal(frame, before)
    assert list(table.frame.columns) == list(COLUMNS)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_round_trip(small, tmp_path, suffix):
    table = small.merge(_table(_line(2, 2, float("nan"), n=0)))
    path = tmp_path / f"heads.{suffix}"
    getattr(table, f"to_{suffix}")(path)
    back = getattr(HeadTable, f"from_{suffix}")(path)
    pd.testing.assert_frame_equal(back.frame, table.frame)
    if suffix == "parquet":
        assert back.layers == {"language": 5, "vision": 2}
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_merge_joins_and_refuses_a_line_twice(small):
    both = small.merge(_table(_line(6, 0, 1.0, "distance", unit="tokens")))
    assert both.measures == ["entropy", "sink", "distance"]
    assert both.layers == {"language": 7, "vision": 2}
    with pytest.raises(ValueError, match=r"each line once.*layer=0 head=0 measure=entropy"):
        small.merge(small)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([_line(0, 0, 1.0), _line(0, 1, 1.0, unit="bits")], "must have one unit, got nats, bits"),
        ([_line(0, 0, 1.0, unit="")], "must have one unit, got ''"),
        ([_line(0, 3, 1.2, unit="share")], r"L0H3 must be finite.*\(share\), got 1.2"),
        ([_line(0, 3, float("inf"))], "value of entropy at language.L0H3 must be finite"),
        ([_line(0, 0, 1.0, ci_low=1.5, ci_high=1.4)], "ci_low must not lie above ci_high"),
        ([_line(0, 0, 1.0, null_low=4.0)], "null_low must not lie above null_high"),
        ([_line(-1, 0, 1.0)], "must not be negative"),
        ([{**_line(0, 0, 1.0), "note": "x"}], "unknown note"),
        ([{k: v for k, v in _line(0, 0, 1.0).items() if k != "n"}], "missing n"),
    ],
)
def test_what_is_wrong_is_said(lines, sentence):
    with pytest.raises(ValueError, match=sentence):
        _table(*lines)
