"""One forward written down as a tree of module calls, with the outputs that a restart needs."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from probes.heads import Site
from probes.operations import tensors_in
from probes.replaying.outline import Outline
from probes.replaying.returned import Form, first_of, mapped, same_memory, version_of


@dataclass(eq=False)
class Call:
    """One call of one watched module.

    Attributes:
        start, end: ticks of one clock, so that order and nesting can be compared.
        output: what it returned, where that is kept (`has_output`).
        form: of a call in a block, what it returned without the first tensor.
        shape: of the first tensor that it returned.
        read: of a projection, what it projected: heads side by side, model dtype.
        carried: the projection whose output is this call's (first) output, untouched.
        plain: of a projection, whether it takes one tensor and gives one.
        source: of a projection, the call whose (first) output it read, untouched.
        given: arguments of a stack that holds some attention layers and not all.
    """

    module: nn.Module
    path: str
    parent: Call | None
    start: int
    end: int = -1
    children: list[Call] = field(default_factory=list)
    output: Any = None
    has_output: bool = False
    form: Form | None = None
    shape: tuple[int, ...] = ()
    read: Tensor | None = None
    carried: Call | None = None
    plain: bool = False
    source: Call | None = None
    given: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    _first: weakref.ref[Tensor] | None = None
    _version: int = 0

    def __contains__(self, other: Call) -> bool:
        return self.start <= other.start and other.end <= self.end

    def returned(self) -> Any:
        """What it returned, where that is kept."""
        if self.output is None and self.form is not None:
            return self.form.filled()
        return self.output

    def above(self) -> Iterator[Call]:
        """This call and all around it, from the inside."""
        here: Call | None = self
        while here is not None:
            yield here
            here = here.parent


class CallTree:
    """Notes the calls of watched modules while the ``with`` block runs the model once.

    Args:
        frail: paths of modules whose output the model changes after they returned it: a copy of
            it is kept.

    Attributes:
        calls: all calls, in the order in which they began; the first is the model's.
    """

    def __init__(self, outline: Outline, frail: set[str]) -> None:
        self.outline, self.frail = outline, frail
        self.calls: list[Call] = []
        self._open: list[Call] = []
        self._clock = 0
        self._handles: list[Any] = []
        self._projected: dict[Call, tuple[Tensor, int]] = {}
        self._forms: list[Form] = []
        self._versions: list[tuple[Tensor, int, str]] = []
        self._thread = 0

    def __enter__(self) -> CallTree:
        self._thread = threading.get_ident()
        for path, module in self.outline.watched():
            enter, leave = self._hooks(path)
            self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(leave))
        return self

    def __exit__(self, *exc_info: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._open.clear()
        self._end_of_block()

    def changed_later(self) -> set[str]:
        """Paths of modules whose kept output the model changed after they returned it."""
        found = {path for t, version, path in self._versions if version_of(t) != version}
        self._versions.clear()
        return found

    def calls_of(self) -> dict[Site, list[Call]]:
        """The calls in which each site's z was projected (or made, where no module projects it)."""
        found: dict[Site, list[Call]] = {}
        counts: dict[nn.Module, int] = {}
        for call in self.calls:
            number = counts.get(call.module, 0)
            counts[call.module] = number + 1
            sites = self.outline.projected.get(call.module, [])
            if sites:
                found.setdefault(sites[number % len(sites)], []).append(call)
            making = self.outline.attending.get(call.module, [])
            runs = 1 + max((s.occurrence for s in making), default=0)
            for place in making:
                if place.occurrence == number % runs:
                    found.setdefault(place.site, []).append(call)
        return found

    def block_of(self, call: Call) -> Call | None:
        """The block that a call is in."""
        around = [c for c in call.above() if self.outline.role[c.module] == "block"]
        return around[-1] if around else None

    def forget_after(self, tick: int, keep: set[Call | None]) -> None:
        """Let go of the outputs of calls that ended later, but for some."""
        for call in self.calls:
            if call.end > tick and call not in keep:
                call.output, call.has_output = None, False

    def _hooks(self, path: str) -> tuple[Callable[..., None], Callable[..., None]]:
        # Hooks are shared by all threads. Why some arguments may be missing, see `ModuleStack`.
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> None:
            if threading.get_ident() == self._thread:
                self._enter(path, module, args, kwargs or {})

        def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if threading.get_ident() == self._thread:
                self._leave(module, output)

        return enter, leave

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _enter(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if path and not self._open:
            return  # a part of the model, run on its own
        parent = self._open[-1] if self._open else None
        call = Call(module, path, parent, self._tick())
        if parent is not None:
            parent.children.append(call)
        self.calls.append(call)
        self._open.append(call)
        if module in self.outline.projected and args and isinstance(args[0], Tensor):
            call.source = self._source(call, args[0])
            call.read = self._stable(args[0], path)
            call.plain = len(args) == 1 and not kwargs
        if module in self.outline.partial:
            call.given = (args, kwargs)

    def _source(self, call: Call, read: Tensor) -> Call | None:
        """The outermost call of the same block that returned what is read."""
        found = None
        for around in call.above():
            if around is not call and self.outline.role[around.module] == "stack":
                break
            for other in around.children:
                first = None if other._first is None else other._first()
                if first is None or other is call or first.numel() != read.numel():
                    continue
                if same_memory(first, read) and version_of(first) == other._version:
                    found = other
                    break
        return found

    def _leave(self, module: nn.Module, output: Any) -> None:
        while self._open and self._open[-1].module is not module:
            self._open.pop()
        if not self._open:
            return
        call = self._open.pop()
        call.end = self._tick()
        role = self.outline.role[module]
        if role in ("inner", "block"):
            self._follow(call, output, relay=module in self.outline.relays)
        if role != "inner" and call.path:
            call.output, call.has_output = self._stable(output, call.path), True
        if role == "block":
            self._end_of_block()

    def _follow(self, call: Call, output: Any, relay: bool) -> None:
        first = first_of(output)
        if first is None:
            return
        call._first, call._version = weakref.ref(first), version_of(first)
        call.shape, call.form = tuple(first.shape), Form(output)
        self._forms.append(call.form)
        if relay:
            call.form.first, call.has_output = self._stable(first, call.path), True
        if call.read is not None:
            self._projected[call] = (first, version_of(first))
            call.carried, call.plain = call, call.plain and isinstance(output, Tensor)
            return
        for child in call.children:
            if child.carried is None or child.carried not in self._projected:
                continue
            made, version = self._projected[child.carried]
            same = made.shape == first.shape and made.stride() == first.stride()
            if same and same_memory(made, first) and version_of(first) == version:
                call.carried = child.carried

    def _stable(self, output: Any, path: str) -> Any:
        if path not in self.frail:
            self._versions += [(t, version_of(t), path) for t in tensors_in(output)]
            return mapped(output, lambda tensor: tensor)  # lists and mappings may change as well
        return mapped(output, lambda tensor: tensor.clone())

    def _end_of_block(self) -> None:
        self._projected.clear()
        for form in self._forms:
            form.settle()
        self._forms.clear()
