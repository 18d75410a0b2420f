"""Which settings can be trained, and the sentences for those that cannot."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

if TYPE_CHECKING:
    from sae.training.config import TrainConfig

DeadFeatures = Literal["auxk", "resample", "none"]
Normalise = Literal["mean_norm", "none"]
Precision = Literal["float32", "bfloat16"]

_MULTIPLE = re.compile(r"\d+(\.\d+)?x")
_CHOICES = {"dead_features": DeadFeatures, "normalise": Normalise, "dtype": Precision}


def refuse_settings(config: TrainConfig) -> None:
    """Nothing, if a coder can be trained so.

    Raises:
        ValueError: naming the setting, what it must be and what it is.
    """
    _check_coder(config)
    _check_amounts(config)
    _check_shares(config)
    for name in _CHOICES:
        _check_choice(config, name)
    must(isinstance(config.fast, bool), "fast", "True or False", config.fast, "Choose one.")
    must(_is_whole(config.seed, 0), "seed", "a whole number from 0", config.seed, "Take 0.")
    _check_device(config)
    _check_options(config)


def must(good: bool, name: str, wanted: str, value: Any, advice: str) -> None:
    """Nothing, if a setting is good.

    Raises:
        ValueError: naming it, what it must be and what it is.
    """
    if not good:
        shown = f"{value:,}" if isinstance(value, int) and value > 999 else repr(value)
        raise ValueError(f"`{name}` must be {wanted}, got {shown}. {advice}")


def _check_coder(config: TrainConfig) -> None:
    from sae.coders.registry import coder_of

    kind = coder_of(config.coder)
    whole = _is_whole(config.latents, 1)
    multiple = (
        isinstance(config.latents, str)
        and _MULTIPLE.fullmatch(config.latents) is not None
        and float(config.latents[:-1]) > 0
    )
    must(
        whole or multiple,
        "latents",
        "a whole number from 1, or a multiple of the width such as '16x'",
        config.latents,
        "Try '16x'.",
    )
    if isinstance(config.latents, int) and _is_whole(config.k, 1) and kind.needs_k:
        must(
            config.latents >= config.k,
            "latents",
            f"at least `k`, {config.k}",
            config.latents,
            "Ask for more features, or for fewer active ones.",
        )


def _check_amounts(config: TrainConfig) -> None:
    for name in ("k", "tokens", "batch_size", "buffer_rows", "log_every", "checkpoint_every"):
        value = getattr(config, name)
        must(_is_whole(value, 1), name, "a whole number from 1", value, "Give such a number.")
    for name in ("dead_after", "auxiliary_k"):
        value = getattr(config, name)
        wanted = "a whole number from 1, or None"
        must(value is None or _is_whole(value, 1), name, wanted, value, "Leave it out.")
    for name in ("learning_rate", "gradient_clip"):
        value = getattr(config, name)
        good = value is None or (_is_number(value) and value > 0)
        must(good, name, "a number above 0, or None", value, "Leave it out.")
    good = config.sparsity is None or (_is_number(config.sparsity) and config.sparsity >= 0)
    must(good, "sparsity", "a number from 0, or None", config.sparsity, "Leave it out.")
    good = _is_number(config.auxiliary) and config.auxiliary >= 0
    must(good, "auxiliary", "a number from 0", config.auxiliary, "Try 1/32.")
    config.steps()
    must(
        config.buffer_rows >= config.batch_size,
        "buffer_rows",
        f"at least `batch_size`, {config.batch_size:,}",
        config.buffer_rows,
        "Raise it, or lower `batch_size`.",
    )


def _check_shares(config: TrainConfig) -> None:
    for name in ("warm_up", "decay", "sparsity_warm_up"):
        value = getattr(config, name)
        good = _is_number(value) and 0 <= value <= 1
        must(good, name, "a share from 0 to 1", value, "Try 0.1.")
    must(
        config.warm_up + config.decay <= 1,
        "warm_up + decay",
        "at most 1",
        config.warm_up + config.decay,
        "Shorten one of them.",
    )


def _check_choice(config: TrainConfig, name: str) -> None:
    choices = get_args(_CHOICES[name])
    value = getattr(config, name)
    good = value in choices or (value is None and name == "dead_features")
    must(good, name, f"one of {', '.join(choices)}", value, "Choose one of these.")


def _check_device(config: TrainConfig) -> None:
    if config.device is None:
        return
    try:
        torch.device(config.device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"`device` must be a device of torch, such as cpu or cuda:0, got {config.device!r}. "
            "Leave it out to train where the rows are."
        ) from error


def _check_options(config: TrainConfig) -> None:
    wanted = "settings by name that can be written as JSON"
    good = isinstance(config.options, dict) and all(isinstance(n, str) for n in config.options)
    must(good, "options", wanted, config.options, "Give a dictionary.")
    # Here they would go past all that is checked of them above.
    twice = sorted(config.options.keys() & {f.name for f in fields(config)})
    must(
        not twice,
        "options",
        "settings of one kind of coder only",
        twice,
        "Give these as settings of their own.",
    )
    try:
        json.dumps(config.options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`options` must be {wanted}, got {config.options!r}. Use numbers, text and lists."
        ) from error


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
