"""What a model loses when a coder's reconstruction stands in for its head outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from analysis.statistics import REPLICATES
from probes.edits.apply import edit
from sae.coders.coder import Coder
from sae.judging.loss_sums import REFERENCES, LossRecovered, LossSums
from sae.judging.losses import Loss, PerExample, losses_of
from sae.judging.site_reach import Place, examples_at, mean_rows
from sae.reading.latent_reading import site_of
from sae.same_model import refuse_other_model
from sae.splice import ReplacedRows, constant_rows, splice

if TYPE_CHECKING:
    from probes.inputs import Batch
    from probes.subject import Subject

Data = Callable[[], Iterable["Batch"]]
"""Gives the batches of the data anew each time it is called."""


def loss_recovered(
    subject: Subject, data: Data, coder: Coder, loss: Loss, *, site: str | None = None, **how: Any
) -> LossRecovered:
    """The share of a loss that one coder keeps; arguments and errors as of `losses_recovered`."""
    sites = None if site is None else {"coder": site}
    found = losses_recovered(subject, data, {"coder": coder}, [loss], sites=sites, **how)
    return found["coder"][loss.name]


def losses_recovered(
    subject: Subject,
    data: Data,
    coders: Mapping[str, Coder],
    losses: Sequence[Loss],
    *,
    sites: Mapping[str, str] | None = None,
    roles: str | Sequence[str] | None = None,
    other_model: bool = False,
    settings: Callable[[Batch], Mapping[str, Any]] | None = None,
    replicates: int = REPLICATES,
    seed: int = 0,
    listener: Callable[[int], None] | None = None,
) -> dict[str, dict[str, LossRecovered]]:
    """What several coders keep of several losses; each is spliced in alone.

    Two passes: means of z; then for each batch an intact forward, one for each coder, and two for
    each site. Examples that do not reach a site (no image for a vision tower) do not count there.
    Ratios are of sums over examples; intervals resample examples (`analysis.statistics`).

    Args:
        losses: of different names; the KL divergence from the intact output can be one, too.
        sites: by the coders' names, where coders do not say it themselves.
        roles: positions at which coders stand in, as `splice` takes them; ablations are of the
            same positions.
        other_model: judge on a model that a coder was not trained on, too.
        settings: what the forward of a batch is called with, such as which logits are kept; asked
            before anything is changed.
        listener: called with the number of batches that are done.

    Returns:
        By name of the coder and of the loss.

    Raises:
        ValueError: another model, no such site or another width, no example that reaches it,
            nothing to read, or an output that is not finite, intact or spliced.

    Source: Bricken et al. 2023, Kissane et al. 2024 (zero ablation); SAEBench (KL divergence).
    """
    if not other_model:
        for coder in coders.values():
            refuse_other_model(coder, subject)
    jobs = {
        name: _job(subject, coder, (sites or {}).get(name), roles) for name, coder in coders.items()
    }
    places = list(dict.fromkeys(place for place, _ in jobs.values()))
    ablations = _ablations(subject, data, places)
    sums = {
        (name, loss.name): LossSums(replicates=replicates, seed=seed)
        for name in jobs
        for loss in losses
    }
    for number, batch in enumerate(data(), 1):
        run = _Run(subject, batch, losses, {} if settings is None else dict(settings(batch)))
        ids = [example.id for example in batch.examples]
        for place in places:
            counted = examples_at(batch, place)
            if not bool(counted.any()):
                continue
            references = {state: run.told(ablations[place, state]) for state in REFERENCES}
            for name, (where, spliced) in jobs.items():
                if where != place:
                    continue
                told = {"clean": run.clean, "spliced": run.told(spliced), **references}
                for loss in losses:
                    states = {state: found[loss.name] for state, found in told.items()}
                    sums[name, loss.name].add(ids, states, counted, f"{name} at {place[0]}")
        if listener is not None:
            listener(number)
    return {
        name: {
            loss.name: sums[name, loss.name].result(loss.name, loss.unit, f"{name}, {place[0]}")
            for loss in losses
        }
        for name, (place, _) in jobs.items()
    }


class _Run:
    """A batch, its intact output, and the losses of changed ones."""

    def __init__(
        self, subject: Subject, batch: Batch, losses: Sequence[Loss], settings: dict[str, Any]
    ) -> None:
        self._subject, self._batch = subject, batch
        self._losses, self._settings = losses, settings
        self._intact = subject.forward(batch, **settings)
        self.clean = losses_of(losses, batch, self._intact, self._intact)

    def told(self, change: ReplacedRows) -> Mapping[str, PerExample]:
        with edit(self._subject, change):
            output = self._subject.forward(self._batch, **self._settings)
        return losses_of(self._losses, self._batch, output, self._intact)


def _job(
    subject: Subject, coder: Coder, site: str | None, roles: str | Sequence[str] | None
) -> tuple[Place, ReplacedRows]:
    named = roles if roles is None or isinstance(roles, str) else list(roles)
    # Attached anew to every batch; whose model it is was asked once.
    spliced = splice(coder, site, named, other_model=True)
    return (site_of(subject, coder, spliced.heads).site, spliced.roles), spliced


def _ablations(
    subject: Subject, data: Data, places: Sequence[Place]
) -> dict[tuple[Place, str], ReplacedRows]:
    found = {}
    for place, mean in mean_rows(subject, data(), places).items():
        rows = {"zero": torch.zeros_like(mean), "mean": mean}
        for state, row in rows.items():
            found[place, state] = constant_rows(str(place[0]), row, f"{state} ablation", place[1])
    return found
