"""Read a value from text as a parameter's annotation says."""

from __future__ import annotations

import builtins
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Union

JOIN = "+"
"""Between the items of a value; no number needs it and no name of a head has it."""

_TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_SAID = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    Any: "a word",
    type(None): "none",
}


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter; `Any` where there is none or its type is not loaded."""
    names = _Names(getattr(inspect.unwrap(function), "__globals__", {}))
    hints = typing.get_type_hints(function, globalns=names.known, localns=names)
    return {name: hints.get(name, Any) for name in inspect.signature(function).parameters}


def read_text(text: str, annotation: Any) -> Any:
    """The value that a text means.

    Tried in turn, so that ``2`` is a number wherever a number may stand: ``none``, truth values,
    numbers, choices, several numbers joined by ``+``, words. A value of which any type is allowed
    is a word, or a list of words if they are joined.

    >>> read_text("2", int | None), read_text("0.4+1", tuple[float, float])
    (2, (0.4, 1.0))
    >>> read_text("0+0.1+0.5+1", tuple[tuple[float, float], ...])
    ((0.0, 0.1), (0.5, 1.0))
    >>> read_text("text+image", str | list[str])
    ['text', 'image']

    Raises:
        ValueError: the text cannot be read as any of the types.
    """
    for reader in _readers(annotation):
        try:
            return reader(text)
        except ValueError:
            continue
    raise ValueError(f"must be {described(annotation)}, got {text!r}")


def readable(annotation: Any) -> bool:
    """Whether text can give a value of this type: a tensor or a function it cannot."""
    return bool(_readers(annotation))


def described(annotation: Any) -> str:
    """What is wanted, in words.

    >>> described(Literal["all", "last"] | None), described(tuple[int, ...])
    ('all or last or none', 'several of: a whole number')
    """
    words = []
    for kind in _members(annotation):
        if typing.get_origin(kind) is Literal:
            words += [str(word) for word in typing.get_args(kind)]
        elif kind in _SAID:
            words.append(_SAID[kind])
        elif _is_sequence(kind):
            inner = _item_types(kind)
            many = f"{len(inner)} of" if inner is not None else "several of"
            words.append(f"{many}: {described(_item_type(kind))}")
    return " or ".join(dict.fromkeys(words))


def _readers(annotation: Any) -> list[Callable[[str], Any]]:
    kinds = _members(annotation)
    found = [reader for kind, reader in _SCALARS.items() if kind in kinds]
    found += [_choice(typing.get_args(k)) for k in kinds if typing.get_origin(k) is Literal]
    several = [kind for kind in kinds if _is_sequence(kind) and readable(_item_type(kind))]
    of_words = [kind for kind in several if _takes_words(_item_type(kind))]
    found += [_several(kind) for kind in several if kind not in of_words]
    if Any in kinds:
        return [*found, _words]
    if str in kinds and of_words:
        return [*found, _one_word, *(_several(kind) for kind in of_words)]
    if str in kinds:
        return [*found, str]
    return found + [_several(kind) for kind in of_words]


def _whole(text: str) -> int:
    return int(text, 10)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError(text)
    return _TRUTHS[text.lower()]


def _nothing(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(text)


_SCALARS: dict[Any, Callable[[str], Any]] = {
    type(None): _nothing,
    bool: _truth,
    int: _whole,
    float: _finite,
}


def _choice(choices: tuple[Any, ...]) -> Callable[[str], Any]:
    by_text = {str(choice): choice for choice in choices}

    def read(text: str) -> Any:
        if text not in by_text:
            raise ValueError(text)
        return by_text[text]

    return read


def _several(kind: Any) -> Callable[[str], Any]:
    fixed = _item_types(kind)

    def read(text: str) -> Any:
        items = _in_groups(_items(text), 1 if fixed is not None else _items_of(_item_type(kind)))
        if fixed is not None and len(items) != len(fixed):
            raise ValueError(text)
        wanted = fixed if fixed is not None else [_item_type(kind)] * len(items)
        values = [read_text(item, inner) for item, inner in zip(items, wanted, strict=True)]
        return tuple(values) if typing.get_origin(kind) is tuple else values

    return read


def _in_groups(items: list[str], size: int) -> list[str]:
    """Items joined again, so many at a time: the pairs of a list of pairs."""
    return [JOIN.join(items[first : first + size]) for first in range(0, len(items), size)]


def _items_of(kind: Any) -> int:
    return len(_item_types(kind) or (kind,))


def _one_word(text: str) -> str:
    if JOIN in text:
        raise ValueError(text)
    return text


def _words(text: str) -> str | list[str]:
    items = _items(text)
    return items[0] if len(items) == 1 else items


def _items(text: str) -> list[str]:
    items = [item.strip() for item in text.split(JOIN)]
    if not all(items):
        raise ValueError(text)
    return items


def _members(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return tuple(kind for part in typing.get_args(annotation) for kind in _members(part))
    return (annotation,)


def _is_sequence(kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if not isinstance(origin, type) or issubclass(origin, (str, bytes, Mapping)):
        return False
    # Tensors are iterable too, but nobody writes them down.
    return issubclass(origin, (list, tuple, set, frozenset)) or (
        origin.__module__.startswith(("collections", "typing")) and issubclass(origin, Iterable)
    )


def _item_types(kind: Any) -> tuple[Any, ...] | None:
    """Types of a tuple of fixed length."""
    arguments = typing.get_args(kind)
    fixed = typing.get_origin(kind) is tuple and arguments and Ellipsis not in arguments
    return arguments if fixed else None


def _item_type(kind: Any) -> Any:
    return next(iter(typing.get_args(kind)), str)


def _takes_words(annotation: Any) -> bool:
    return any(kind in (str, Any) for kind in _members(annotation))


class _Names(dict[str, Any]):
    """Names in annotations; those imported for type checkers only stand for any type."""

    def __init__(self, known: dict[str, Any]) -> None:
        super().__init__()
        self.known = known

    def __missing__(self, name: str) -> Any:
        if name in self.known:
            return self.known[name]
        return getattr(builtins, name, Any)
