"""Sink dimensions as others have published them: a check on those that are found, no more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from probes.subject import Subject


@dataclass(frozen=True)
class Published:
    """Sink dimensions of one backbone.

    Attributes:
        name: of the backbone.
        families: beginnings of ``model_type`` in the configuration of its language model.
        width, layers: of the language model.
        dimensions: ascending.
    """

    name: str
    families: tuple[str, ...]
    width: int
    layers: int
    dimensions: tuple[int, ...]


PUBLISHED = (
    # Massive activations of Sun et al. (2024), and the released code of VAR (Kang et al., 2025).
    Published("LLaMA-2-7B", ("llama",), 4096, 32, (1415, 2533)),
    Published("LLaMA-2-13B", ("llama",), 5120, 40, (2100, 4743)),
    # Kang et al. (2025), as read in notes on the paper, not in its code.
    Published("Qwen2-VL-7B", ("qwen2_vl",), 3584, 28, (458, 2570)),
    Published("InternVL2-8B", ("internlm2",), 4096, 32, (3584,)),
)


def published_for(subject: Subject) -> Published | None:
    """The published dimensions of a model of this family and size, if there are any.

    Another checkpoint of the same shape (a chat model, a later generation) may have others.
    """
    config: Any = subject.config
    for part in (getattr(config, "text_config", None), getattr(config, "llm_config", None), config):
        family = str(getattr(part, "model_type", ""))
        size = getattr(part, "hidden_size", None), getattr(part, "num_hidden_layers", None)
        for known in PUBLISHED:
            if family.startswith(known.families) and size == (known.width, known.layers):
                return known
    return None
