"""Saved examples as the component shows them: words with tints, small pictures with patches."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import streamlit as st

from analysis.precision import plain
from dashboard.firing_on_picture import in_grey
from sae.feature_index.patches import fired_patches
from sae.feature_index.reading import FeatureIndex, IndexedExample

_PIXELS, _SMALL = 160, 64
"""Longer side of a picture on whose patches the feature fires, and of one that only stands by."""


def example_rows(
    index: FeatureIndex,
    stamp: float,
    examples: Sequence[IndexedExample],
    largest: float,
    *,
    pictures: bool = True,
) -> list[dict[str, Any]]:
    """What `dashboard.components.firing_examples` draws.

    Args:
        stamp: of the index.
        largest: strength of the deepest tint.
        pictures: whether pictures are sent that the feature does not fire on.
    """
    rows = []
    for one, patches in zip(examples, fired_patches(index, examples), strict=True):
        found: dict[str, Any] = {
            "name": f"{one.group}-{one.rank}",
            "strength": plain(one.strength, 3),
            "id": one.example,
            "where": _where(one),
            "words": _words(one, largest) if one.patch is None else [],
        }
        image = 0 if one.patch is None else one.patch[0]
        if patches or (pictures and one.patch is None):
            side = _PIXELS if patches else _SMALL
            source = _picture(index, stamp, one.number, image, side)
            if source:
                cells = [
                    {
                        "box": patch.box,
                        "share": min(patch.strength / largest, 1.0) if largest else 0.0,
                        "here": patch.here,
                        "text": f"patch ({patch.row}, {patch.column}): {plain(patch.strength, 3)}",
                    }
                    for patch in patches
                ]
                found["picture"] = {**source, "cells": cells}
        rows.append(found)
    return rows


def _where(one: IndexedExample) -> str:
    if one.patch is None:
        return f"{one.role}, position {one.position}"
    image, tile, row, column = one.patch
    which = f"image {image + 1}, " if image > 0 else ""
    part = f"tile {tile}, " if tile > 0 else ""
    return f"{which}{part}patch ({row}, {column})"


def _words(one: IndexedExample, largest: float) -> list[dict[str, Any]]:
    strengths = dict(one.fired)
    first = one.position - one.centre
    spaced = not any(word[:1].isspace() for word in one.words[1:])
    found = []
    for number, word in enumerate(one.words):
        strength = strengths.get(first + number, 0.0)
        found.append(
            {
                "text": word,
                "share": min(strength / largest, 1.0) if largest else 0.0,
                "here": number == one.centre,
                "spaced": spaced and number > 0,
                "about": f"strength {plain(strength, 3)}" if strength else "",
            }
        )
    return found


def _picture(
    index: FeatureIndex, stamp: float, number: int, image: int, side: int
) -> dict[str, Any] | None:
    if not 0 <= number < len(index.inputs):
        return None
    kept = index.inputs[number].pictures
    if not 0 <= image < len(kept):
        return None
    return _encoded(str(kept[image][0]), stamp, side, side == _PIXELS)


@st.cache_data(max_entries=512, show_spinner=False)
def _encoded(file: str, stamp: float, side: int, grey: bool) -> dict[str, Any] | None:
    """A picture decoded and encoded again, as a data URL with its size on the screen."""
    from PIL import Image

    try:
        with Image.open(file) as opened:
            image = in_grey(opened.convert("RGB")) if grey else opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    into = BytesIO()
    image.resize(size, how).save(into, format="PNG" if scale > 1 else "JPEG")
    kind = "png" if scale > 1 else "jpeg"
    url = f"data:image/{kind};base64,{base64.b64encode(into.getvalue()).decode()}"
    return {"url": url, "width": size[0], "height": size[1]}
