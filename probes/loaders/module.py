"""Any torch module that the caller has already, with or without a processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from probes.loading import LoadOptions

if TYPE_CHECKING:
    from probes.subject import Subject


def matches(source: Any) -> bool:
    """Whether it is a torch module."""
    return isinstance(source, nn.Module)


def load(source: nn.Module, options: LoadOptions) -> Subject:
    """A subject on the caller's own module, which is neither copied, moved nor changed."""
    from probes.subject import Subject

    refused = ("dtype", "device", "device_map", "revision", "quantization", "trust_remote_code")
    options.refuse("a module that you hand over; move or cast it yourself", *refused)
    config = getattr(source, "config", None)
    name = getattr(config, "name_or_path", "") or type(source).__name__
    revision = getattr(config, "_commit_hash", None)
    return Subject(source, options.processor, name=name, revision=revision)
