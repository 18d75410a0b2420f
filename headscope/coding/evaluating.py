"""What a coder is worth on data: fidelity, latents, loss recovered, beside baselines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.coding.examples import CHUNK_EXAMPLES, Parts, read_parts, rows_of
from headscope.coding.opened import (
    open_coder,
    refuse_other_heads,
    refuse_other_model,
    site_named,
)
from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    import pandas as pd

    from analysis.progress import Listener
    from probes.inputs import Batch, Example
    from probes.subject import Subject
    from sae.coders.coder import Coder
    from sae.judging.judgement import Judgement
    from sae.judging.sweep import Recovered

HALF = 0.5


@dataclass(frozen=True)
class CoderEvaluation:
    """A coder judged.

    Attributes:
        table: a line for the coder and each baseline, as `sae.judging.pareto.pareto_table`.
        judged: fidelity by head and statistics of the latents, of the coder itself.
        losses: what loss recovered is told by, the one that decides first; empty where none is.
        data: what it was judged on; ``examples`` of them, and how many baselines were ``fitted``
            on.
        skipped: id -> why an example was left out.
        not_measured: baseline or ``loss recovered`` -> why it is not there.
    """

    site: str
    coder: str
    table: pd.DataFrame
    judged: Judgement
    losses: tuple[str, ...]
    data: Mapping[str, Any]
    skipped: Mapping[str, str] = field(default_factory=dict)
    not_measured: Mapping[str, str] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "site": self.site,
            "coder": self.coder,
            "data": dict(self.data),
            "losses": list(self.losses),
            "lines": [
                {name: None if value != value else value for name, value in line.items()}
                for line in self.table.to_dict(orient="records")
            ],
            "judged": self.judged.record(),
            "skipped": dict(self.skipped),
            "not_measured": dict(self.not_measured),
        }


def evaluate_coder(
    coder: Coder | str | Path,
    subject: Subject,
    data: str | Path | None = None,
    *,
    site: str = "",
    baselines: Sequence[str] = ("random", "pca", "untrained"),
    context: int | None = None,
    limit: int | None = None,
    batch_size: int = CHUNK_EXAMPLES,
    label: str = "",
    other_model: bool = False,
    progress: Listener | None = None,
) -> CoderEvaluation:
    """Judge a coder on examples that it was not trained on.

    Of the data that it was trained on, the examples that were held out then are judged, and
    baselines are fitted on the others. Other data are split in two halves by their ids: baselines
    are fitted on one, and all are judged on the other.

    Args:
        coder: or its folder, or the name of a bundled one.
        data: default: what it was trained on, where something was held out and it is still there;
            else the bundled set that fits.
        site: where a folder holds coders of several sites, or the coder does not say its own.
        baselines: some or none of them.
        context: longer texts are cut into examples of so many tokens; default: as in training.
        label: field of the data that holds the class; see `headscope.coder_losses`.
        other_model: judge on a model the coder was not trained on, too.
        progress: hears how far it is.

    Raises:
        AskedWrongly: a model or site that is not the coder's.
        ValueError: data that cannot be used.
    """
    from headscope.scoring import skipping
    from sae.judging.judgement import judgements
    from sae.judging.sweep import beside_baselines

    coder = open_coder(coder, site)
    site = site_named(coder, site)
    if not other_model:
        refuse_other_model(coder, subject)
    refuse_other_heads(coder, subject, site)
    skipped: dict[str, str] = {}
    parts = judged_parts(coder, subject, data, context, limit, skipping(skipped, strict=False))
    coder = coder.to(subject.device)
    roles = (coder.about.get("provenance") or {}).get("roles")
    fitted, judged = (
        rows_of(subject, examples, site, roles=roles, batch_size=batch_size)
        for examples in (parts.train, parts.held_out)
    )
    missing: dict[str, str] = {}
    recovered = recovering(
        subject, parts.held_out, site, roles, batch_size, label, missing, skipped, progress
    )
    found = beside_baselines(
        {"trained": coder}, fitted, judged, recovered=recovered, baselines=baselines
    )
    own = judgements({"trained": coder}, judged, sites={"trained": site}, find_duplicates=True)
    losses = [c.removesuffix("_clean") for c in found.table.columns if c.endswith("_clean")]
    return CoderEvaluation(
        site,
        f"{coder.architecture}, {coder.latents:,} latents",
        found.table,
        own["trained"],
        tuple(losses),
        {
            "name": parts.name,
            "examples": len(parts.held_out),
            "fitted": len(parts.train),
            **parts.facts,
        },
        {**skipped, **dict(judged.skipped)},
        {**found.not_measured, **missing},
    )


def refuse_baselines(names: Sequence[str]) -> None:
    """Nothing, if there are such baselines.

    Raises:
        AskedWrongly: one is not known.
    """
    from sae.judging.sweep import BASELINES

    unknown = next((name for name in names if name not in BASELINES), None)
    if unknown is not None:
        raise AskedWrongly(
            f"`--baselines` must be some of {', '.join(BASELINES)}, or none, got {unknown!r}."
        )


def judged_parts(
    coder: Coder,
    subject: Subject,
    data: str | Path | None = None,
    context: int | None = None,
    limit: int | None = None,
    skip: Callable[[Example, str], None] | None = None,
) -> Parts:
    """What a coder is judged on, and what baselines are fitted on, see `evaluate_coder`."""
    from probes.inputs import InputError

    trained_on: Mapping[str, Any] = (coder.about.get("provenance") or {}).get("data") or {}
    share = trained_on.get("held_out") or 0.0
    context = context if context is not None else trained_on.get("context")
    known = str(trained_on.get("name") or "")
    if share and (data is None or str(data) == known):
        try:
            return read_parts(
                subject, known, held_out=share, context=context, limit=limit, skip=skip
            )
        except InputError:
            if data is not None:
                raise
    from headscope.plan import default_data

    name = data or default_data(subject)
    return read_parts(subject, name, held_out=HALF, context=context, limit=limit, skip=skip)


def recovering(
    subject: Subject,
    examples: Sequence[Example],
    site: str,
    roles: Sequence[str] | None,
    batch_size: int,
    label: str = "",
    missing: dict[str, str] | None = None,
    skipped: dict[str, str] | None = None,
    progress: Listener | None = None,
) -> Recovered:
    """What judges coders by the losses that fit a model and data; coders by name to their losses.

    Args:
        missing: told why nothing is measured, instead of raising.
        skipped: told of examples in which nothing can be read.
    """
    from analysis.importance.readings import ReadingError
    from analysis.progress import Progress
    from headscope.batching import batches
    from headscope.coder_losses import output_losses
    from headscope.scoring import skipping
    from sae.judging.loss_recovered import losses_recovered

    skip = skipping({} if skipped is None else skipped, strict=False)

    def prepared() -> Iterable[Batch]:
        return batches(subject, examples, batch_size, skip)

    def recovered(coders: Mapping[str, Coder]) -> Mapping[str, Any]:
        try:
            how = output_losses(subject, prepared, tower=site.partition(".")[0], label=label)
            data = Progress(progress, len(examples)).over(
                "loss recovered", lambda: how.readable(prepared(), skip)
            )
            return losses_recovered(
                subject,
                data,
                coders,
                how.losses,
                sites=dict.fromkeys(coders, site),
                roles=roles,
                # Asked where the coder was opened; that of a sweep was trained on this model.
                other_model=True,
                settings=how.settings,
            )
        except ReadingError as error:
            if missing is None:
                raise
            missing["loss recovered"] = str(error)
            return {}

    return recovered
