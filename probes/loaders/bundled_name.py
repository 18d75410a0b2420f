"""Models that come with headscope, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probes.bundled import bundled_models
from probes.load_error import LoadError
from probes.loading import LoadOptions

if TYPE_CHECKING:
    from probes.subject import Subject


def matches(source: Any) -> bool:
    """Whether it is the name of a bundled model."""
    return isinstance(source, str) and source in bundled_models()


def load(source: str, options: LoadOptions) -> Subject:
    """The bundled model of this name."""
    from probes.loaders.pretrained import load_pretrained

    options.refuse("a bundled model", "revision", "trust_remote_code")
    entry = bundled_models()[source]
    if not entry.path.is_dir():
        raise LoadError(
            f"The bundled model {source!r} is listed but its folder is missing. "
            "Install headscope again, or run `make data` in a checkout."
        )
    return load_pretrained(str(entry.path), options, name=source, kind=entry.kind)
