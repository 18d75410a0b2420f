"""Which measures there are: ours and those that installed packages add."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points

from analysis.measure import Measure

GROUP = "headscope.measures"
"""Entry point group. An entry ``name = "module:OBJECT"`` adds the measure ``OBJECT``."""

BUILT_IN = {
    "entropy": "analysis.measures.spread:ENTROPY",
    "entropy_normalised": "analysis.measures.spread:NORMALISED_ENTROPY",
    "confidence": "analysis.measures.spread:CONFIDENCE",
    "effective_keys": "analysis.measures.spread:EFFECTIVE_KEYS",
    "self_attention": "analysis.measures.offsets:SELF_ATTENTION",
    "previous_token": "analysis.measures.offsets:PREVIOUS_TOKEN",
    "next_token": "analysis.measures.offsets:NEXT_TOKEN",
    "best_offset": "analysis.measures.best_offset:BEST_OFFSET",
    "duplicate_token": "analysis.measures.repeats:DUPLICATE_TOKEN",
    "induction": "analysis.measures.repeats:INDUCTION",
    "attention_distance": "analysis.measures.distance:ATTENTION_DISTANCE",
    "attention_distance_ratio": "analysis.measures.distance:ATTENTION_DISTANCE_RATIO",
    "attention_span": "analysis.measures.attention_span:ATTENTION_SPAN",
    "distance_profile": "analysis.measures.distance_profile:DISTANCE_PROFILE",
    "distance_lift": "analysis.measures.distance_profile:DISTANCE_LIFT",
    "attention_distance_patches": "analysis.measures.hops:ATTENTION_DISTANCE_PATCHES",
    "mean_hop": "analysis.measures.hops:MEAN_HOP",
    "local_share": "analysis.measures.hops:LOCAL_SHARE",
    "hop_mass": "analysis.measures.hops:HOP_MASS",
    "hop_disc": "analysis.measures.hops:HOP_DISC",
    "hop_density": "analysis.measures.hops:HOP_DENSITY",
    "hop_lift": "analysis.measures.hops:HOP_LIFT",
    "hop_mass_manhattan": "analysis.measures.hops:HOP_MASS_MANHATTAN",
    "hop_disc_manhattan": "analysis.measures.hops:HOP_DISC_MANHATTAN",
    "hop_density_manhattan": "analysis.measures.hops:HOP_DENSITY_MANHATTAN",
    "hop_lift_manhattan": "analysis.measures.hops:HOP_LIFT_MANHATTAN",
    "hop_mass_euclidean": "analysis.measures.hops:HOP_MASS_EUCLIDEAN",
    "hop_disc_euclidean": "analysis.measures.hops:HOP_DISC_EUCLIDEAN",
    "hop_density_euclidean": "analysis.measures.hops:HOP_DENSITY_EUCLIDEAN",
    "hop_lift_euclidean": "analysis.measures.hops:HOP_LIFT_EUCLIDEAN",
    "row_band": "analysis.measures.row_band:ROW_BAND",
    "role_mass": "analysis.measures.roles:ROLE_MASS",
    "modality_dominance": "analysis.measures.dominance:MODALITY_DOMINANCE",
    "attention_efficiency": "analysis.measures.dominance:ATTENTION_EFFICIENCY",
    "text_share": "analysis.measures.dominance:TEXT_SHARE",
    "modality_flow": "analysis.measures.flow:MODALITY_FLOW",
    "text_shift": "analysis.measures.flow:TEXT_SHIFT",
    "image_concentration": "analysis.measures.image_focus:IMAGE_CONCENTRATION",
    "raster_shift": "analysis.measures.raster_shift:RASTER_SHIFT",
    "spatial_entropy": "analysis.measures.spatial_entropy:SPATIAL_ENTROPY",
    "gaze_shift": "analysis.measures.gaze:GAZE_SHIFT",
    "box_mass": "analysis.measures.text_to_box:BOX_MASS",
    "box_share": "analysis.measures.text_to_box:BOX_SHARE",
    "box_overlap": "analysis.measures.text_to_box:BOX_OVERLAP",
    "pointing_game": "analysis.measures.text_to_box:POINTING_GAME",
    "first_key": "analysis.measures.sinks:FIRST_KEY",
    "sink_weight": "analysis.measures.sinks:SINK_WEIGHT",
    "sink_rate": "analysis.measures.sinks:SINK_RATE",
    "sequence_length": "analysis.measures.sequence_length:SEQUENCE_LENGTH",
    "column_norm": "analysis.measures.focus:COLUMN_NORM",
    "overfocus": "analysis.measures.focus:OVERFOCUS",
    "stripe": "analysis.measures.stripe:STRIPE",
    "block": "analysis.measures.block:BLOCK",
    "head_similarity": "analysis.measures.similarity:HEAD_SIMILARITY",
    "z_norm": "analysis.measures.norms:Z_NORM",
    "contribution_norm": "analysis.measures.norms:CONTRIBUTION_NORM",
    "stable_rank": "analysis.measures.rank:STABLE_RANK",
}
"""Used where the package's metadata is absent (a checkout that is not installed)."""


def available_measures() -> dict[str, Measure]:
    """All measures by name, ours first.

    Raises:
        ValueError: if an installed package adds a measure that does not load, that is no measure
            or that bears the name of another.
    """
    found = {name: _load(where) for name, where in BUILT_IN.items()}
    for entry in entry_points(group=GROUP):
        if BUILT_IN.get(entry.name) == entry.value:
            continue
        try:
            measure = entry.load()
        except Exception as error:
            raise ValueError(
                f"Measure {entry.name!r} must load from {entry.value!r}, got {error!r}. Update or "
                "uninstall the package that adds it."
            ) from error
        if not isinstance(measure, Measure) or measure.name != entry.name:
            raise ValueError(
                f"Measure {entry.name!r} must be an object of that name with the attributes of "
                f"analysis.measure.Measure, got {measure!r}. Update or uninstall its package."
            )
        if entry.name in found:
            raise ValueError(
                f"Measure {entry.name!r} must be added once, and {entry.value!r} adds it again. "
                "Uninstall that package."
            )
        found[entry.name] = measure
    return found


def select_measures(names: str | Iterable[str] = "all") -> list[Measure]:
    """The measures that are named, in the order of `available_measures`.

    ``"all"`` (alone or among names) stands for every measure that is not costly.

    Raises:
        ValueError: for a name that is no measure; the sentence suggests close ones.
    """
    asked = names.split(",") if isinstance(names, str) else list(names)
    wanted = {name.strip() for name in asked if name.strip()}
    known = available_measures()
    for name in sorted(wanted - known.keys() - {"all"}):
        close = get_close_matches(name, known, n=3, cutoff=0.5)
        hint = (
            f"Did you mean {' or '.join(close)}?" if close else f"Choose from {', '.join(known)}."
        )
        raise ValueError(f"A measure must be one of {len(known)} names, got {name!r}. {hint}")
    if not wanted:
        raise ValueError("There must be at least one measure, got none. Ask for 'all'.")
    return [
        measure
        for name, measure in known.items()
        if name in wanted or ("all" in wanted and not measure.costly)
    ]


def _load(where: str) -> Measure:
    module, _, name = where.partition(":")
    return getattr(import_module(module), name)
