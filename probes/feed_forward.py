"""Find the module that writes what a block adds beside its attention: its feed-forward part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from probes.heads import Site

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

_ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-9}
_HALF_ROUNDING = 2e-2


@dataclass(frozen=True)
class FeedForwards:
    """The feed-forward modules of a subject, verified on one forward.

    Verified: the output of the block is its input, plus what one module on the attention's side
    gave, plus what this module gave.

    Attributes:
        paths: module path by site.
        missing: why there is none, one sentence by site.
    """

    paths: Mapping[Site, str]
    missing: Mapping[Site, str]


@dataclass
class _Seen:
    """One block: what entered, what its modules gave out in their order, and what was found.

    Attributes:
        attention: path of the attention within the block.
        runs: how often the block ran; more than once in a forward tells nothing.
    """

    attention: str
    entered: Tensor | None = None
    inside: list[tuple[str, Tensor]] = field(default_factory=list)
    found: str | None = None
    runs: int = 0


def feed_forwards(subject: Subject, batch: Batch) -> FeedForwards:
    """Run a subject once and look in every block for the module that writes beside its attention.

    A block with two attention layers, or with a norm after what is added (BERT), has none.
    """
    blocks = subject.layout.anatomy.blocks
    seen = {
        blocks[place.site].path: _Seen(place.path.removeprefix(f"{blocks[place.site].path}."))
        for place in subject.layout.sites
        if place.site in blocks
    }
    handles = []
    try:
        for path, record in seen.items():
            block = subject.model.get_submodule(path)
            handles.append(
                block.register_forward_pre_hook(_entering(record), with_kwargs=True, prepend=True)
            )
            handles.append(block.register_forward_hook(_leaving(record)))
            for name, module in block.named_modules():
                if name:
                    handles.append(module.register_forward_hook(_inside(record, name)))
        subject.forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    paths: dict[Site, str] = {}
    missing: dict[Site, str] = {}
    for place in subject.layout.sites:
        site = place.site
        if site not in blocks:
            missing[site] = f"The block around {place.path} is not known."
            continue
        path = blocks[site].path
        sharing = [other for other, block in blocks.items() if block.path == path]
        name = seen[path].found if len(sharing) == 1 and seen[path].runs == 1 else None
        if name is None:
            missing[site] = (
                f"No module of {path} was seen to write beside its attention such that input, "
                "attention and it add up to the block's output."
            )
        else:
            paths[site] = f"{path}.{name}"
    return FeedForwards(paths, missing)


def feed_forward_outputs(subject: Subject, batch: Batch) -> dict[str, Any]:
    """What the feed-forward module of every block gives out, by module path.

    A tensor, or a tuple where the module gives more than what it writes (routers of experts).

    Raises:
        ValueError: a block whose feed-forward module is not known.
    """
    found = feed_forwards(subject, batch)
    if found.missing:
        site, why = next(iter(found.missing.items()))
        raise ValueError(
            f"MLPs must be known to be frozen, that of {site} is not: {why} Leave out "
            "`freeze_mlps`."
        )
    given: dict[str, Any] = {}

    def keep(path: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            given[path] = _copied(output)

        return hook

    with _hooked(subject.model, {path: keep(path) for path in found.paths.values()}):
        subject.forward(batch)
    return given


def outputs_held(model: nn.Module, outputs: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Within, modules give out these tensors whatever they compute."""

    def hold(path: str) -> Any:
        return lambda module, args, output: _copied(outputs[path])

    return _hooked(model, {path: hold(path) for path in outputs})


@contextmanager
def _hooked(model: nn.Module, hooks: Mapping[str, Any]) -> Iterator[None]:
    handles = []
    try:
        for path, hook in hooks.items():
            handles.append(model.get_submodule(path).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _find(seen: _Seen, left: Tensor | None) -> str | None:
    """The outermost module that, with one on the attention's side before it, makes up the sum."""
    if seen.entered is None or left is None or left.shape != seen.entered.shape:
        return None
    wanted = left.float() - seen.entered.float()
    rounding = _ROUNDING.get(left.dtype, _HALF_ROUNDING)
    outputs = [(name, value) for name, value in seen.inside if value.shape == wanted.shape]
    names = [name for name, _ in outputs]
    first = next((n for n, name in enumerate(names) if _nested(name, seen.attention)), None)
    if first is None:
        return None
    found = []
    for late in range(first + 1, len(outputs)):
        name, written = outputs[late]
        if _nested(name, seen.attention):
            continue
        for early in range(first, late):
            if _nested(names[early], name):
                continue
            parts = [seen.entered.float(), outputs[early][1].float(), written.float()]
            size = torch.stack([part.abs() for part in parts]).sum(0)
            rest = (wanted - parts[1] - parts[2]).abs()
            if bool((rest <= rounding * size).all()):
                found.append(name)
    return min(found, key=lambda name: name.count("."), default=None)


def _nested(one: str, other: str) -> bool:
    """Whether one module is, or is inside, the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _entering(seen: _Seen) -> Any:
    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.runs += 1
        given = [*args, *kwargs.values()]
        seen.inside.clear()
        seen.entered = next((_part(v) for v in given if _is_stream(v)), None)

    return hook


def _leaving(seen: _Seen) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        seen.found = _find(seen, _first(output))
        seen.inside.clear()

    return hook


def _inside(seen: _Seen, name: str) -> Any:
    def hook(module: Any, args: Any, output: Any) -> None:
        value = _first(output)
        if value is not None:
            seen.inside.append((name, value))

    return hook


def _first(output: Any) -> Tensor | None:
    found: Any = output[0] if isinstance(output, (tuple, list)) and output else output
    return _part(found) if _is_stream(found) else None


def _copied(output: Any) -> Any:
    """Some blocks add to what their modules give in place (Falcon: attention to its MLP's)."""
    if isinstance(output, tuple):
        return tuple(_copied(part) for part in output)
    return output.detach().clone() if isinstance(output, Tensor) else output


def _part(value: Tensor) -> Tensor:
    """One sequence is proof enough, and a copy outlives changes in place."""
    return (value[:1] if value.ndim > 2 else value).detach().clone()


def _is_stream(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= 2
