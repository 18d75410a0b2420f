"""Edits: scale, zero, replace, knock out; each a small file, applied by `edit`."""

from probes.edits.function import edit_pattern, edit_scores, edit_z
from probes.edits.given import mean, replace
from probes.edits.knock_out import knock_out
from probes.edits.matched_random import matched_random
from probes.edits.scale import scale, zero
from probes.edits.scale_attention import scale_attention

__all__ = [
    "edit_pattern",
    "edit_scores",
    "edit_z",
    "knock_out",
    "matched_random",
    "mean",
    "replace",
    "scale",
    "scale_attention",
    "zero",
]
