"""Pooled patterns of sampled heads and inputs, with what measures say of each: kept in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.atomic_file import written_atomically
from analysis.run_files import RunError, read_table

if TYPE_CHECKING:
    import pandas as pd

VIEWS = ("patches", "tokens", "window", "cross")
SAMPLE_COLUMNS = (
    "tower", "layer", "head", "example", "view", "queries", "keys", "causal", "part"
)  # fmt: skip
"""Columns that every sample has; `mass` and `empty` may follow."""

_PATTERNS, _SAMPLES, _FEATURES = "patterns.safetensors", "samples.parquet", "features.parquet"
_AGAIN = "Run `headscope atlas` on the model again, into another folder."
_ROUNDING = 5e-3
"""A row of float16 numbers that sums to one sums to within this."""


@dataclass(frozen=True, eq=False)
class PatternSet:
    """Patterns of sampled heads on sampled inputs, all of one size.

    Attributes:
        images: float16 ``[sample side side]``, query down, key right; every row sums to one, or to
            0 where no query of the row has weight on what is drawn (`samples.empty` says so).
        samples: a line per sample: ``tower layer head example``; ``view``, one of `VIEWS`;
            ``queries keys``, positions before pooling; ``causal``; ``part``, which tile or window
            of the example (0 where there is one). Where they were collected: ``mass``, the mean
            weight of a query on what is drawn (the rest went to CLS, registers, other images, a
            learned sink), and ``empty``, the number of queries with none there.
        features: the same lines; a column per measure, ``"measure"`` or ``"measure[variant]"``,
            float64, NaN where it was not measured on that example.
        nulls: the same shape: what each would be on the uniform pattern.
        seed: of the sampling.

    Raises:
        ValueError: lines, columns or sizes that do not fit together, rows that are no
            distributions.
    """

    images: NDArray[np.float16]
    samples: pd.DataFrame
    features: pd.DataFrame
    nulls: pd.DataFrame
    side: int
    seed: int = 0

    def __post_init__(self) -> None:
        shape = (len(self.samples), self.side, self.side)
        if self.images.shape != shape or self.images.dtype != np.float16:
            raise ValueError(
                f"`images` must be float16 of shape {shape}, got {self.images.dtype} of "
                f"{self.images.shape}. Pass one image of side x side for each line of `samples`."
            )
        missing = [name for name in SAMPLE_COLUMNS if name not in self.samples]
        if missing:
            raise ValueError(f"`samples` must have the columns {', '.join(missing)}. Add them.")
        unknown = sorted(set(self.samples["view"]) - set(VIEWS))
        if unknown:
            raise ValueError(f"`view` must be one of {', '.join(VIEWS)}, got {unknown[0]!r}.")
        for name, frame in (("features", self.features), ("nulls", self.nulls)):
            if len(frame) != len(self.samples):
                raise ValueError(
                    f"`{name}` must have a line for each of {len(self.samples)} samples, got "
                    f"{len(frame)}."
                )
        if list(self.features.columns) != list(self.nulls.columns):
            raise ValueError("`features` and `nulls` must have the same columns in one order.")
        self._check_rows()

    def __len__(self) -> int:
        return len(self.samples)

    def of(self, chosen: NDArray[np.bool_]) -> PatternSet:
        """The patterns that are chosen, ``[sample]``; features of which they have none are gone."""
        features = self.features[chosen]
        known = [name for name in features if features[name].notna().any()]
        return PatternSet(
            self.images[chosen],
            self.samples[chosen].reset_index(drop=True),
            features[known].reset_index(drop=True),
            self.nulls.loc[chosen, known].reset_index(drop=True),
            self.side,
            self.seed,
        )

    def _check_rows(self) -> None:
        if not len(self):
            return
        sums = self.images.sum(-1, dtype=np.float32)
        wrong = ~(np.abs(sums - 1) < _ROUNDING) & (sums != 0)
        if wrong.any() or float(self.images.min()) < 0:
            place = np.argwhere(wrong)[0].tolist() if wrong.any() else [0, 0]
            raise ValueError(
                f"Rows of `images` must be distributions, got row {place[1]} of sample {place[0]} "
                f"that sums to {sums[tuple(place)]:.4g}, least weight {self.images.min():.4g}. "
                "Pool patterns whose rows sum to one."
            )

    def save(self, folder: Path) -> None:
        """Write ``patterns.safetensors``, ``samples.parquet`` and ``features.parquet``.

        Raises:
            DiskFull: no room; files of the same name that stood there may be of another set.
        """
        from safetensors.numpy import save

        about = {"side": str(self.side), "seed": str(self.seed)}
        folder.mkdir(parents=True, exist_ok=True)
        with written_atomically(folder / _SAMPLES) as temporary:
            self.samples.to_parquet(temporary, index=False)
        with written_atomically(folder / _FEATURES) as temporary:
            _beside(self.features, self.nulls).to_parquet(temporary, index=False)
        with written_atomically(folder / _PATTERNS) as temporary:
            # Not save_file: its files can be read by their owner alone, whatever the umask.
            images = np.ascontiguousarray(self.images)
            temporary.write_bytes(save({"images": images}, {"about": json.dumps(about)}))

    @classmethod
    def load(cls, folder: Path) -> PatternSet:
        """The set that `save` wrote into a folder.

        Raises:
            RunError: a file cannot be read.
            ValueError: there is none, or its files do not belong together.
        """
        import pandas as pd
        from safetensors import SafetensorError, safe_open

        absent = [n for n in (_PATTERNS, _SAMPLES, _FEATURES) if not (folder / n).is_file()]
        if absent:
            raise ValueError(
                f"{folder} must hold the patterns of an atlas, {', '.join(absent)} is not there. "
                "Run `headscope atlas` on the model to keep patterns."
            )
        samples = read_table(folder / _SAMPLES, _AGAIN)
        both = read_table(folder / _FEATURES, _AGAIN)
        try:
            with safe_open(folder / _PATTERNS, "numpy") as file:
                images = file.get_tensor("images")
                about = json.loads((file.metadata() or {})["about"])
                side, seed = int(about["side"]), int(about["seed"])
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise RunError(f"{folder / _PATTERNS} cannot be read ({error}). {_AGAIN}") from error
        features, nulls = (
            pd.DataFrame(
                {n.removeprefix(kind): both[n] for n in both if str(n).startswith(kind)},
                index=samples.index,
            )
            for kind in ("value:", "null:")
        )
        return cls(images, samples, features, nulls, side, seed)


def _beside(features: pd.DataFrame, nulls: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    frames = [features.add_prefix("value:"), nulls.add_prefix("null:")]
    return pd.concat([frame.reset_index(drop=True) for frame in frames], axis=1)
