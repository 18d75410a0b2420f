"""Train coders on the head outputs of a model on data: ``hs.train_coders``, ``hs.sweep_coders``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headscope.coding.examples import CHUNK_EXAMPLES, HELD_OUT, Parts, read_parts, rows_of
from headscope.plan import AskedWrongly

if TYPE_CHECKING:
    from probes.subject import Subject
    from sae.activations.source import Activations
    from sae.coders.coder import Coder
    from sae.judging.sweep import Sweep
    from sae.training.config import TrainConfig
    from sae.training.metrics import Listener

SWEPT = ("k", "latents", "sparsity", "learning_rate")
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([kKmMgG]?)")
_TIMES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


def train_coders(
    subject: Subject,
    data: str | Path | None = None,
    *,
    sites: str | Sequence[str],
    config: TrainConfig | None = None,
    roles: Sequence[str] | None = None,
    context: int | None = None,
    held_out: float = HELD_OUT,
    limit: int | None = None,
    batch_size: int = CHUNK_EXAMPLES,
    store: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> dict[str, Coder]:
    """A sparse autoencoder of each site's head outputs, all trained in the same passes.

    Args:
        data: a bundled set, folder, file or ``hf:NAME:SPLIT``; default: the set that fits.
        sites: such as ``"language.L2"`` or ``["language.*", "vision.L1"]``.
        config: how; latents, k, tokens and the rest.
        roles: at which positions, such as ``("image",)``; all but padding by default.
        context: cut longer texts into examples of at most so many tokens.
        held_out: share of the examples that is left out, for `evaluate_coder`; 0: none.
        batch_size: examples per forward.
        store: folder that head outputs are written to once, and read from by every epoch; one that
            is there already must have been made from the same model and data.
        out: new folder, as `sae.training.folder` describes it; None: nothing is written.
        resume: go on with what is unfinished in ``out`` and ``store``.
        listener: hears the lines of the metrics.

    Raises:
        AskedWrongly: a site, role or setting that makes no sense.
        ValueError: data that cannot be used, head outputs that are not finite.
        RunError: ``out`` or ``store`` cannot be used.
    """
    from sae.training.config import TrainConfig
    from sae.training.distributed import joined
    from sae.training.train import train_sites

    how = config or TrainConfig()
    _, rows = training_rows(
        subject, data, sites, roles, context, held_out, limit, batch_size, how.seed
    )
    refuse_settings(how, rows)
    # Joined once: processes that leave each other cannot meet a second time at the same address.
    with joined():
        source = stored(rows, store, resume, subject.device)
        coders = train_sites(how, source, out=out, resume=resume, listener=listener)
        _tell_skipped(source, listener)
        return coders


def sweep_coders(
    subject: Subject,
    data: str | Path | None = None,
    *,
    site: str | Sequence[str],
    configs: Mapping[str, TrainConfig],
    roles: Sequence[str] | None = None,
    context: int | None = None,
    held_out: float = HELD_OUT,
    limit: int | None = None,
    batch_size: int = CHUNK_EXAMPLES,
    store: str | Path | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    listener: Listener | None = None,
    label: str = "",
) -> Sweep:
    """Several settings at one site in the same passes, judged on held-out examples: a Pareto table.

    Args and errors as of `train_coders`; `headscope.coding.training.swept` makes ``configs``.
    """
    from headscope.coding.evaluating import recovering
    from sae.judging.sweep import sweep
    from sae.training.distributed import joined

    first = next(iter(configs.values()))
    parts, rows = training_rows(
        subject, data, site, roles, context, held_out, limit, batch_size, first.seed
    )
    if not parts.held_out:
        raise AskedWrongly("A sweep must hold out some examples to judge on. Give `--held-out`.")
    if len(rows.widths) != 1:
        raise AskedWrongly(
            f"A sweep must have one site, got {', '.join(rows.widths)}. Sweep one at a time."
        )
    for how in configs.values():
        refuse_settings(how, rows)
    (name,) = rows.widths
    judged = rows_of(subject, parts.held_out, name, roles=roles, batch_size=batch_size)
    with joined():
        source = stored(rows, store, resume, subject.device)
        found = sweep(
            configs,
            source,
            judged,
            recovered=recovering(subject, parts.held_out, name, roles, batch_size, label=label),
            out=out,
            resume=resume,
            listener=listener,
        )
        _tell_skipped(source, listener)
        return found


def training_rows(
    subject: Subject,
    data: str | Path | None,
    sites: str | Sequence[str],
    roles: Sequence[str] | None,
    context: int | None,
    held_out: float,
    limit: int | None,
    batch_size: int,
    seed: int,
) -> tuple[Parts, Activations]:
    """The data in two parts, and the head outputs of the first; nothing is run yet."""
    from headscope.plan import default_data

    if batch_size < 1:
        raise AskedWrongly(f"`--batch-size` must be at least 1, got {batch_size}.")
    parts = read_parts(
        subject, data or default_data(subject), held_out=held_out, context=context, limit=limit
    )
    rows = rows_of(
        subject,
        parts.train,
        sites,
        roles=roles,
        batch_size=batch_size,
        seed=seed,
        facts=parts.facts,
    )
    return parts, rows


def stored(
    rows: Activations, store: str | Path | None, resume: bool = False, device: Any = None
) -> Activations:
    """The rows read from a folder, which is made first where it is not there; without one as is.

    Args:
        device: where rows are put when they are read; None: on the CPU.
    """
    from sae.training.distributed import joined
    from sae.training.shared_store import store_together

    if store is None:
        return rows
    with joined() as processes:
        folder = Path(store).expanduser()
        return store_together(rows, folder, processes, resume=resume, device=device)


def _tell_skipped(source: Activations, listener: Listener | None) -> None:
    """Say which examples could not be prepared, so that nobody takes them for learnt from."""
    from sae.activations.places import PlacedActivations
    from sae.training.metrics import Notice

    left = list(source.skipped) if isinstance(source, PlacedActivations) else []
    if left and listener is not None:
        name, reason = left[0]
        many = "1 example was" if len(left) == 1 else f"{len(left):,} examples were"
        listener(Notice(f"{many} left out; {name!r}: {reason}"))


def refuse_settings(config: TrainConfig, rows: Activations) -> None:
    """Nothing, if a coder can be made so at each site.

    Raises:
        AskedWrongly: the sentence names the setting.
    """
    from sae.coders.registry import check_settings

    for width in rows.widths.values():
        try:
            check_settings(config, width)
        except ValueError as error:
            raise AskedWrongly(str(error)) from error


def settings(**given: Any) -> TrainConfig:
    """Settings of a training; those that are None are left to their defaults.

    Raises:
        AskedWrongly: one makes no sense.
    """
    from sae.training.config import TrainConfig

    try:
        return TrainConfig(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise AskedWrongly(str(error)) from error


def swept(config: TrainConfig, text: str) -> dict[str, TrainConfig]:
    """One setting with several values, such as ``k=8,16,32``, by ``k=8``, ``k=16`` and so on.

    Raises:
        AskedWrongly: it is not written so, or a value makes no sense.
    """
    name, sign, values = text.partition("=")
    name, each = name.strip(), [value.strip() for value in values.split(",") if value.strip()]
    if name not in SWEPT or not sign or not each:
        raise AskedWrongly(
            f"`--sweep` must be one of {', '.join(SWEPT)} with values, such as k=8,16,32, got "
            f"{text!r}."
        )
    found = {}
    for value in each:
        try:
            made = {"k": amount, "latents": latents}.get(name, float)(value)
            found[f"{name}={value}"] = replace(config, **{name: made})
        except ValueError as error:
            raise AskedWrongly(f"`--sweep {text}`: {error}") from error
    assert name in {field.name for field in fields(config)}
    return found


def amount(text: str) -> int:
    """A whole number that may end in k, M or G.

    Raises:
        AskedWrongly: it is no such number.

    >>> amount("5M"), amount("1.5k"), amount("300")
    (5000000, 1500, 300)
    """
    match = _AMOUNT.fullmatch(text.strip().replace("_", ""))
    number = float(match[1]) * _TIMES[match[2].lower()] if match else 0.5
    if not number.is_integer():
        raise AskedWrongly(f"An amount must be written like 5M, 200k or 4096, got {text!r}.")
    return int(number)


def latents(text: str) -> int | str:
    """A number of features, or a multiple of the width as it is.

    >>> latents("16x"), latents("2k")
    ('16x', 2000)
    """
    return text.strip() if text.strip().endswith("x") else amount(text)
