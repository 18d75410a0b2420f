"""Load a subject from a name, a folder, the hub, timm, a module or a TransformerBridge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

from probes.load_error import LoadError

if TYPE_CHECKING:
    from probes.subject import Subject

_OURS = {
    "bridge": "probes.loaders.bridge",
    "module": "probes.loaders.module",
    "bundled": "probes.loaders.bundled_name",
    "timm": "probes.loaders.timm_model",
    "folder": "probes.loaders.folder",
    "hub": "probes.loaders.hub",
}
"""Used where the package metadata is absent (a checkout on the path); the order is the rank."""


@dataclass(frozen=True)
class LoadOptions:
    """How to load: the keyword arguments of `load`, as the loaders get them."""

    processor: Any = None
    dtype: Any = None
    device: Any = None
    device_map: Any = None
    revision: str | None = None
    quantization: str | None = None
    trust_remote_code: bool = False

    def refuse(self, what: str, *names: str) -> None:
        """Raise if one of these options was given, since ``what`` has no use for it."""
        for name in names:
            if getattr(self, name) not in (None, False):
                raise LoadError(f"`{name}` does not apply to {what}. Leave it out.")


class Loader(Protocol):
    """Loads subjects from one kind of place: a module or an object with these two functions."""

    def matches(self, source: Any) -> bool:
        """Whether this loader is the one for ``source``."""
        ...

    def load(self, source: Any, options: LoadOptions) -> Subject:
        """The subject.

        Raises:
            LoadError: with one or two sentences for the user.
        """
        ...


def load(
    source: Any,
    processor: Any = None,
    *,
    dtype: Any = None,
    device: Any = None,
    device_map: Any = None,
    revision: str | None = None,
    quantization: str | None = None,
    trust_remote_code: bool = False,
) -> Subject:
    """A model with its processor, ready to be measured.

    Args:
        source: name of a bundled model, folder (`save_pretrained`), hub id, ``timm:NAME``,
            any `torch.nn.Module`, or a TransformerLens `TransformerBridge`. A bundled name wins
            over a folder of the same name: write ``./NAME`` for the folder.
        processor: tokenizer, image processor or processor to use instead of the model's own.
        dtype: ``"float32"``, ``"bfloat16"``, ``"float16"``, ``"auto"`` or a torch dtype; by
            default that of the checkpoint.
        device: where to put the model; by default the first GPU, else the CPU.
        device_map: spread the model over devices (``"auto"``), by accelerate.
        revision: branch, tag or commit of a hub model.
        quantization: ``"4bit"`` or ``"8bit"``, by bitsandbytes.
        trust_remote_code: run Python code that comes with the model. Read it first.

    Raises:
        LoadError: the model cannot be loaded; one or two sentences say why and what to do.
    """
    options = LoadOptions(
        processor, dtype, device, device_map, revision, quantization, trust_remote_code
    )
    if device is not None and device_map is not None:
        raise LoadError("`device` and `device_map` exclude each other. Give one of them.")
    for loader in _loaders():
        if loader.matches(source):
            return _guarded(loader.load, source, options)
    raise _unknown(source)


def _guarded(
    do: Callable[[Any, LoadOptions], Subject], source: Any, options: LoadOptions
) -> Subject:
    try:
        return do(source, options)
    except LoadError:
        raise
    except Exception as error:
        from probes.loaders.explain import explained

        raise explained(error, _name(source)) from error


def unknown_name(name: str, reason: str) -> LoadError:
    """The error for a name that is no model, with the bundled name that may have been meant."""
    from probes.bundled import bundled_models

    known = list(bundled_models())
    close = get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    advice = (
        f"Did you mean {close[0]!r}?"
        if close
        else f"Give a bundled name ({', '.join(known) or 'none installed'}), a folder, or a hub id."
    )
    return LoadError(f"Model {name!r} {reason}. {advice}")


def _unknown(source: Any) -> LoadError:
    if isinstance(source, str):
        reason = "is neither a bundled model, an existing folder, nor written like a hub id"
        return unknown_name(source, reason)
    return LoadError(
        "A model must be a name, a folder, a torch.nn.Module or a TransformerBridge, got "
        f"{type(source).__name__}. Pass one of those."
    )


def _name(source: Any) -> str:
    from os import PathLike

    return str(source) if isinstance(source, (str, PathLike)) else type(source).__name__


@cache
def _loaders() -> tuple[Loader, ...]:
    found = {point.name: point for point in entry_points(group="headscope.loaders")}
    # Loaders that a user installed come first: installing one is a decision.
    others: list[Loader] = [point.load() for name, point in found.items() if name not in _OURS]
    ours: list[Any] = [
        found[name].load() if name in found else import_module(path) for name, path in _OURS.items()
    ]
    return (*others, *ours)
