"""The head table: one tidy line per head, measure, variant and inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from analysis.atomic_file import written_atomically
from analysis.run_files import read_table
from analysis.table_form import COLUMNS, NUMBERS, RANGES, check, listed, tidy

if TYPE_CHECKING:
    import pandas as pd

    from analysis.finder.search import Found

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
        return self.frame["tower"].unique().tolist()

    @property
    def measures(self) -> list[str]:
        """Names of the measures, in the order in which they stand."""
        return list(self._rows)

    def variants(self, measure: str, tower: str | None = None) -> list[str]:
        """Variants of a measure; a measure without parameters has the one variant ``""``."""
        return self._of(measure, tower)["variant"].unique().tolist()

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
        if measure is not None:
            asked = {measure} if isinstance(measure, str) else set(measure)
            rows = [rows for name, rows in self._rows.items() if name in asked]
            frame = frame.iloc[np.sort(np.concatenate(rows)) if rows else []]
        for column, names in {"tower": tower, "variant": variant, "inputs": inputs}.items():
            if names is not None:
                several = [names] if isinstance(names, str) else list(names)
                frame = frame[frame[column].isin(several)]
        # Lines of a table that was checked need no check.
        found = object.__new__(HeadTable)
        object.__setattr__(found, "frame", frame.reset_index(drop=True))
        towers = frame["tower"].unique().tolist()
        object.__setattr__(found, "layers", {tower: self.layers[tower] for tower in towers})
        return found

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
            there = frame[column].unique().tolist()
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
        grid = np.full((self.layers[name], self._widths[name]), np.nan)
        grid[lines["layer"].to_numpy(), lines["head"].to_numpy()] = lines[column].to_numpy(float)
        return grid

    def find(self, query: str, by: str | None = None, ascending: bool = False) -> Found:
        """Heads that fulfil a written condition, ranked.

        Conditions compare measures with numbers or with each other, chained if need be, and are
        joined by ``and``, ``or``, ``not`` and parentheses. A variant stands in brackets, and parts
        of its name will do; without one it is the plain variant, or else the first. ``layer`` and
        ``head`` are numbers, ``tower`` is compared with a name. ``.ci_low``, ``.ci_high``, ``.n``,
        ``.null_low`` and ``.null_high`` are the other numbers of a line, ``@`` says on which
        inputs, and backquotes hold names with other signs than letters, digits and ``_``::

            heads.find("induction > 0.3 and sink_weight < 0.1 or not (entropy >= 3)")
            heads.find("sink_rate[eps=0.3] > 0.5 and tower == language and layer >= 2")
            heads.find("0.1 < vhd < vhd[words=other] by importance_cross_entropy")
            heads.find("induction.ci_low > induction.null_high")

        A head on which something is not measured is found where the rest decides; else it is
        counted as undecided. The query is parsed and never evaluated.

        Args:
            by: the measure to rank by, where the query does not end with ``by MEASURE`` or
                ``by MEASURE ascending``; by default the first that it names.
            ascending: lowest first.

        Raises:
            QueryError: a ValueError whose sentence says which place is wrong, what may stand
                there, and the nearest name.
        """
        from analysis.finder.search import find

        return find(self, query, by, ascending)

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
        if measure not in self._rows:
            raise ValueError(
                f"`measure` must be one in the table, got {measure!r}. "
                f"Choose one of: {listed(self.measures)}."
            )
        if measure not in self._parts:
            self._parts[measure] = self.frame.iloc[self._rows[measure]]
        frame = self._parts[measure]
        if tower is not None and not (frame["tower"] == tower).any():
            raise ValueError(
                f"`tower` must be one in which {measure!r} was measured, got {tower!r}. "
                f"Choose one of: {listed(dict.fromkeys(frame['tower']))}."
            )
        return frame if tower is None else frame[frame["tower"] == tower]

    @cached_property
    def _rows(self) -> dict[str, NDArray[np.intp]]:
        """Where the lines of each measure stand."""
        found = self.frame.groupby("measure", sort=False).indices
        return {str(name): found[name] for name in self.frame["measure"].unique()}

    @cached_property
    def _parts(self) -> dict[str, pd.DataFrame]:
        """The lines of measures that were asked for; pictures ask for the same ones often."""
        return {}

    @cached_property
    def _widths(self) -> dict[str, int]:
        """Heads of the widest layer of each tower."""
        last = self.frame.groupby("tower", sort=False)["head"].max()
        return {str(tower): int(head) + 1 for tower, head in last.items()}
