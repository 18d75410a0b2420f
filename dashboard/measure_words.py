"""What a picture says of a measure: what it is, what a high value means, where it comes from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

_FAMILIES = (
    ("importance_", "What the model loses without the head; a high value means that it helps."),
    ("layer_off_", "What the model loses without the head's whole layer."),
    ("keep_one_", "What is lost with all other heads of the layer gone; low where the head "
     "does the layer's job alone."),
    ("atp_", "An estimate of what the model loses without the head, from gradients (AtP*, Kramár "
     "et al. 2024)."),
    ("mask_gradient_", "How much the loss would change with the head's output scaled (Michel et "
     "al. 2019)."),
    ("hisp_", "How much the loss would change with the head's output scaled, by gradients alone."),
    ("direct", "What the head writes straight towards the answer's logit, past all later layers."),
    ("relevancy_", "Attention weighted by its gradient towards the answer (Chefer et al. 2021)."),
    ("influence_", "What single attention weights do to the objective (MoA, Fu et al. 2024)."),
    ("patching", "How much of the clean answer comes back when the head's output is put back."),
    ("vhd", "How far the head's output changes when the image is taken away (He et al. 2024); a "
     "high value means that the head depends on the picture."),
    ("sink_mass", "Weight on the artefact tokens of the image; a high value means a visual sink."),
    ("sink_", "How sink tokens differ from others in this head."),
    ("saliency", "Attention times its gradient; a high value means that weights matter there."),
    ("retrieval", "How often the head reads the token that is copied out of a long text (Wu et al. "
     "2024)."),
    ("redundancy_", "How alike a head and the nearest other head of its model are."),
    ("pattern_entropy", "How evenly the head's sampled patterns spread over the atlas' clusters."),
    ("pattern_steadiness", "How often the head's pattern lies in its most common cluster."),
)  # fmt: skip
"""Measures of studies, by how their names begin."""


def said_of(measure: str) -> str:
    """One to three sentences about a measure; empty for one that is not ours."""
    known = _pages().get(measure)
    if known is not None:
        what, high, source = known
        return f"{what} {high} Source: {source}"
    return next((words for start, words in _FAMILIES if measure.startswith(start)), "")


@cache
def _pages() -> dict[str, list[str]]:
    """Of each measure's page: its first sentence, that on high values, its source."""
    file = Path(__file__).with_name("measure_words.json")
    return json.loads(file.read_text(encoding="utf-8"))
