"""A TransformerLens `TransformerBridge` that the caller has booted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from probes.loading import LoadOptions

if TYPE_CHECKING:
    from probes.subject import Subject


def matches(source: Any) -> bool:
    """Whether it is a TransformerBridge (TransformerLens itself is not imported)."""
    return any(
        kind.__name__ == "TransformerBridge" and kind.__module__.startswith("transformer_lens")
        for kind in type(source).__mro__
    )


def load(source: Any, options: LoadOptions) -> Subject:
    """A subject on the module inside the Bridge, whose parts the Bridge has replaced by its own.

    So the Bridge's hooks and edits stay in force, and outputs, config and generation are those of
    transformers. Nothing is booted here: a Bridge renames the modules of its model for good.
    """
    from probes.subject import Subject

    refused = ("dtype", "device", "device_map", "revision", "quantization", "trust_remote_code")
    options.refuse("a TransformerBridge; give it to `boot_transformers`", *refused)
    processor = options.processor or getattr(source, "processor", None) or source.tokenizer
    name = getattr(source.cfg, "model_name", "") or "bridge"
    return Subject(source.original_model, processor, name=name)
