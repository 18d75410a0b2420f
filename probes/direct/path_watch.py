"""Stand at blocks and output projections of a model so that its residual path can be followed."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes import operations as ops
from probes.direct.residual_path import Arrival, Part, Place, ResidualPath, is_on_path
from probes.heads import Site
from probes.layout import Layout
from probes.module_stack import ModuleStack

if TYPE_CHECKING:
    from probes.subject import Subject


@dataclass(frozen=True)
class Written:
    """What an output projection read.

    Attributes:
        z: ``[... head value_width]`` with the axes that the projection saw before.
        functional: whether its weight was used without calling a module, as
            `torch.nn.MultiheadAttention` does: rows are then token by token.
    """

    z: Tensor
    bias: Tensor | None
    functional: bool

    def arranged(self, values: Tensor, examples: int) -> Tensor:
        """``[batch query ...]`` of values whose first axes are those of z before its heads."""
        before = self.z.ndim - 2
        rest = values.shape[before:]
        if self.functional and before == 1:
            return values.reshape(-1, examples, *rest).transpose(0, 1)
        rows = values.shape[0] if before > 1 else 1
        return values.reshape(rows, -1, *rest)


class PathWatch:
    """What is known of a forward whose residual path is followed.

    Attributes:
        mode: the mode that keeps the path in the graph.
        without_block: sites of stacks of blocks whose own block is not known.
        written: what every output projection that ran has read, and how.
    """

    def __init__(self, subject: Subject, arrived: Arrival) -> None:
        self.subject, self.layout = subject, subject.layout
        self.written: dict[Site, Written] = {}
        self.blocks = blocks_by_path(subject.model, self.layout)
        self.without_block = _without_block(self.layout)
        for site in self.layout.sites:
            if site.site not in self.layout.anatomy.blocks:
                # A pooling head: at least its own queries, keys and values are read, not carried.
                self.blocks.setdefault(site.path, [site.site])
        self._projections: dict[str, list[Site]] = defaultdict(list)
        self._weights: dict[int, list[Site]] = defaultdict(list)
        for site, found in self.layout.anatomy.projections.items():
            if found.path:
                self._projections[found.path].append(site)
            else:
                self._weights[id(found.weight)].append(site)
        self._uses: dict[int, int] = defaultdict(int)
        self._streams = _streams(self.blocks)
        self._begun: set[str] = set()
        inside = tuple(f"{path}." for path in self.blocks)
        paths = [path for path, _ in subject.model.named_modules() if not path.startswith(inside)]
        self._stack = ModuleStack(subject.model, [*paths, *self._projections])
        buffers = frozenset(id(buffer) for buffer in subject.model.buffers())
        self.mode = ResidualPath(self.place, arrived, self._functional, buffers)

    def place(self) -> Place:
        """The block that is running and the innermost module that is followed."""
        running = [path for path in self._stack.paths if path in self.blocks]
        block = self._block(running[-1]) if running else None
        return Place(block, self._stack.top)

    @contextmanager
    def watching(self) -> Iterator[ResidualPath]:
        """Follow the residual path of everything that this thread runs in the ``with`` block."""
        thread = threading.get_ident()
        handles: list[Any] = []
        try:
            with self._stack:
                for path in self.blocks:
                    module = self.subject.model.get_submodule(path)
                    hook = self._entry_hook(path, thread)
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                for path in self._projections:
                    module = self.subject.model.get_submodule(path)
                    handles.append(module.register_forward_hook(self._exit_hook(path, thread)))
                with self.mode:
                    yield self.mode
        finally:
            for handle in handles:
                handle.remove()

    def _block(self, path: str) -> Site:
        sites = self.blocks[path]
        return sites[(self._stack.times_called[path] - 1) % len(sites)]

    def _entry_hook(self, path: str, thread: int) -> Any:
        # See `ModuleStack` for the defaults: hooks of other threads may be called without.
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any = None) -> Any:
            if threading.get_ident() != thread or kwargs is None:
                return None
            hidden = kwargs.get("hidden_states")
            if not isinstance(hidden, Tensor):
                floating = (t for t in ops.tensors_in((args, kwargs)) if t.is_floating_point())
                hidden = next(floating, None)
            if hidden is None:
                return None
            stream = self._streams[self._block(path).tower]
            first = stream not in self._begun
            self._begun.add(stream)
            if not first and is_on_path(hidden):
                return None
            # A tower's stream begins here: what other towers wrote is its input, whatever way
            # it took.
            part = Part("embedding", name=stream) if first else Part("other", name=path)
            new = self.mode.source(hidden, part)
            swapped = [new if value is hidden else value for value in args]
            named = {name: new if value is hidden else value for name, value in kwargs.items()}
            return tuple(swapped), named

        return hook

    def _exit_hook(self, path: str, thread: int) -> Any:
        sites = self._projections[path]

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any, _: Any = None) -> Any:
            if threading.get_ident() != thread or not args or not isinstance(output, Tensor):
                return None
            site = sites[(self._stack.times_called[path] - 1) % len(sites)]
            bias = getattr(module, "bias", None)
            return self._projected(site, args[0], bias, output, False)

        return hook

    def _projected(
        self, site: Site, x: Tensor, bias: Any, output: Tensor, functional: bool
    ) -> Tensor:
        layout = self.layout.site(site)
        with torch._C.DisableTorchFunction():
            z = x.detach().reshape(*x.shape[:-1], layout.heads, layout.value_width)
        bias = bias.detach() if isinstance(bias, Tensor) else None
        self.written[site] = Written(z, bias, functional)
        return self.mode.source(output, Part("heads", site))

    def _functional(self, x: Tensor, weight: Tensor, bias: Any, output: Tensor) -> Tensor | None:
        sites = self._weights.get(id(weight))
        if not sites:
            return None
        site = sites[self._uses[id(weight)] % len(sites)]
        self._uses[id(weight)] += 1
        return self._projected(site, x, bias, output, True)


def blocks_by_path(model: nn.Module, layout: Layout) -> dict[str, list[Site]]:
    """Tower and layer of every block, by module path; one of each run where blocks are shared.

    Blocks without attention are in it where their place among the others tells their layer.
    """
    crossing = {t.name for t in layout.towers.values() if any(s.cross for s in t.sites.values())}
    blocks: dict[str, list[Site]] = {}
    for site in sorted(layout.anatomy.blocks, key=lambda site: site.tower in crossing):
        path = layout.anatomy.blocks[site].path
        known = blocks.setdefault(path, [])
        if not known or known[0].tower == site.tower:
            known.append(site)
    for tower in layout.towers.values():
        own = [path for path, sites in blocks.items() if sites[0].tower == tower.name]
        stacks = {path.rpartition(".")[0] for path in own}
        if tower.template.count("*") != 1 or len(stacks) != 1:
            continue
        stack = stacks.pop()
        for name, child in model.get_submodule(stack).named_children():
            if name.isdigit() and any(True for _ in child.parameters()):
                blocks.setdefault(f"{stack}.{name}", [Site(tower.name, int(name))])
    return blocks


def _without_block(layout: Layout) -> frozenset[Site]:
    stacked = [t for t in layout.towers.values() if "*" in t.template]
    sites = [place.site for tower in stacked for place in tower.sites.values()]
    return frozenset(site for site in sites if site not in layout.anatomy.blocks)


def _streams(blocks: dict[str, list[Site]]) -> dict[str, str]:
    """Tower -> the tower that its residual stream is named after: one stack, one stream."""
    stacks: dict[str, list[str]] = defaultdict(list)
    for path, sites in blocks.items():
        stacks[path.rpartition(".")[0]].append(sites[0].tower)
    streams: dict[str, str] = {}
    for towers in stacks.values():
        name = streams.get(towers[0], towers[0])
        streams.update(dict.fromkeys(towers, name))
    return streams
