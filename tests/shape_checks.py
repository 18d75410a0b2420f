"""The runtime type checker of the test suite: it checks jaxtyping annotations and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_args

from beartype import beartype
from jaxtyping import AbstractArray

Function = TypeVar("Function", bound=Callable[..., Any])


def shapes_only(function: Function) -> Function:
    """The function, its arrays checked for dtype and shape at every call.

    Annotations without an array are dropped first. Many name a class that is imported for type
    checkers alone (`if TYPE_CHECKING`), which beartype would try, and fail, to resolve.
    """
    annotations = function.__annotations__
    kept = {name: hint for name, hint in annotations.items() if _mentions_an_array(hint)}
    if not kept:
        return function
    function.__annotations__ = kept
    return beartype(function)


def _mentions_an_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_mentions_an_array(part) for part in get_args(hint))
