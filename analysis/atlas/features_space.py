"""The space in which patterns are compared: measured features, the autoencoder's latent, or both.

A feature counts by how far it is from what uniform attention would give, so that it says the same
of a short and of a long sequence. What size alone does to the rest is taken out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.atlas.sizes import size_effect

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]
Kind = Literal["both", "features", "latent"]

LATENT_WEIGHT = 0.3
"""Spread of the latent beside that of the features, which is 1.

On planted patterns the latent alone tells stripes at different keys apart, and resolutions: at 1
to 1 it takes a kind to pieces. At 0.3 it still separates what no feature describes.
"""

KEPT = 0.99
"""Share of the variance that the principal components of a space keep."""

_SHARE_SLACK = 1e-6
_SAME = 0.99


@dataclass(frozen=True)
class FeatureColumns:
    """Which features count, and in what form.

    Attributes:
        names: the columns that count.
        forms: for each, ``share`` (value minus null) or ``ratio`` (log of value over null).
        scales: what each is divided by.
        left_out: the others, each with a sentence why.
        partly: features that are not measured on some samples, and on what share; they count
            there as under uniform attention.
    """

    names: tuple[str, ...]
    forms: tuple[str, ...]
    scales: tuple[float, ...]
    left_out: dict[str, str]
    partly: dict[str, float]

    def apply(self, features: pd.DataFrame, nulls: pd.DataFrame) -> Array:
        """Float ``[sample column]``: 0 as under uniform attention or where not measured.

        Raises:
            ValueError: a column is not there.
        """
        absent = [name for name in self.names if name not in features or name not in nulls]
        if absent:
            raise ValueError(
                f"Features must have the column {absent[0]!r}, got {len(features.columns)} others. "
                "Measure the same features in both."
            )
        made = np.zeros((len(features), len(self.names)))
        for place, (name, form, scale) in enumerate(
            zip(self.names, self.forms, self.scales, strict=True)
        ):
            away = _away(features[name], nulls[name], form) / scale
            made[:, place] = np.where(np.isfinite(away), away, 0.0)
        return made


def choose_columns(features: pd.DataFrame, nulls: pd.DataFrame) -> FeatureColumns:
    """The features of which something can be told, and the form that suits each.

    A share (all values and nulls within -1 and 1) counts as it is: a difference of 0.5 in weight is
    the same whichever feature it is in. The logs of quantities with other units are divided so that
    each spreads as widely as a share that is 0 or 0.5. Of two features that go together everywhere
    the first one counts.
    """
    names, forms, scales = [], [], []
    left_out: dict[str, str] = {}
    partly: dict[str, float] = {}
    kept: dict[str, Array] = {}
    for name in map(str, features.columns):
        value, null = features[name].to_numpy(float), nulls[name].to_numpy(float)
        known = np.isfinite(value) & np.isfinite(null)
        if not known.any():
            left_out[name] = "It is not measured on any sample."
            continue
        form = _form(value[known], null[known])
        if form is None:
            left_out[name] = (
                "It is neither a share nor a quantity above 0, so sizes do not compare."
            )
            continue
        away = _away(features[name], nulls[name], form)[known]
        if np.ptp(away) <= 1e-9 * max(1.0, float(np.abs(away).max())):
            left_out[name] = "It is the same on all samples."
            continue
        twin = next((n for n in names if _alike(kept[n], away, known)), None)
        if twin is not None:
            left_out[name] = f"It says the same as {twin}: their correlation is above {_SAME}."
            continue
        kept[name] = np.where(known, _away(features[name], nulls[name], form), np.nan)
        names.append(name)
        forms.append(form)
        # 0.25 is the spread of a share that is 0 on one half and 0.5 on the other.
        scales.append(1.0 if form == "share" else float(away.std()) / 0.25)
        if not known.all():
            partly[name] = float(1 - known.mean())
    return FeatureColumns(tuple(names), tuple(forms), tuple(scales), left_out, partly)


def make_space(
    features: Array | None,
    latents: NDArray[np.floating] | None,
    samples: pd.DataFrame,
    kind: Kind = "both",
    latent_weight: float = LATENT_WEIGHT,
) -> Array:
    """Float ``[sample axis]``: centred principal components, widest first.

    Features and latent each have the size effect taken out and total variance 1, the latent then
    times ``latent_weight`` squared. A space of no variance has one axis of zeros.

    Args:
        features: ``[sample column]`` of `FeatureColumns.apply`.
        latents: ``[sample latent]`` of `Autoencoder.encode`.
        kind: which of the two count.

    Raises:
        ValueError: what ``kind`` asks for is not there.
    """
    parts: list[Array] = []
    if kind in ("both", "features"):
        parts.append(_unit(_need(features, "features"), samples))
    if kind in ("both", "latent"):
        weight = latent_weight if kind == "both" else 1.0
        parts.append(weight * _unit(_need(latents, "latents"), samples))
    joined = np.hstack(parts)
    # A full decomposition: the randomised one would need a seed, and differ by machine.
    _, spread, axes = np.linalg.svd(joined, full_matrices=False)
    share = np.cumsum(spread**2)
    if not len(share) or share[-1] <= 1e-20:
        return np.zeros((len(samples), 1))
    kept = int(np.searchsorted(share, KEPT * share[-1])) + 1
    axes = axes[:kept] * np.sign(axes[np.arange(kept), np.abs(axes[:kept]).argmax(1)])[:, None]
    return joined @ axes.T


def _need(values: NDArray[np.floating] | None, name: str) -> Array:
    if values is None:
        raise ValueError(f"A space of {name} needs `{name}`, got none. Pass them or take others.")
    return np.asarray(values, np.float64)


def _unit(values: Array, samples: pd.DataFrame) -> Array:
    rest = values - size_effect(values, samples)
    rest = rest - rest.mean(0)
    total = float(rest.var(0).sum())
    return rest / np.sqrt(total) if total > 1e-20 else np.zeros_like(rest)


def _form(value: Array, null: Array) -> str | None:
    if max(np.abs(value).max(), np.abs(null).max()) <= 1 + _SHARE_SLACK:
        return "share"
    return "ratio" if value.min() > 0 and null.min() > 0 else None


def _alike(kept: Array, away: Array, known: NDArray[np.bool_]) -> bool:
    """Whether two features are known on the same samples and go together there."""
    if not np.array_equal(np.isfinite(kept), known):
        return False
    return bool(np.corrcoef(kept[known], away)[0, 1] > _SAME)


def _away(value: pd.Series, null: pd.Series, form: str) -> Array:
    seen, expected = value.to_numpy(np.float64), null.to_numpy(np.float64)
    if form != "ratio":
        return seen - expected
    return np.log(seen, where=seen > 0, out=np.full_like(seen, np.nan)) - np.log(
        expected, where=expected > 0, out=np.full_like(seen, np.nan)
    )
