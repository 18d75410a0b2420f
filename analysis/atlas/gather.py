"""One pass over the data that fills an atlas: patterns, what measures say of them, exemplars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.atlas.collector import PatternCollector
from analysis.atlas.exemplars import ExemplarCollector, ExemplarOptions, Exemplars
from analysis.atlas.features import feature_measures
from analysis.atlas.pattern_set import PatternSet
from analysis.atlas.sample_features import sample_features
from analysis.atlas.sampling import draw_samples
from analysis.engine import Engine
from analysis.progress import Progress
from probes.heads import Head
from probes.listening import listen
from probes.replay import logits_unread

if TYPE_CHECKING:
    import pandas as pd

    from analysis.atlas.options import AtlasOptions
    from analysis.importance.targets import Data
    from probes.attention_call import AttentionCall
    from probes.inputs import Batch
    from probes.subject import Subject


@dataclass(frozen=True)
class Gathered:
    """What a pass over the data kept.

    Attributes:
        not_drawn: pairs of a head and an example without a pattern: ``tower layer head example
            reason``.
        refused: towers without a single pattern, and why.
        exemplars: None if they were not asked for.
    """

    patterns: PatternSet
    not_drawn: pd.DataFrame
    refused: dict[str, str]
    exemplars: Exemplars | None


def gather(
    subject: Subject,
    data: Data,
    how: AtlasOptions,
    seed: int,
    exemplars: ExemplarOptions | None,
    progress: Progress,
) -> Gathered:
    """Run the model once over the data and keep patterns, features and exemplars.

    Args:
        data: gives the batches, each time it is called.
        how: how many patterns, and of which side.
        exemplars: what is kept of them; None for none.

    Raises:
        ValueError: fewer samples than heads; NaN.
    """
    heads = sampled_heads(subject, how.samples)
    reached = Reached(subject)
    for batch in progress.over("what reaches which tower", data)():
        reached.add(batch)
    sampling = draw_samples(reached.examples, heads, how.samples // len(heads), seed)
    patterns = PatternCollector(subject.layout, sampling, how.side)
    events = None if exemplars is None else ExemplarCollector(subject.layout, exemplars)
    engine = Engine(subject.layout, feature_measures())
    features = []

    def hear(call: AttentionCall) -> None:
        engine.listener(call)
        patterns.listener(call)
        if events is not None:
            events.listener(call)

    for batch in progress.over("patterns", data)():
        settings = logits_unread(subject, batch)
        engine.start_batch(batch.tokens, [example.id for example in batch.examples])
        patterns.start_batch(batch)
        if events is not None:
            events.start_batch(batch)
        with listen(subject, batch, hear):
            subject.forward(batch, **settings)
        features.append(sample_features(engine.finish_batch(), sampling.frame))
        patterns.finish_batch()
        if events is not None:
            events.finish_batch()
    found = None if events is None else events.exemplars()
    drawn, missing = patterns.patterns(features), patterns.not_drawn()
    return Gathered(drawn, missing, _refused(heads, drawn, missing), found)


def _refused(heads: Sequence[Head], drawn: PatternSet, missing: pd.DataFrame) -> dict[str, str]:
    """Why towers have no pattern at all, by the commonest reason."""
    known = set(drawn.samples["tower"])
    without = [tower for tower in dict.fromkeys(head.tower for head in heads) if tower not in known]
    reasons = {tower: missing.loc[missing["tower"] == tower, "reason"].mode() for tower in without}
    return {
        tower: f"No pattern could be drawn: {why[0]}" if len(why) else "No example reaches it."
        for tower, why in reasons.items()
    }


def sampled_heads(subject: Subject, samples: int) -> list[Head]:
    """Every head that can be captured.

    Raises:
        ValueError: there is none, or fewer samples than heads.
    """
    heads = [
        Head(site.site.tower, site.site.layer, number)
        for site in subject.layout.sites
        for number in range(site.heads)
    ]
    if not heads:
        raise ValueError(
            f"{subject.name!r} must have softmax attention to draw patterns of, it has none that "
            "can be captured. See `headscope inspect` for the reasons."
        )
    if samples < len(heads):
        raise ValueError(
            f"`samples` must be at least the number of heads, {len(heads)}, got {samples}. "
            "Draw more."
        )
    return heads


class Reached:
    """Which examples have positions in which tower.

    All of them, where no batch says anything of the tower's positions; a batch that says nothing
    where another does has nothing for it to see.
    """

    def __init__(self, subject: Subject) -> None:
        self._everyone: list[str] = []
        self._found: dict[str, list[str]] = {tower: [] for tower in subject.towers}
        self._told: set[str] = set()

    def add(self, batch: Batch) -> None:
        """Count a batch in."""
        ids = [example.id for example in batch.examples]
        self._everyone += ids
        for tower, mine in self._found.items():
            tokens = batch.tokens.towers.get(tower)
            if tokens is not None and len(tokens):
                self._told.add(tower)
                rows = sorted(set(tokens.example[tokens.example >= 0].tolist()))
                mine += [ids[row] for row in rows]

    @property
    def examples(self) -> dict[str, list[str]]:
        """Tower -> ids."""
        return {
            tower: mine if tower in self._told else self._everyone
            for tower, mine in self._found.items()
        }
