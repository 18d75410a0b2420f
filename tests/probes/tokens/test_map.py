"""The table itself: rows, roles, frames, room for generated tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from probes.tokens import ROLES, TokenMap, blank_tokens


def small():
    tokens = blank_tokens("language", [2, 3], [0, 1], "text")
    role = tokens.role.clone()
    role[[0, 2]] = ROLES.index("bos")
    box = tokens.box.clone()
    box[4] = torch.tensor([1.0, 2.0, 3.0, 5.0])
    ids = torch.tensor([7, 8, 9, 10, 11])
    return replace(tokens, role=role, box=box, ids=ids, text=("a", "b", "c", "d", "e"))


def test_rows_positions_and_roles():
    tokens = small()
    assert tokens.rows == 2 and len(tokens) == 5
    assert tokens.lengths.tolist() == [2, 3]
    assert tokens.position.tolist() == [0, 1, 0, 1, 2]
    assert tokens.has_role("bos").tolist() == [True, False, True, False, False]
    assert tokens.has_role("bos", "text").all()


def test_a_column_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match=r"Column 'row' .* must have 5 positions, got 4"):
        replace(small(), row=torch.zeros(4).long())


def test_generated_positions_follow_each_row():
    longer = small().with_generated(2)
    words = [ROLES[role] for role in longer.role.tolist()]
    assert words == [*("bos", "text"), *["generated"] * 2, "bos", *["text"] * 2, *["generated"] * 2]
    assert longer.ids.tolist() == [7, 8, -1, -1, 9, 10, 11, -1, -1]
    assert longer.example.tolist() == [0] * 4 + [1] * 5
    assert longer.text == ("a", "b", "", "", "c", "d", "e", "", "")
    assert longer.box[6].tolist() == [1, 2, 3, 5] and torch.isnan(longer.box[7]).all()
    assert small().with_generated(0).lengths.tolist() == [2, 3]


def test_the_frame_has_a_line_per_position_of_every_tower():
    vision = blank_tokens("vision", [2], [0], "image")
    frame = TokenMap({"language": small(), "vision": vision}).frame
    assert list(frame.tower) == ["language"] * 5 + ["vision"] * 2
    assert list(frame.sequence) == [0, 0, 1, 1, 1, 0, 0]
    assert frame.bottom[4] == 5 and frame.isna().left.sum() == 6
    assert TokenMap({}).frame.empty


def test_an_unknown_tower_names_those_there_are():
    with pytest.raises(KeyError, match="covers language, got 'audio'"):
        TokenMap({"language": small()})["audio"]
