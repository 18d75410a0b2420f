"""All families of the parity suite."""

from __future__ import annotations

from . import encoders, language, multimodal, speech, vision

FAMILIES = [
    *language.FAMILIES,
    *encoders.FAMILIES,
    *vision.FAMILIES,
    *multimodal.FAMILIES,
    *speech.FAMILIES,
]
