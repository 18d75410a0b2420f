"""Where in the model the running code is: a stack of module paths, kept per thread."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

CallBoundary = Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any], Any], None]


class ModuleStack:
    """Paths of the modules that are running in the thread that entered the stack.

    Module hooks are shared by all threads; ours do nothing in any thread but their own. With
    ``modules`` given only those are followed, which keeps decoding cheap.

    Attributes:
        times_called: how often each module was entered since the root module was.
    """

    def __init__(
        self,
        root: nn.Module,
        paths: Iterable[str] | None = None,
        on_enter: CallBoundary | None = None,
        on_exit: CallBoundary | None = None,
    ) -> None:
        self.root = root
        self.paths: list[str] = []
        self.times_called: Counter[str] = Counter()
        self.calls_inside: list[int] = []
        self.forwards = 0
        self._wanted = None if paths is None else {"", *paths}
        self._on_enter, self._on_exit = on_enter, on_exit
        self._handles: list[Any] = []
        self._thread = 0

    @property
    def top(self) -> str:
        """Path of the innermost followed module, empty at the root."""
        return self.paths[-1] if self.paths else ""

    @property
    def run(self) -> tuple[int, int]:
        """Tells this run of the innermost module from its others: forward, and run in it."""
        return self.forwards, self.times_called[self.top]

    def next_inside(self) -> int:
        """Number of attention calls that the innermost module made before this one."""
        if not self.calls_inside:
            return 0
        self.calls_inside[-1] += 1
        return self.calls_inside[-1] - 1

    def __enter__(self) -> ModuleStack:
        self._thread = threading.get_ident()
        for path, module in self.root.named_modules(remove_duplicate=True):
            if self._wanted is None or path in self._wanted:
                self._follow(path, module)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.paths.clear()
        self.calls_inside.clear()

    def _follow(self, path: str, module: nn.Module) -> None:
        # A thread that attaches or detaches may leave PyTorch, for a moment and in other threads,
        # with a hook whose `with_kwargs` is not known: it is then called without the kwargs.
        def enter(module: nn.Module, args: Any, kwargs: Any = None) -> None:
            if threading.get_ident() != self._thread:
                return
            if path == "":
                self.times_called.clear()
                self.forwards += 1
                self.paths.clear()
                self.calls_inside.clear()
            self.paths.append(path)
            self.calls_inside.append(0)
            self.times_called[path] += 1
            if self._on_enter is not None:
                self._on_enter(path, module, args, kwargs, None)

        def leave(module: nn.Module, args: Any, kwargs: Any, output: Any = None) -> None:
            if threading.get_ident() != self._thread:
                return
            while self.paths and self.paths.pop() != path:
                self.calls_inside.pop()
            if self.calls_inside:
                self.calls_inside.pop()
            if self._on_exit is not None:
                self._on_exit(path, module, args, kwargs, output)

        self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        self._handles.append(module.register_forward_hook(leave, with_kwargs=True))
