"""Edits written as text: values by annotation, and one sentence for everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import pytest
from torch import Tensor

from probes.edits import apply, knock_out, scale, zero
from probes.edits.parse import EditTextError, parse_edit
from probes.edits.typed_text import annotations_of, described, read_text, readable

if TYPE_CHECKING:
    from decimal import Decimal


def made(
    alpha: float = 2.0,
    *,
    heads: Any = "*",
    count: int | None = None,
    outliers: bool = True,
    depth: tuple[float, float] = (0.0, 1.0),
    layers: Sequence[int] | None = None,
    form: Literal["l2", "cosine"] = "l2",
    words: Iterable[str] = (),
    name: str = "",
    chosen: str | tuple[str, ...] | None = None,
    later: Decimal | None = None,
    pairs: tuple[tuple[float, int], ...] = (),
    table: Mapping[str, Tensor] | None = None,
):
    if alpha < 0:
        raise ValueError("`alpha` must be at least 0.")
    return locals()


@pytest.fixture(autouse=True)
def made_is_an_edit(monkeypatch):
    real = apply.factory_of
    monkeypatch.setattr(
        "probes.edits.parse.factory_of", lambda name: made if name == "made" else real(name)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scale:heads=language.L3H5,factor=2", scale("language.L3H5", 2.0)),
        (" scale : factor = 1e+1 , heads = L0 + L2H1 ", scale(["L0", "L2H1"], 10.0)),
        ("zero:heads=*", zero("*")),
        ("knock_out:heads=*,queries=text,keys=image", knock_out("*", "text", "image")),
        ("knock_out:heads=*,keys=image+cls", knock_out("*", None, ["image", "cls"])),
        ("knock_out:heads=*,queries=none,keys=3+4", knock_out("*", None, [3, 4])),
        ("knock_out:heads=*,keys=7", knock_out("*", None, [7])),
    ],
)
def test_edits_from_text(text, expected):
    assert parse_edit(text) == expected


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("made", "alpha", 2.0),
        ("made:alpha=3", "alpha", 3.0),
        ("made:count=3", "count", 3),
        ("made:count=none", "count", None),
        ("made:outliers=off", "outliers", False),
        ("made:outliers=True", "outliers", True),
        ("made:depth=0.5+1", "depth", (0.5, 1.0)),
        ("made:layers=3", "layers", [3]),
        ("made:layers=3+5", "layers", [3, 5]),
        ("made:form=cosine", "form", "cosine"),
        ("made:words=a+b", "words", ["a", "b"]),
        ("made:name=a+b", "name", "a+b"),
        ("made:chosen=a+b", "chosen", ("a", "b")),
        ("made:chosen=a", "chosen", "a"),
        ("made:chosen=none", "chosen", None),
        ("made:heads=a+b", "heads", ["a", "b"]),
        ("made:later=x", "later", "x"),
        ("made:pairs=0.5+1", "pairs", ((0.5, 1),)),
        ("made:pairs=0.5+1+2+3", "pairs", ((0.5, 1), (2.0, 3))),
        ("vhr:depth=0+0.25+0.5+1", "depth", ((0.0, 0.25), (0.5, 1.0))),
    ],
)
def test_values_are_read_as_annotated(text, key, value):
    edit = parse_edit(text)
    found = edit[key] if isinstance(edit, dict) else getattr(edit, key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("vhrr", "An edit must be one of .*scale.*, got 'vhrr'"),
        ("", "An edit must be one of"),
        ("scale", "Edit 'scale' must be given heads and factor. Write scale:heads=...,factor=..."),
        ("scale:heads=*", "must be given factor"),
        ("scale:heads=*,factor=two", "Parameter 'factor' of 'scale' must be a number, got 'two'"),
        ("scale:heads=*,factr=2", "'scale' takes heads, factor, got 'factr'. Did you mean factor"),
        ("scale:heads=*,factor=2,factor=3", "'factor' of 'scale' must be given once"),
        ("scale:heads", "must be written NAME=VALUE, got 'heads'; 'scale' takes heads, factor"),
        ("scale:heads=,factor=1", "must be written NAME=VALUE, got 'heads='"),
        ("scale:heads=a++b,factor=1", "'heads' of 'scale' must be a word, got 'a\\+\\+b'"),
        ("made:alpha=nan", "'alpha' of 'made' must be a number, got 'nan'"),
        ("made:depth=0+inf", "'depth' of 'made' must be 2 of: a number, got '0.inf'"),
        ("made:pairs=0.5+1+2", "'pairs' of 'made' must be several of: 2 of: a number, got"),
        ("made:count=2.5", "'count' of 'made' must be a whole number or none, got '2.5'"),
        ("made:depth=0.5", "must be 2 of: a number, got '0.5'"),
        ("made:outliers=2", "must be true or false, got '2'"),
        ("made:form=l1", "must be l2 or cosine, got 'l1'"),
        ("made:table=x", "'table' of 'made' must be none, got 'x'"),
        ("made:alpha=-1", "Edit 'made:alpha=-1' cannot be made: `alpha` must be at least 0."),
        ("replace:heads=*", "'replace' cannot be written as text, because its 'z' is neither"),
        ("edit_z:heads=*", "because its 'function' is neither"),
        ("__import__('os')", "An edit must be one of"),
    ],
)
def test_what_is_no_edit_is_said(text, sentence):
    with pytest.raises(EditTextError, match=sentence):
        parse_edit(text)


def test_types_that_text_cannot_give():
    for kind in (Tensor, Mapping[str, Tensor], Callable[[Tensor], Tensor], Sequence[Tensor]):
        assert not readable(kind)
    assert readable(Tensor | None)  # none can be written
    assert read_text("none", Tensor | None) is None
    with pytest.raises(ValueError, match="must be none, got '3'"):
        read_text("3", Tensor | None)


def test_types_for_checkers_alone_are_any():
    assert annotations_of(made)["later"] == Any | None
    assert described(annotations_of(made)["layers"]) == "several of: a whole number or none"
