"""Edits written as text: ``vhr:alpha=2``, ``scale:heads=language.L3H5+language.L4,factor=0``.

    edit      = NAME [ ":" parameter { "," parameter } ]
    parameter = NAME "=" value
    value     = item { "+" item }         several items where the parameter takes several

An item is read as its parameter is annotated: a number, ``true`` or ``false``, ``none``, a word
(see `probes.edits.typed_text`). Nothing is evaluated.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from probes.edits.apply import factory_of
from probes.edits.edit import Edit
from probes.edits.method import Method
from probes.edits.typed_text import annotations_of, read_text, readable


class EditTextError(ValueError):
    """A text that names no edit; the message says what would."""


def parse_edit(text: str) -> Edit | Method:
    """The edit that a text describes.

    >>> parse_edit("scale:heads=language.L0H1+language.L2,factor=0.5")
    Scale(heads=['language.L0H1', 'language.L2'], factor=0.5, stage='z')

    Raises:
        EditTextError: there is no such edit or parameter, a value is of another type, one is
            missing, or the edit refuses what it is given.
    """
    name, _, rest = (part.strip() for part in text.partition(":"))
    try:
        factory = factory_of(name)
    except ValueError as error:
        raise EditTextError(str(error)) from error
    known = annotations_of(factory)
    given = _given(name, rest, known)
    parameters = inspect.signature(factory).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    _refuse_unwritable(name, needed, known)
    missing = [parameter for parameter in needed if parameter not in given]
    if missing:
        example = ",".join(f"{parameter}=..." for parameter in needed)
        raise EditTextError(
            f"Edit {name!r} must be given {' and '.join(missing)}. Write {name}:{example}."
        )
    return _made(factory, given, text)


def _given(name: str, rest: str, known: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    takes = f"{name!r} takes {', '.join(known) or 'no parameters'}"
    for part in rest.split(",") if rest else ():
        key, _, value = (piece.strip() for piece in part.partition("="))
        if not key or not value:
            raise EditTextError(
                f"A parameter must be written NAME=VALUE, got {part.strip()!r}; {takes}."
            )
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise EditTextError(f"{takes}, got {key!r}.{hint}")
        if key in given:
            raise EditTextError(f"Parameter {key!r} of {name!r} must be given once, got it twice.")
        _refuse_unwritable(name, [key], known)
        try:
            given[key] = read_text(value, known[key])
        except ValueError as error:
            raise EditTextError(f"Parameter {key!r} of {name!r} {error}.") from error
    return given


def _refuse_unwritable(name: str, parameters: list[str], known: Mapping[str, Any]) -> None:
    for parameter in parameters:
        if not readable(known[parameter]):
            raise EditTextError(
                f"Edit {name!r} cannot be written as text, because its {parameter!r} is neither "
                "a number nor a word. Use it from Python."
            )


def _made(factory: Callable[..., Any], given: dict[str, Any], text: str) -> Edit | Method:
    try:
        return factory(**given)
    except (TypeError, ValueError) as error:
        raise EditTextError(f"Edit {text!r} cannot be made: {error}") from error
