"""The measures that describe a pattern in an atlas: why it lies where it lies on the map."""

from __future__ import annotations

from analysis.measure import Measure
from analysis.measures.registry import available_measures

FEATURES = (
    "self_attention",
    "previous_token",
    "next_token",
    "best_offset",
    "duplicate_token",
    "induction",
    "row_band",
    "local_share",
    "mean_hop",
    "attention_distance_ratio",
    "distance_profile",
    "first_key",
    "stripe",
    "block",
    "entropy_normalised",
    "role_mass",
)
"""Streaming measures, each with a page of its own; those that do not apply are left out."""


def feature_measures() -> list[Measure]:
    """The measures of `FEATURES`, in that order."""
    known = available_measures()
    return [known[name] for name in FEATURES]
