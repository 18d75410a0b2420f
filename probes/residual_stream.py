"""Listen to the residual stream where it enters and leaves the blocks of chosen sites."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from probes.heads import Site
from probes.operations import tensors_in

if TYPE_CHECKING:
    from probes.layout import Layout
    from probes.module_stack import ModuleStack
    from probes.tap import Attached

ResidualListener = Callable[[Site, Tensor, int], None]
"""Gets a site, the residual stream ``[batch position model_width]`` and the step."""


class ResidualHooks:
    """Hooks on the blocks of a model, for the listeners of one thread's tap."""

    def __init__(self, model: nn.Module, layout: Layout, paths: Iterable[str]) -> None:
        self._model = model
        self._paths = sorted(paths)
        self._handles: list[Any] = []
        self._sites: dict[str, dict[int, list[Site]]] = defaultdict(lambda: defaultdict(list))
        for site in layout.sites:
            block = layout.anatomy.blocks.get(site.site)
            if block is not None:
                self._sites[block.path][site.occurrence].append(site.site)

    def start(
        self,
        stack: ModuleStack,
        acting: Callable[[], list[Attached]],
        step: Callable[[], int],
    ) -> None:
        """Hook the blocks; ``stack`` counts their calls."""
        thread = threading.get_ident()

        def tell(path: str, stream: Tensor | None, leaving: bool) -> None:
            runs = self._sites[path]
            sites = runs[sorted(runs)[(stack.times_called[path] - 1) % len(runs)]]
            for attached in acting():
                told = attached.on_block_output if leaving else attached.on_residual
                for site in sites if told is not None else ():
                    if site in attached.sites:
                        assert told is not None
                        attached.heard.add(site)
                        with torch.no_grad():
                            told(site, _stream(stream, path), step())

        def watch(path: str, module: nn.Module) -> None:
            def enter(module: nn.Module, args: Any, kwargs: Any = None) -> None:
                if threading.get_ident() == thread:
                    named = (kwargs or {}).get("hidden_states")
                    found = named if isinstance(named, Tensor) else next(tensors_in(args), None)
                    tell(path, found, False)

            def leave(module: nn.Module, args: Any, output: Any) -> None:
                if threading.get_ident() == thread:
                    tell(path, next(tensors_in(output), None), True)

            self._handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            self._handles.append(module.register_forward_hook(leave))

        for path in self._paths:
            watch(path, self._model.get_submodule(path))

    def stop(self) -> None:
        """Take the hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _stream(found: Tensor | None, path: str) -> Tensor:
    """``[batch position model_width]``; packed sequences get a batch axis of 1."""
    if found is None or not found.is_floating_point():
        raise ValueError(
            f"The residual stream must enter {path} as a tensor, found none. Choose other layers."
        )
    if found.ndim == 2:
        return found[None]
    return found.reshape(found.shape[0], -1, found.shape[-1])
