"""The study `sinks`: which tokens draw attention for nothing, what marks them, in which heads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from analysis.importance.study import StudyOptions
from analysis.importance.targets import Data
from analysis.progress import Progress
from analysis.scores import BatchScores
from analysis.sinks.dimensions import SinkDimensions, sink_dimensions
from analysis.sinks.finder import Found, SinkFinder
from analysis.sinks.head_columns import HeadColumns
from analysis.sinks.massive_table import MassiveTable
from analysis.sinks.received import received
from analysis.sinks.sink_table import PatchNorms, SinkTable
from analysis.sinks.streams import Stream, listening_to_streams, streamed_sites
from probes.attention_call import AttentionCall
from probes.depth import WRITING_TOWERS
from probes.heads import Site
from probes.listening import attach
from probes.tap import Attached

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tally import Tally
    from probes.inputs import Batch
    from probes.subject import Subject

EXAMPLES = 64
"""Examples from which the sink dimensions are found: they are the model's, not the data's."""
MEASURES = ("sink_mass", "sink_value_norm", "sink_key_norm", "non_sink_ratio", "image_centric")


@dataclass
class Sinks:
    """The study of sinks: a forward for every batch, and one more for the tables.

    Head table: ``sink_mass`` (weight on sinks), ``sink_value_norm``, ``sink_key_norm`` (norm at
    sinks over that at other keys of their sort), ``non_sink_ratio`` and ``image_centric`` (VAR).
    Tables: ``sink_dimensions``, ``sink_tokens``, ``massive``, ``massive_entries``, ``patch_norms``.

    Attributes:
        section: of the run that its tables go to.
        dimensions: what was found of the tower that reads text; None where there is none.
    """

    options: StudyOptions
    name: str = "sinks"
    section: str = "vision"
    dimensions: SinkDimensions | None = None
    finder: SinkFinder = field(default_factory=SinkFinder)
    progress: Progress = field(default_factory=Progress, repr=False)

    def begin(self, subject: Subject, data: Data) -> None:
        """Find the sink dimensions on the first examples.

        Raises:
            ValueError: the residual stream of no tower is known.
        """
        sites = streamed_sites(subject)
        if not sites:
            raise ValueError(
                f"The residual stream of {subject.name!r} must be known to look for sinks, its "
                "blocks were not found. Leave out the measure 'sinks'."
            )
        tower = next((name for name in WRITING_TOWERS if name in subject.towers), "")
        found: tuple[int, ...] = ()
        if any(site.tower == tower for site in sites):
            unknown = replace(self.progress, examples=None)  # how many batches hold that many
            first = unknown.over("dimensions", lambda: _first(data(), EXAMPLES))
            self.dimensions = sink_dimensions(subject, first())
            found = self.dimensions.dimensions
        layers = {name: one.layers for name, one in subject.towers.items()}
        self.finder = SinkFinder(layers, tower, found)

    def score(self, subject: Subject, batch: Batch) -> BatchScores:
        """The columns of every head at whose block there are sinks."""
        columns = HeadColumns(batch)

        def count(found: Found, call: AttentionCall | None) -> None:
            if call is not None:
                columns.score(call, found.keys())

        self._run(subject, batch, count)
        return columns.scores(self._reasons(subject))

    def finish(self, subject: Subject, data: Data, tally: Tally) -> Mapping[str, pd.DataFrame]:
        """The tables, from one more pass over the data."""
        seed = self.options.seed
        massive, table, patches = MassiveTable(seed), SinkTable(seed), PatchNorms(seed)
        for batch in self.progress.over("tables", data)():

            def count(found: Found, call: AttentionCall | None, batch: Batch = batch) -> None:
                stream = found.stream
                if found.norms is not None:
                    patches.count(batch, stream, found.norms, found.kinds["artefact"])
                got = None if call is None else received(call, stream.example >= 0)
                table.count(batch, stream, found.kinds, found.scores, got)

            self._run(subject, batch, count, lambda stream, b=batch: massive.hear(b, stream))
        ranking = {} if self.dimensions is None else {"sink_dimensions": self._ranking()}
        frames = {"sink_tokens": table.frame(), "patch_norms": patches.frame()}
        return {**ranking, **frames, **massive.frames()}

    def _run(
        self,
        subject: Subject,
        batch: Batch,
        count: Callable[[Found, AttentionCall | None], None],
        hear: Callable[[Stream], None] | None = None,
    ) -> None:
        """One forward; ``count`` gets the sinks of each stream and the call that reads them.

        The call is None where there are no sinks, where nothing reads the stream (it leaves the
        last block), and where the call has other keys than the stream has positions (windows).
        """
        waiting: dict[Site, Found] = {}

        def on_stream(stream: Stream) -> None:
            if hear is not None:
                hear(stream)
            found = self.finder.find(stream)
            if found is None:
                return
            site = Site(stream.tower, stream.depth)
            if found.any and site in sites:
                waiting[site] = found
            else:
                count(found, None)

        def on_call(call: AttentionCall) -> None:
            found = waiting.get(call.site)
            if found is not None and found.stream.example.shape == (call.batch, call.keys):
                count(waiting.pop(call.site), call)

        sites = frozenset(streamed_sites(subject))
        with (
            attach(subject, Attached(sites, on_call=on_call)),
            listening_to_streams(subject, batch, on_stream, sites, leaving=hear is not None),
        ):
            subject.forward(batch)
        for found in waiting.values():
            count(found, None)

    def _reasons(self, subject: Subject) -> dict[tuple[str, str], str]:
        reasons: dict[tuple[str, str], str] = {}
        for tower in subject.towers:
            if tower != self.finder.tower:
                why = f"no patch stands out by its norm where it enters the last third of {tower}."
                reasons |= {(tower, measure): why for measure in MEASURES[:3]}
            elif not self.finder.dimensions:
                why = f"no dimension of {tower} is massive at a sink, so no token is one."
                reasons |= {(tower, measure): why for measure in MEASURES}
            else:
                why = f"no image token of {tower} is a sink."
                reasons |= {(tower, measure): why for measure in MEASURES[3:]}
        return reasons

    def _ranking(self) -> pd.DataFrame:
        assert self.dimensions is not None
        found = self.dimensions
        frame = found.ranking.assign(tower=found.tower, width=found.width, n=found.n)
        known = found.published
        frame["published"] = frame["dimension"].isin(known.dimensions) if known else False
        frame["backbone"] = known.name if known else ""
        return frame


def _first(batches: Iterable[Batch], examples: int) -> Iterator[Batch]:
    """Batches until so many examples were given."""
    given = 0

    def wanted(batch: Batch) -> bool:
        nonlocal given
        before, given = given, given + batch.size
        return before < examples

    return takewhile(wanted, batches)


def sinks(options: StudyOptions) -> Sinks:
    """The study of sinks."""
    return Sinks(options)
