"""Let modules of a model answer without running: their `forward` is replaced for one thread.

What a module calls `forward` is looked up on the instance at every call, so a function put there
stands in for it, whatever the class does, and whoever put one there before (accelerate does).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Action:
    """What a module does instead of running.

    Attributes:
        act: gets the module's own forward, and the arguments that the model calls it with.
        inside: whether it may run the module's own code, with the calls of other modules in it.
        required: whether a run in which it did not come to pass is an error.
    """

    act: Callable[[Forward, tuple[Any, ...], dict[str, Any]], Any]
    inside: bool = False
    required: bool = True


Script = Mapping[nn.Module, Sequence[Action | None]]
"""By module, one entry for each of its calls in order; None runs the module as it is."""


class _Part:
    """One module's part in a script, and how far it has got."""

    def __init__(self, actions: Sequence[Action | None]) -> None:
        self.actions, self.called = actions, 0

    def next(self) -> Action | None:
        self.called += 1
        return self.actions[self.called - 1] if self.called <= len(self.actions) else None

    @property
    def unplayed(self) -> bool:
        return any(a is not None and a.required for a in self.actions[self.called :])


@dataclass(eq=False)
class _StandIn:
    """What stands in for one module's forward; one for all threads, each with its own part."""

    module: nn.Module
    forward: Forward
    replaced: Any
    parts: dict[int, list[_Part]] = field(default_factory=dict)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        parts = self.parts.get(threading.get_ident())
        action = parts[-1].next() if parts else None
        if action is None:
            return self.forward(*args, **kwargs)
        return action.act(self.forward, args, kwargs)


_NOTHING = object()
_stand_ins: dict[int, _StandIn] = {}
_lock = threading.RLock()


@contextmanager
def short_circuit(script: Script) -> Iterator[Callable[[], list[nn.Module]]]:
    """Modules act as scripted while the ``with`` block runs their model, in this thread only.

    Yields:
        Gives the modules that have not been called as often as the script requires.
    """
    thread = threading.get_ident()
    parts = {module: _Part(actions) for module, actions in script.items()}
    try:
        with _lock:
            for module, part in parts.items():
                _stand_in_of(module).parts.setdefault(thread, []).append(part)
        yield lambda: [module for module, part in parts.items() if part.unplayed]
    finally:
        with _lock:
            for module, part in parts.items():
                _withdraw(module, thread, part)


def own_forward(module: nn.Module) -> Forward:
    """What the module's forward is when nothing stands in for it."""
    stand_in = _stand_ins.get(id(module))
    return module.forward if stand_in is None else stand_in.forward


def _stand_in_of(module: nn.Module) -> _StandIn:
    stand_in = _stand_ins.get(id(module))
    if stand_in is None:
        replaced = module.__dict__.get("forward", _NOTHING)
        stand_in = _StandIn(module, module.forward, replaced)
        _stand_ins[id(module)] = stand_in
        module.__dict__["forward"] = stand_in
    return stand_in


def _withdraw(module: nn.Module, thread: int, part: _Part) -> None:
    stand_in = _stand_ins.get(id(module))
    if stand_in is None:
        return
    parts = stand_in.parts.get(thread, [])
    if part in parts:
        parts.remove(part)
    if not parts:
        stand_in.parts.pop(thread, None)
    if stand_in.parts:
        return
    if stand_in.replaced is _NOTHING:
        module.__dict__.pop("forward", None)
    else:
        module.__dict__["forward"] = stand_in.replaced
    del _stand_ins[id(module)]
