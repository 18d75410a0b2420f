"""`cfg.json` of SAELens: what it says of a coder, in files of version 6 and older ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae.exchange.json_object import read_object, true_or_false, whole_number
from sae.exchange.refusals import CoderFolderError
from sae.exchange.saelens.layout import KINDS, TRAINING_ONLY

ARCHITECTURES = (*KINDS, *TRAINING_ONLY)
NORMALISATIONS = ("none", "expected_average_only_in")
_MAJOR = re.compile(r"v?(\d+)(\.|$)")
_FIRST_NESTED = 6
_RENAMED = {
    "hook_point": "hook_name",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}


@dataclass(frozen=True)
class SaeLensConfig:
    """What `cfg.json` says.

    Attributes:
        architecture: one of `ARCHITECTURES`.
        width: ``d_in``.
        k: of topk, else None.
        centred: ``apply_b_dec_to_input``.
        scaled: whether rows were multiplied by one number that is not in the weights yet.
        compares_norms: whether topk chooses by strength times length of the decoder's row.
        facts: ``metadata``; in older files, all entries.
        entries: of the file.
    """

    architecture: str
    width: int
    k: int | None
    centred: bool
    scaled: bool
    compares_norms: bool
    facts: Mapping[str, Any]
    entries: Mapping[str, Any] = field(repr=False)


def read_config(path: Path) -> SaeLensConfig:
    """Read a `cfg.json`.

    Files before 6.0.0 have all entries side by side under other names; TopK is a standard coder
    there with another activation function. They are read as SAELens 6.54 does, but an activation
    function that it would take for ReLU unseen is refused.

    Raises:
        CoderFolderError: an entry is missing or wrong, or says something that no coder of ours
            computes.
    """
    entries = read_object(path)
    facts = entries.get("metadata", {})
    if not isinstance(facts, dict):
        raise CoderFolderError(
            f"`metadata` in {path} must be an object, got {facts!r}. Take another copy of it."
        )
    if not _is_nested(entries.get("sae_lens_version") or facts.get("sae_lens_version")):
        entries = facts = _modernised(entries, path)
    if "architecture" not in entries:
        raise CoderFolderError(f"{path} lacks `architecture`. Take another copy of it.")
    architecture = entries["architecture"]
    _must_be(architecture, ARCHITECTURES, "architecture", path)
    normalisation = entries.get("normalize_activations", "none")
    _must_be(normalisation, NORMALISATIONS, "normalize_activations", path)
    _must_be(
        entries.get("reshape_activations", "none"), ("none", "hook_z"), "reshape_activations", path
    )
    compares_norms = true_or_false(
        entries, "rescale_acts_by_decoder_norm", architecture in TRAINING_ONLY, path
    )
    return SaeLensConfig(
        architecture,
        whole_number(entries, "d_in", path),
        whole_number(entries, "k", path) if architecture == "topk" else None,
        true_or_false(entries, "apply_b_dec_to_input", True, path),
        normalisation != "none",
        compares_norms and architecture in ("topk", *TRAINING_ONLY),
        facts,
        entries,
    )


def _is_nested(version: Any) -> bool:
    found = _MAJOR.match(version) if isinstance(version, str) else None
    return found is not None and int(found[1]) >= _FIRST_NESTED


def _modernised(entries: dict[str, Any], path: Path) -> dict[str, Any]:
    found = {_RENAMED.get(name, name): value for name, value in entries.items()}
    found.setdefault("architecture", "standard")
    function = found.get("activation_fn") or "relu"
    _must_be(function, ("relu", "topk"), "activation_fn", path)
    if function == "topk":
        settings = found.get("activation_fn_kwargs")
        _must_be(found["architecture"], ("standard", "topk"), "architecture", path)
        found["architecture"] = "topk"
        found["k"] = settings.get("k") if isinstance(settings, dict) else None
    normalisation = found.get("normalize_activations") or "none"
    found["normalize_activations"] = (
        "expected_average_only_in" if normalisation is True else normalisation
    )
    if found.get("apply_b_dec_to_input") is None:
        found["apply_b_dec_to_input"] = True
    return found


def _must_be(value: Any, choices: tuple[str, ...], name: str, path: Path) -> None:
    if value not in choices:
        raise CoderFolderError(
            f"`{name}` in {path} must be one of {', '.join(choices)} to be a coder of headscope, "
            f"got {value!r}. Use SAELens for this one."
        )
