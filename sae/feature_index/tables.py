"""The tables of an index: a line per latent, per example, and per example split into sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sae.activations.places import ordinals
from sae.feature_index.seen_firings import SeenFiring
from sae.feature_index.survey import FeatureSurvey
from sae.reading.direct_attribution import DirectAttribution
from sae.reading.windows import Window

if TYPE_CHECKING:
    import pandas as pd

MOST_SOURCES = 256
_FAINTEST = 5e-3
"""Share of the largest below which a head's part of a source goes into its rest."""
_EXAMPLE_WORDS = 48

Words = Mapping[int, Sequence[tuple[str, float]]]


def feature_table(
    survey: FeatureSurvey,
    decoder_shares: Float[Tensor, "latent head"],
    words: Words,
    against: Words,
    shown: Mapping[int, str],
) -> pd.DataFrame:
    """A line per latent, the dead ones too, in their order.

    Columns: ``latent firings density largest mean``; ``top_head`` (largest decoder share, -1 for a
    row of zeros) with its ``top_share``, ``decoder_shares`` and ``firing_shares`` (lists, by head),
    ``words`` with ``effects`` and ``words_against`` with ``effects_against``, ``followed`` (whether
    examples of it were kept) and ``example``, its strongest one in a few words.
    """
    import pandas as pd

    found, count = survey.examples, len(decoder_shares)
    known = torch.where(decoder_shares.isnan(), -1.0, decoder_shares)
    top_head = torch.where(known.amax(1) < 0, -1, known.argmax(1))
    every = range(count)
    return pd.DataFrame(
        {
            "latent": np.arange(count, dtype=np.int32),
            "firings": found.firings.numpy(),
            "density": (found.firings.double() / max(found.rows, 1)).numpy(),
            "largest": found.largest.numpy(),
            "mean": found.mean.numpy(),
            "top_head": top_head.to(torch.int16).numpy(),
            "top_share": known.amax(1).clamp_min(0).float().numpy(),
            "decoder_shares": list(decoder_shares.float().cpu().numpy()),
            "firing_shares": list(survey.shares.shares.float().numpy()),
            "words": [[word for word, _ in words.get(n, ())] for n in every],
            "effects": [_values(words, n) for n in every],
            "words_against": [[word for word, _ in against.get(n, ())] for n in every],
            "effects_against": [_values(against, n) for n in every],
            "followed": [n in shown for n in every],
            "example": [shown.get(n, "") for n in every],
        }
    )


def _values(words: Words, latent: int) -> NDArray[np.float32]:
    return np.array([value for _, value in words.get(latent, ())], dtype=np.float32)


def example_line(seen: SeenFiring, kind: str, group: int, rank: int, number: int) -> dict[str, Any]:
    """A line of examples.parquet.

    Columns: ``latent kind group rank`` (group: which tenth, 0 the strongest; 0 for ``top``),
    ``example position strength role``, ``number`` of the input that is kept (-1: none), ``words``
    around and which of them is the ``centre``, ``image tile row column left top right bottom`` of
    a patch, ``fired`` and ``strengths``: where in the same input the latent fires.
    """
    window, firing = seen.window, seen.firing
    patch, edges = window.patch, (np.nan,) * 4
    if patch is not None:
        edges = patch.box
    return {
        "latent": firing.latent,
        "kind": kind,
        "group": group,
        "rank": rank,
        "example": firing.example,
        "position": firing.position,
        "strength": firing.strength,
        "role": window.role,
        "number": number,
        "words": list(window.words),
        "centre": window.centre,
        "image": -1 if patch is None else patch.image,
        "tile": -1 if patch is None else patch.tile,
        "row": -1 if patch is None else patch.row,
        "column": -1 if patch is None else patch.column,
        **dict(zip(("left", "top", "right", "bottom"), map(float, edges), strict=True)),
        "fired": np.array([position for position, _ in seen.fired], dtype=np.int32),
        "strengths": np.array([strength for _, strength in seen.fired], dtype=np.float32),
    }


def attribution_line(direct: DirectAttribution, rank: int) -> dict[str, Any]:
    """A line of attributions.parquet: a firing as a sum over heads and sources, the faint left out.

    Columns: ``latent rank``, ``tower`` of the sources; ``head source brought``: lists, what a head
    brings from a position of the input (-1: of unknown place), the largest first; ``rest``: by
    head, what all others bring together; ``read_to``: no position from there on brings anything;
    ``constant pre_activation``. Constant, ``brought`` and
    ``rest`` add up to the pre-activation.
    """
    joint = direct.joint.double()
    place = torch.full((joint.shape[1],), -1)
    index = direct.sources.index.cpu()
    known = index >= 0
    place[known] = ordinals(direct.sources.map)[index[known]]
    flat = joint.flatten()
    order = flat.abs().sort(descending=True, stable=True).indices[:MOST_SOURCES]
    faintest = _FAINTEST * float(flat.abs().max()) if len(flat) else 0.0
    order = order[(flat[order].abs() >= faintest) & (flat[order] != 0)]
    head = torch.div(order, joint.shape[1], rounding_mode="floor")
    kept = torch.zeros(len(joint), dtype=torch.float64).index_add_(0, head, flat[order])
    return {
        "latent": direct.latent,
        "rank": rank,
        "tower": direct.sources.tower,
        "head": head.to(torch.int16).numpy(),
        "source": place[order % joint.shape[1]].to(torch.int32).numpy(),
        "brought": flat[order].float().numpy(),
        "read_to": int(place[(joint != 0).any(0)].max()) + 1 if bool((joint != 0).any()) else 0,
        "rest": (joint.sum(1) - kept).float().numpy(),
        "constant": direct.constant,
        "pre_activation": direct.pre_activation,
    }


def in_words(window: Window) -> str:
    """A window in one line, the firing token between signs; or where the patch lies.

    >>> in_words(Window("language", 7, "text", ("the", "cat", "sat"), 1))
    'the »cat« sat'
    """
    if window.words and window.role != "image":
        words = [" ".join(word.split("\n")) for word in window.words]
        between = "" if any(word[:1].isspace() for word in words[1:]) else " "
        bare = words[window.centre]
        lead = bare[: len(bare) - len(bare.lstrip())]
        words[window.centre] = f"{lead}»{bare.strip()}«"
        before = between.join(words[: window.centre])[-_EXAMPLE_WORDS:]
        after = between.join(words[window.centre + 1 :])[:_EXAMPLE_WORDS]
        parts = (before, words[window.centre], after)
        return between.join(part for part in parts if part).strip()
    if window.patch is not None:
        return f"patch ({window.patch.row}, {window.patch.column})"
    return f"{window.role} position"
