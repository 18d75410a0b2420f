"""The head table: one tidy line per head, measure, variant and inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.atomic_file import written_atomically
from analysis.run_files import read_table
from analysis.table_form import COLUMNS, NUMBERS, RANGES, check, listed, tidy

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "NUMBERS", "RANGES", "HeadTable"]

_ATTENTION_LAYERS = "layers"


@dataclass(frozen=True, repr=False)
class HeadTable:
    """Scores of heads with intervals and nulls.

    Attributes:
        frame: a DataFrame with the columns ``tower layer head measure variant inputs value ci_low
            ci_high n null_low null_high unit``. ``value`` is NaN where a measure could not be
            taken. ``n`` is the number of examples. ``inputs`` names the data set or probe.
        layers: how many blocks each tower has, those without softmax attention included;
            decides the height of `grid`. Read off the frame where it is not given.

    Raises:
        ValueError: missing or unknown columns, a line given twice, a variant with two units, a
            value outside of its unit's range.
    """

    frame: pd.DataFrame
    layers: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        frame = tidy(self.frame)
        check(frame)
        deepest = frame.groupby("tower", sort=False)["layer"].max()
        layers = {
            str(tower): max(int(layer) + 1, self.layers.get(str(tower), 0))
            for tower, layer in deepest.items()
        }
        object.__setattr__(self, "frame", frame)
        object.__setattr__(self, "layers", layers)

    @property
    def towers(self) -> list[str]:
        return list(dict.fromkeys(self.frame["tower"]))

    @property
    def measures(self) -> list[str]:
        """Names of the measures, in the order in which they stand."""
        return list(dict.fromkeys(self.frame["measure"]))

    def variants(self, measure: str, tower: str | None = None) -> list[str]:
        """Variants of a measure; a measure without parameters has the one variant ``""``."""
        return list(dict.fromkeys(self._of(measure, tower)["variant"]))

    def unit(self, measure: str, variant: str | None = None) -> str:
        """Unit of a measure; of its first variant where none is given."""
        lines = self._of(measure, None)
        if variant is not None:
            lines = lines[lines["variant"] == variant]
        return str(lines["unit"].iloc[0])

    def select(
        self,
        measure: str | Iterable[str] | None = None,
        tower: str | Iterable[str] | None = None,
        variant: str | Iterable[str] | None = None,
        inputs: str | Iterable[str] | None = None,
    ) -> HeadTable:
        """The lines that match everything that is given; each may be one name or several."""
        frame = self.frame
        wanted = {"measure": measure, "tower": tower, "variant": variant, "inputs": inputs}
        for column, names in wanted.items():
            if names is not None:
                several = [names] if isinstance(names, str) else list(names)
                frame = frame[frame[column].isin(several)]
        return HeadTable(frame, self.layers)

    def lines(
        self,
        measure: str,
        tower: str | None = None,
        variant: str | None = None,
        inputs: str | None = None,
    ) -> pd.DataFrame:
        """The lines of one measure in one tower, one per head.

        Without ``variant``, those of the plain measure, if it has a plain variant ``""``.

        Raises:
            ValueError: nothing matches, or several towers, variants or inputs do; the sentence
                lists them.
        """
        frame = self._of(measure, tower)
        for column, wanted in (("tower", tower), ("variant", variant), ("inputs", inputs)):
            there = list(dict.fromkeys(frame[column]))
            if wanted is None and column == "variant" and "" in there:
                wanted = ""
            if wanted is None and len(there) > 1:
                raise ValueError(
                    f"`{column}` must be given for measure {measure!r}, which has several. "
                    f"Choose one of: {listed(there)}."
                )
            if wanted is not None and wanted not in there:
                raise ValueError(
                    f"`{column}` must be one that measure {measure!r} was taken with, got "
                    f"{wanted!r}. Choose one of: {listed(there)}."
                )
            if wanted is not None:
                frame = frame[frame[column] == wanted]
        return frame

    def grid(
        self,
        measure: str,
        tower: str | None = None,
        variant: str | None = None,
        inputs: str | None = None,
        column: str = "value",
    ) -> NDArray[np.float64]:
        """Float ``[layer, head]`` of one measure in one tower; NaN where it was not measured.

        ``column`` may be any of the numbers: ``"ci_low"``, ``"n"``, ``"null_high"`` and so on.
        """
        if column not in NUMBERS:
            raise ValueError(f"`column` must be one of {', '.join(NUMBERS)}, got {column!r}.")
        lines = self.lines(measure, tower, variant, inputs)
        name = lines["tower"].iloc[0]
        heads = int(self.frame.loc[self.frame["tower"] == name, "head"].max()) + 1
        grid = np.full((self.layers[name], heads), np.nan)
        grid[lines["layer"].to_numpy(), lines["head"].to_numpy()] = lines[column].to_numpy(float)
        return grid

    def merge(self, *others: HeadTable) -> HeadTable:
        """One table with the lines of all; a line that stands in two is an error."""
        import pandas as pd

        tables = [self, *others]
        layers: dict[str, int] = {}
        for table in tables:
            for tower, count in table.layers.items():
                layers[tower] = max(count, layers.get(tower, 0))
        return HeadTable(pd.concat([table.frame for table in tables]), layers)

    def to_parquet(self, path: str | Path) -> None:
        """Write by temporary file and rename; layer counts travel in the file's metadata."""
        frame = self.frame.copy()
        frame.attrs = {_ATTENTION_LAYERS: dict(self.layers)}
        with written_atomically(Path(path)) as temporary:
            frame.to_parquet(temporary, index=False)

    @classmethod
    def from_parquet(cls, path: str | Path) -> HeadTable:
        frame = read_table(Path(path))
        return cls(frame, frame.attrs.get(_ATTENTION_LAYERS, {}))

    def to_csv(self, path: str | Path) -> None:
        """Write numbers in full precision; an empty cell is "not measured"."""
        with written_atomically(Path(path)) as temporary:
            self.frame.to_csv(temporary, index=False)

    @classmethod
    def from_csv(cls, path: str | Path) -> HeadTable:
        import pandas as pd

        texts = dict.fromkeys(("tower", "measure", "variant", "inputs", "unit"), str)
        frame = pd.read_csv(
            path, dtype=texts, keep_default_na=False, na_values={number: [""] for number in NUMBERS}
        )
        return cls(frame)

    def __len__(self) -> int:
        return len(self.frame)

    def __repr__(self) -> str:
        if not len(self):
            return "HeadTable: empty"
        heads = self.frame[["tower", "layer", "head"]].drop_duplicates()
        counts = heads.groupby("tower", sort=False).size()
        towers = ", ".join(f"{tower} {count} heads" for tower, count in counts.items())
        inputs = listed([name for name in dict.fromkeys(self.frame["inputs"]) if name])
        return (
            f"HeadTable: {towers}; n up to {int(self.frame['n'].max())}"
            f"{f'; inputs {inputs}' if inputs else ''}\n"
            f"{len(self.measures)} measures: {', '.join(self.measures)}"
        )

    def _of(self, measure: str, tower: str | None) -> pd.DataFrame:
        frame = self.frame[self.frame["measure"] == measure]
        if frame.empty:
            raise ValueError(
                f"`measure` must be one in the table, got {measure!r}. "
                f"Choose one of: {listed(self.measures)}."
            )
        if tower is not None and not (frame["tower"] == tower).any():
            raise ValueError(
                f"`tower` must be one in which {measure!r} was measured, got {tower!r}. "
                f"Choose one of: {listed(dict.fromkeys(frame['tower']))}."
            )
        return frame if tower is None else frame[frame["tower"] == tower]
