"""Which modules of a model matter for restarting it: towers' stacks, their blocks, what is around.

A *block* holds attention and hands the residual stream on. What lies around the blocks is either
on the way to one (a model, an encoder) or leads to none (an embedding, a projector). Inside a
block only the modules around its attention matter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import takewhile
from typing import Literal

from torch import nn

from probes.heads import Site
from probes.layout import Layout, SiteLayout

Role = Literal["stack", "block", "leaf", "inner"]
_LISTS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


class Outline:
    """The modules to watch, by the part they play.

    Attributes:
        path: module to its path, in the order of the model's tree.
        role: module to ``stack`` (holds blocks), ``block``, ``leaf`` (outside of blocks, holds no
            attention), ``inner`` (in a block, around its attention).
        projected: projection module to the sites that it projects, in order of its calls.
        attending: attention module to the sites whose z no projection module reads.
        relays: inner modules that hold an attention layer of a block that has several.
        partial: stacks that hold some attention layers and not all.
    """

    def __init__(self, model: nn.Module, layout: Layout) -> None:
        self.path: dict[nn.Module, str] = {}
        self.role: dict[nn.Module, Role] = {}
        self.projected: dict[nn.Module, list[Site]] = defaultdict(list)
        self.attending: dict[nn.Module, list[SiteLayout]] = defaultdict(list)
        self.relays: set[nn.Module] = set()
        self.partial: set[nn.Module] = set()
        ends = {site: self._end(model, layout, site) for site in layout.sites}
        self._ends = [f"{end}." for end in ends.values()]
        self._blocks = set()
        for site, end in ends.items():
            known = layout.anatomy.blocks.get(site.site)
            self._blocks |= _with_others(model, known.path if known else _around(model, site, end))
        self._watch(model, "", "block" if "" in self._blocks else "stack")

    def watched(self) -> Iterator[tuple[str, nn.Module]]:
        """Path and module of all that is watched."""
        for module, path in self.path.items():
            yield path, module

    def _end(self, model: nn.Module, layout: Layout, site: SiteLayout) -> str:
        found = layout.anatomy.projections.get(site.site)
        if found is not None and found.path:
            self.projected[model.get_submodule(found.path)].append(site.site)
            return found.path
        self.attending[model.get_submodule(site.path)].append(site)
        return site.path

    def _held(self, path: str) -> int:
        start = f"{path}." if path else ""
        return sum(end.startswith(start) for end in self._ends)

    def _watch(self, module: nn.Module, path: str, role: Role, several: bool = False) -> None:
        if module in self.role or isinstance(module, nn.ModuleList | nn.ModuleDict):
            return
        self.path[module], self.role[module] = path, role
        held = self._held(path)
        several = several or (role == "block" and held > 1)
        if role == "inner" and held and several:
            self.relays.add(module)
        if role == "stack" and held < len(self._ends):
            self.partial.add(module)
        if not held or module in self.projected:
            return
        inside = role in ("block", "inner")
        for name, child in _children(module):
            below = f"{path}.{name}".lstrip(".")
            if inside:
                self._watch(child, below, "inner", several)
            elif below in self._blocks:
                self._watch(child, below, "block")
            else:
                self._watch(child, below, "stack" if self._held(below) else "leaf")


def _around(model: nn.Module, site: SiteLayout, end: str) -> str:
    """What is like a block around an attention layer: an item of a list, or the smallest module
    that makes the attention and projects it."""
    both = zip(site.path.split("."), end.split("."), strict=False)
    parts = [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], both)]
    for length in range(len(parts), 0, -1):
        if isinstance(model.get_submodule(".".join(parts[: length - 1])), _LISTS):
            return ".".join(parts[:length])
    return ".".join(parts)


def _with_others(model: nn.Module, path: str) -> set[str]:
    """A block, and those beside it in its list, which may have no attention."""
    parent = path.rpartition(".")[0]
    container = model.get_submodule(parent)
    if not path or not isinstance(container, _LISTS):
        return {path}
    return {path, *(f"{parent}.{name}".lstrip(".") for name, _ in container.named_children())}


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Children by name; those of a list, which is never called itself, in its place."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            for inner, grandchild in _children(child):
                yield f"{name}.{inner}", grandchild
        else:
            yield name, child
