"""One pass over the data that fills an atlas: patterns, what measures say of them, exemplars."""

from __future__ import annotations

from collections.abc import Iterable
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
        exemplars: None if they were not asked for.
    """

    patterns: PatternSet
    not_drawn: pd.DataFrame
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
        ValueError: fewer samples than heads; a model of which no pattern can be drawn; NaN.
    """
    heads = sampled_heads(subject, how.samples)
    reached = _reached(subject, progress.over("what reaches which tower", data)())
    sampling = draw_samples(reached, heads, how.samples // len(heads), seed)
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
    return Gathered(patterns.patterns(features), patterns.not_drawn(), found)


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


def _reached(subject: Subject, batches: Iterable[Batch]) -> dict[str, list[str]]:
    """Tower -> ids of the examples with positions there.

    All of them, where no batch says anything of the tower's positions; a batch that says nothing
    where another does has nothing for it to see.
    """
    everyone: list[str] = []
    found: dict[str, list[str]] = {tower: [] for tower in subject.towers}
    told: set[str] = set()
    for batch in batches:
        ids = [example.id for example in batch.examples]
        everyone += ids
        for tower, mine in found.items():
            tokens = batch.tokens.towers.get(tower)
            if tokens is not None and len(tokens):
                told.add(tower)
                rows = sorted(set(tokens.example[tokens.example >= 0].tolist()))
                mine += [ids[row] for row in rows]
    return {tower: mine if tower in told else everyone for tower, mine in found.items()}
