"""What a scan found: differences head by head, and what the model loses without the farthest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from analysis.importance.scans.options import ScanOptions
from analysis.importance.scans.two_sets import SETS
from analysis.precision import plain, rounded
from analysis.statistics import exceedance
from probes.heads import Head

if TYPE_CHECKING:
    import pandas as pd

    from analysis.head_table import HeadTable

FALSE_DISCOVERIES = 0.05
UNIT = "pooled standard deviations"
_SHOWN = 3


@dataclass(frozen=True, repr=False)
class Scan:
    """What a scan found.

    Attributes:
        heads: a DataFrame, the largest differences first: tower, layer, head, of, mean_behaviour,
            mean_control, effect_size (in pooled standard deviations, positive where the value is
            higher on the behaviour), ci_low, ci_high, null_low, null_high (the central 95 % with
            examples dealt to the sets at random), p, q (false discovery rate over all heads),
            first_half, second_half (the effect size in each half of the examples).
        confirmation: a DataFrame, one line per k, set of inputs and set of heads: k, inputs, kind
            (``chosen`` or ``random``), draw, heads, value, ci_low, ci_high, n, accuracy,
            accuracy_intact. Value is what the model loses without the k heads, on the second half
            of the examples; heads were chosen on the first. Empty where nothing was confirmed.
        how: what was asked for.
        towers: those that were scanned.
        unit: of the means.
        effect, effect_unit: of the confirmation; empty where nothing was confirmed.
        examples: how many of behaviour and control.
        splits: how many splits of the examples p rests on; p can be no less than 1 / splits.
        null_largest: what the largest effect size of all heads stays below in 95 % of them; None
            where it has no limit (hardly any examples).
        reliability: tower -> Spearman's correlation of the effect sizes in the two halves; without
            towers of too few heads or examples.
        lengths: mean number of positions of an example of each set in the first tower, None where
            they are not known.
        there_are: k -> how many other sets match the chosen one layer by layer.
    """

    heads: pd.DataFrame
    confirmation: pd.DataFrame
    how: ScanOptions
    towers: tuple[str, ...]
    unit: str
    effect: str
    effect_unit: str
    examples: tuple[int, int]
    splits: int
    null_largest: float | None
    reliability: dict[str, float]
    lengths: tuple[float, float] | None
    there_are: dict[int, int]

    @property
    def compared(self) -> int:
        """How many heads have a p value."""
        return int(self.heads["p"].notna().sum())

    @property
    def discovered(self) -> int:
        """How many heads differ at a false discovery rate of 5 %."""
        return int((self.heads["q"] <= FALSE_DISCOVERIES).sum())

    def top(self, count: int) -> list[Head]:
        """The heads that differ most on all examples, whether more or less."""
        lines = self.heads.head(count)
        return [Head(t, int(n), int(h)) for t, n, h in lines[["tower", "layer", "head"]].values]

    def table(self, inputs: str = "") -> HeadTable:
        """The effect sizes as lines of a head table: measure ``difference_MEASURE``."""
        from analysis.head_table import HeadTable

        frame = self.heads[["tower", "layer", "head", "ci_low", "ci_high"]].assign(
            measure=f"difference_{self.how.measure}",
            variant=self.variant,
            inputs=inputs,
            value=self.heads["effect_size"].where(np.isfinite(self.heads["effect_size"])),
            n=sum(self.examples),
            null_low=self.heads["null_low"].where(np.isfinite(self.heads["null_low"])),
            null_high=self.heads["null_high"].where(np.isfinite(self.heads["null_high"])),
            unit=UNIT,
        )
        return HeadTable(frame.sort_values(["layer", "head"], kind="stable"))

    @property
    def variant(self) -> str:
        """What else tells this scan from others of the measure: a variant, or which positions."""
        where = f"last={self.how.last}" if self.how.where == "last" else self.how.where
        parts = (self.how.variant, where, "paired" if self.how.paired else "")
        return ", ".join(part for part in parts if part)

    def excess(self, inputs: str = "behaviour") -> pd.DataFrame:
        """One line per k: what is lost without the chosen heads, and without random ones.

        Columns: k, heads, chosen, ci_low, ci_high, n, randoms, there_are, random_mean, random_high,
        p (how often a random set costs as much, ``(1 + #) / (1 + randoms)``, for each k by itself;
        NaN where no other set has as many heads in each layer).

        Raises:
            ValueError: ``inputs`` is neither ``behaviour`` nor ``control``.
        """
        import pandas as pd

        if inputs not in SETS:
            raise ValueError(f"`inputs` must be one of {', '.join(SETS)}, got {inputs!r}.")
        lines = []
        for k, mine in self.confirmation.groupby("k") if len(self.confirmation) else ():
            mine = mine[mine["inputs"] == inputs]
            own = mine[mine["kind"] == "chosen"].iloc[0]
            drawn = mine.loc[mine["kind"] == "random", "value"].to_numpy(float)
            known = len(drawn) > 0
            lines.append(
                {"k": k, "heads": own["heads"], "chosen": own["value"]}
                | {name: own[name] for name in ("ci_low", "ci_high", "n")}
                | {
                    "randoms": len(drawn),
                    "there_are": self.there_are[int(str(k))],
                    "random_mean": drawn.mean() if known else np.nan,
                    "random_high": drawn.max() if known else np.nan,
                    "p": exceedance(own["value"], drawn) if known else np.nan,
                }
            )
        return pd.DataFrame(lines)

    def __repr__(self) -> str:
        verb = "differs" if self.discovered == 1 else "differ"
        lines = [
            f"Scan of {self.how.measure} of {len(self.heads)} heads, {self.examples[0]} behaviour "
            f"against {self.examples[1]} control examples{' in pairs' * self.how.paired}: "
            f"{self.discovered} {verb} at a false discovery rate of 5 %"
        ]
        for head, line in zip(self.top(_SHOWN), self.heads.itertuples(), strict=False):
            d = rounded(line.effect_size, line.ci_low, line.ci_high)
            null = f"{plain(line.null_low)} to {plain(line.null_high)}"
            lines.append(f"  {head}  d = {d}, null {null}, p = {line.p:.2g}, q = {line.q:.2g}")
        for inputs in SETS:
            for line in self.excess(inputs).itertuples():
                lost = rounded(line.chosen, line.ci_low, line.ci_high)
                beside = "no other set has as many heads in each layer"
                if line.randoms:
                    beside = (
                        f"{line.randoms} random sets {plain(line.random_mean)}, p = {line.p:.2g}"
                    )
                lines.append(
                    f"  {inputs}: without {line.k} chosen on other examples: {self.effect} {lost} "
                    f"{self.effect_unit} ({beside})"
                )
        return "\n".join(lines)
