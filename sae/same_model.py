"""Whether a model is the one that a coder was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from probes.fingerprint import fingerprint

if TYPE_CHECKING:
    from probes.subject import Subject
    from sae.coders.coder import Coder


def refuse_other_model(
    coder: Coder, subject: Subject, otherwise: str = "say `other_model=True`"
) -> None:
    """Nothing, if a coder says of this model, or of none, that it was trained on it.

    Features of one model mean nothing in another of the same width. Weights are compared by
    `probes.fingerprint`, of which this takes one: ask once, not in every forward.

    Args:
        otherwise: how to use the coder all the same, for the sentence.

    Raises:
        ValueError: it was another model, or other weights of this one; or weights were moved out of
            memory (`device_map`) and cannot be compared.
    """
    known: Mapping[str, Any] = coder.about.get("subject") or {}
    wanted = known.get("fingerprint")
    if wanted is None or wanted == fingerprint(subject.model):
        return
    dtype = str(subject.dtype).removeprefix("torch.")
    weights = f" in {known.get('dtype')}" if known.get("dtype") not in (None, dtype) else ""
    away = any(parameter.is_meta for parameter in subject.model.parameters())
    mine = "weights that are not all in memory to be compared" if away else "other weights"
    raise ValueError(
        f"The model must be the one that the coder was trained on, {known.get('name')!r}{weights}, "
        f"got {subject.name!r} in {dtype} with {mine}. Give that model, or {otherwise} to use the "
        "coder on this one all the same."
    )
