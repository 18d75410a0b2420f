"""Several settings trained in one pass and judged beside baselines: what sparsity costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.atomic_file import half_written_name
from analysis.run_files import RunError
from sae.activations.as_activations import as_activations
from sae.activations.source import Activations
from sae.coders.coder import Coder
from sae.judging.baselines import principal_components, random_dictionary, untrained
from sae.judging.judgement import Judgement, judgements
from sae.judging.loss_sums import LossRecovered
from sae.judging.pareto import ABOUT, TABLE, pareto_table, write_pareto
from sae.judging.seen_rows import SeenRows, seen_rows
from sae.training.config import TrainConfig
from sae.training.metrics import Listener
from sae.training.train import train_settings

if TYPE_CHECKING:
    import pandas as pd

BASELINES = ("random", "pca", "untrained")
TRAINING = "training"
BASELINE_ROWS = 262_144

Recovered = Callable[[Mapping[str, Coder]], Mapping[str, Mapping[str, LossRecovered]]]
"""Coders by name to what they recover, by name and loss; of examples that are held out."""


@dataclass(frozen=True)
class Sweep:
    """What each setting gives.

    Attributes:
        table: a line per setting and baseline, see `pareto_table`.
        coders: the trained ones, by the names of the settings.
        not_measured: baselines that could not be made: name and reason.
    """

    table: pd.DataFrame
    coders: Mapping[str, Coder] = field(repr=False)
    not_measured: Mapping[str, str] = field(default_factory=dict)


def sweep(
    configs: Mapping[str, TrainConfig],
    activations: Any,
    held_out: Any,
    *,
    recovered: Recovered | None = None,
    baselines: Sequence[str] = BASELINES,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> Sweep:
    """Train several settings at one site in the same passes, and judge all of them.

    Baselines stand beside each setting at its L0, fitted on rows that were trained on, at least
    262,144 where there are as many.

    Args:
        configs: by name, such as ``{"k=8": ..., "k=32": ...}``; kinds may differ.
        activations: of one site; what is trained on.
        held_out: of the same site; what is judged on (`sae.judging.held_out.split_examples`).
        recovered: judges by the model's losses, see `sae.judging.loss_recovered`; None: not done.
        baselines: ``random`` (dictionary), ``pca``, ``untrained``; some or none.
        out: new folder for the training (``training/``), ``pareto.parquet`` and ``pareto.json``.
        resume: go on with the training there.
        listener: hears the training.

    Raises:
        ValueError: several sites, an unknown baseline, and what training and judging raise.
        RunError: ``out`` cannot be used.
    """
    _refuse_baselines(baselines)
    source, judged = as_activations(activations), as_activations(held_out)
    site = _only_site(source, judged)
    folder = None if out is None else Path(out).expanduser()
    if folder is not None:
        _refuse_foreign(folder)
    training = None if folder is None else folder / TRAINING
    coders = train_settings(configs, source, out=training, resume=resume, listener=listener)
    found = beside_baselines(coders, source, judged, recovered=recovered, baselines=baselines)
    if folder is not None:
        write_pareto(folder, found.table, site, source.about, judged.about, found.not_measured)
    return found


def beside_baselines(
    coders: Mapping[str, Coder],
    fitted_on: Any,
    judged_on: Any,
    *,
    recovered: Recovered | None = None,
    baselines: Sequence[str] = BASELINES,
) -> Sweep:
    """Judge coders of one site that were trained before, beside baselines at the L0 of each.

    Args:
        fitted_on: what baselines are fitted on, and coders were trained on or could have been.
        judged_on: of the same site, other rows.
        recovered, baselines: as of `sweep`.

    Raises:
        ValueError: several sites, an unknown baseline, and what judging raises.
    """
    _refuse_baselines(baselines)
    source, judged = as_activations(fitted_on), as_activations(judged_on)
    site = _only_site(source, judged)
    found = judgements(coders, judged, sites=dict.fromkeys(coders, site))
    others, missing = _baselines(coders, found, source, site, baselines)
    found.update(judgements(others, judged, sites=dict.fromkeys(others, site)))
    losses = {} if recovered is None else recovered({**coders, **others})
    table = pareto_table({**coders, **others}, found, losses, _kinds(coders, others))
    return Sweep(table, coders, missing)


def _refuse_baselines(baselines: Sequence[str]) -> None:
    unknown = next((name for name in baselines if name not in BASELINES), None)
    if unknown is not None:
        raise ValueError(
            f"`baselines` must be some of {', '.join(BASELINES)}, got {unknown!r}. Leave it out."
        )


def _refuse_foreign(folder: Path) -> None:
    """Nothing, if there is room for a sweep, or one that was begun.

    Raises:
        RunError: a file, or a folder with something else in it.
    """
    if folder.exists() and not folder.is_dir():
        raise RunError(f"`out` must be a folder, {folder} is a file. Choose another name.")
    if not folder.is_dir():
        return
    own = {TRAINING, TABLE, ABOUT}
    strangers = sorted(
        item.name
        for item in folder.iterdir()
        if item.name not in own and half_written_name(item) not in own
    )
    if strangers:
        raise RunError(
            f"`out` must be a new or empty folder or that of a sweep, {folder} holds something "
            f"else ({strangers[0]}). Choose another name; nothing was touched."
        )


def _only_site(source: Activations, judged: Activations) -> str:
    sites = list(source.widths)
    if len(sites) != 1 or sites[0] not in judged.widths:
        raise ValueError(
            f"A sweep must have one site, the same in both parts of the data, got "
            f"{', '.join(sites)} and {', '.join(judged.widths)}. Sweep one site at a time."
        )
    return sites[0]


def _baselines(
    coders: Mapping[str, Coder],
    found: Mapping[str, Judgement],
    source: Activations,
    site: str,
    wanted: Sequence[str],
) -> tuple[dict[str, Coder], dict[str, str]]:
    """Those of each setting, named ``KIND of SETTING``, and why some are missing."""
    if not wanted:
        return {}, {}
    seen = seen_rows(source, [site], most=BASELINE_ROWS)[site]
    made: dict[str, Coder] = {}
    missing: dict[str, str] = {}
    for name, coder in coders.items():
        l0 = found[name].fidelity.l0
        for kind in wanted:
            try:
                baseline = _baseline(kind, coder, seen, l0)
            except ValueError as error:
                missing[f"{kind} of {name}"] = str(error)
                continue
            made[f"{kind} of {name}"] = baseline.to(coder.decoder.device)
    return made, missing


def _baseline(kind: str, coder: Coder, seen: SeenRows, l0: float) -> Coder:
    if kind == "pca":
        return principal_components(seen, l0)
    if kind == "random":
        return random_dictionary(seen, coder.latents, l0)
    return untrained(coder, seen, l0)


def _kinds(coders: Mapping[str, Coder], others: Mapping[str, Coder]) -> dict[str, tuple[str, str]]:
    """What each line is, and of which setting."""
    kinds = {name: ("trained", name) for name in coders}
    for name in others:
        kind, _, of = name.partition(" of ")
        kinds[name] = (kind, of)
    return kinds
