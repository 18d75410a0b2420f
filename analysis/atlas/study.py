"""The study `atlas`: patterns of every head on the data, as a map with clusters and names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from analysis.atlas.atlas import SECTION, Atlas, Kept, make_atlas, map_options
from analysis.atlas.enough import refuse_too_few
from analysis.atlas.exemplars import ExemplarOptions
from analysis.atlas.gather import gather, sampled_heads
from analysis.atlas.head_mix import NO_CLUSTERS
from analysis.atlas.options import AtlasOptions
from analysis.progress import Progress
from analysis.scores import BatchScores

if TYPE_CHECKING:
    import pandas as pd

    from analysis.importance.study import StudyOptions
    from analysis.importance.targets import Data
    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass
class AtlasStudy:
    """The pattern atlas: one pass over the data when all else is done, then the map.

    Head table: ``pattern_entropy`` (nats over the clusters of a head's patterns; the null deals all
    patterns out anew) and ``pattern_steadiness`` (share of its patterns in its commonest cluster).

    Attributes:
        atlas: what was made; None before `finish`.
    """

    how: AtlasOptions = field(default_factory=AtlasOptions)
    seed: int = 0
    name: str = "atlas"
    section: str = SECTION
    makes_section_only: bool = True
    atlas: Atlas | None = None
    progress: Progress = field(default_factory=Progress, repr=False)

    def refuse(self, subject: Subject, data: Data) -> None:
        """Nothing, if there may be a map of these data.

        Raises:
            ValueError: no attention that can be captured, fewer samples than heads, or too few
                patterns for a map or for so many clusters.
        """
        refuse_too_few(subject, data, self.how.samples, map_options(self.how, self.seed))

    def begin(self, subject: Subject, data: Data) -> None:
        """Refuse a model that cannot be drawn.

        Raises:
            ValueError: no attention that can be captured, or fewer samples than heads.
        """
        sampled_heads(subject, self.how.samples)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """Nothing: patterns are drawn once it is known which examples there are."""
        return BatchScores.nothing([example.id for example in batch.examples])

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """Draw the patterns and make the map; its files are written by `save`.

        A map that cannot be made of what was drawn is said in the atlas, and is no error.
        """
        kept = self._drawn(subject, data)
        self.atlas = make_atlas(kept, self.how, self.seed, self.progress)
        return {}

    def rehearse(self, subject: Subject, data: Data, examples: int) -> str:
        """What `finish` does, but for the map, of which some batches can tell nothing."""
        self._drawn(subject, data)
        heads = sampled_heads(subject, self.how.samples)
        most = len(heads) * min(self.how.samples // len(heads), examples)
        return (
            f"the maps of at most {most:,} patterns (20,000 of 64 x 64 take about two minutes and "
            "1.2 GiB on two cores, few of them seconds)"
        )

    def _drawn(self, subject: Subject, data: Data) -> Kept:
        exemplars = ExemplarOptions(seed=self.seed) if self.how.exemplars else None
        found = gather(subject, data, self.how, self.seed, exemplars, self.progress)
        return Kept(found.patterns, found.exemplars, found.not_drawn, found.refused)

    def save(self, folder: Path) -> None:
        """Write the atlas into its section."""
        if self.atlas is not None:
            self.atlas.save(folder)

    def lines(self, subject: Subject, inputs: str) -> pd.DataFrame | None:
        """Lines of the head table, once the atlas is made."""
        return None if self.atlas is None else head_lines(self.atlas.head_mix, inputs)


def head_lines(mix: pd.DataFrame, inputs: str) -> pd.DataFrame:
    """``pattern_entropy`` and ``pattern_steadiness`` of each head, as lines of a head table.

    Where a tower's patterns are one cluster, nothing can be told, and there are no lines.
    """
    import pandas as pd

    mix = mix[mix["verdict"] != NO_CLUSTERS]
    common = mix[["tower", "layer", "head"]].assign(
        variant="", inputs=inputs, ci_low=float("nan"), ci_high=float("nan"), n=mix["patterns"]
    )
    entropy = common.assign(
        measure="pattern_entropy", value=mix["entropy_nats"], null_low=mix["null_low_nats"],
        null_high=mix["null_high_nats"], unit="nats",
    )  # fmt: skip
    steady = common.assign(
        measure="pattern_steadiness", value=mix["most_share"], null_low=float("nan"),
        null_high=float("nan"), unit="share",
    )  # fmt: skip
    return pd.concat([entropy, steady], ignore_index=True)


def make(options: StudyOptions) -> AtlasStudy:
    """The study, for `headscope.studies`."""
    return AtlasStudy(options.atlas, options.seed)
